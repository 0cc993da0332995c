import subprocess
import sys

import numpy as np
import pytest
import torch
from skimage import data
from tiny_models import PLAIN_WORDS, save_blip
from tiny_networks import save_llava, save_vision_encoder_decoder

from labeling.declaration import declare
from labeling.labeler import RowError
from labeling.registry import load_labeler
from labeling.run import label_rows, label_table


def make(**parameters):
    labeler = load_labeler("caption", parameters)
    labeler.load()
    return labeler


def row(**changes):
    """A bright gray picture of 200 × 100 pixels without text, objects or people."""
    values = {
        "id": "a",
        "images.image": np.full((100, 200, 3), 200, np.uint8),
        "images.text": None,
        "boxes.boxes": [],
        "boxes.names": [],
        "boxes.scores": [],
        "pose.keypoints": [],
    }
    return {**values, **{key.replace("_", ".", 1): value for key, value in changes.items()}}


def objects(*boxes, score=0.9):
    """Columns of the boxes group from (name, x0, y0, x1, y1)."""
    return {
        "boxes_boxes": [dict(zip(("x0", "y0", "x1", "y1"), corners, strict=True)) for _, *corners in boxes],
        "boxes_names": [name for name, *_ in boxes],
        "boxes_scores": [score] * len(boxes),
    }


def body(layout, **parts):
    """A person of 17 or 33 points, facing the camera; parts: y of eyes, shoulders, wrists, hips, knees, ankles."""
    places = {
        17: {"eyes": (1, 2), "shoulders": (5, 6), "wrists": (9, 10), "hips": (11, 12), "knees": (13, 14),
             "ankles": (15, 16)},
        33: {"eyes": (2, 5), "shoulders": (11, 12), "wrists": (15, 16), "hips": (23, 24), "knees": (25, 26),
             "ankles": (27, 28)},
    }[layout]  # fmt: skip
    points = [{"x": 0.0, "y": 0.0, "score": 0.0} for _ in range(layout)]
    for part, y in parts.items():
        for index, x in zip(places[part], (95.0, 105.0), strict=True):
            points[index] = {"x": x, "y": float(y), "score": 0.9}
    return points


def caption(**changes):
    return make().label_row(row(**changes))["caption"]


def test_caption_says_nothing_unknown():
    assert caption() == "The picture is black and white, bright and low in contrast."


def test_text_of_the_source_comes_first():
    assert caption(images_text=" A cat\n on a sofa ").startswith("A cat on a sofa. The picture is")
    assert caption(images_text="Look!").startswith("Look! The picture is")


def test_objects_are_counted_and_placed():
    text = caption(
        **objects(
            ("dog", 5, 10, 60, 90),
            ("person", 150, 10, 170, 60),
            ("person", 175, 10, 195, 60),
            ("umbrella", 90, 2, 110, 12),
            ("wine glass", 0, 80, 10, 99),
            ("wine glass", 190, 80, 200, 99),
        )
    )
    assert text.startswith("The picture shows a dog, two people, an umbrella and two wine glasses. ")
    assert "The dog is on the left." in text
    assert "The people are on the right." in text
    assert "The umbrella is small, and in the middle, near the top." in text
    assert "The wine glasses are in different parts of the picture." in text


@pytest.mark.parametrize(
    ("box", "sentences"),
    [
        (("knife", 10, 10, 190, 95), ("shows a knife.", "The knife fills most of the picture.")),
        (("bus", 10, 70, 190, 95), ("shows a bus.", "The bus is across the whole width, near the bottom.")),
        (("scissors", 80, 30, 120, 60), ("shows a pair of scissors.", "The scissors are in the middle.")),
        (("broccoli", 80, 30, 120, 60), ("shows a piece of broccoli.", "The broccoli is in the middle.")),
    ],
)
def test_sizes_and_amounts_have_words(box, sentences):
    text = caption(**objects(box))
    assert all(sentence in text for sentence in sentences), text


@pytest.mark.parametrize(
    ("name", "many"),
    [("bus", "buses"), ("knife", "knives"), ("couch", "couches"), ("sheep", "sheep"), ("skis", "pairs of skis")],
)
def test_plurals_of_class_names(name, many):
    assert f"The picture shows two {many}." in caption(**objects((name, 5, 5, 50, 50), (name, 60, 5, 90, 50)))


def test_objects_below_the_threshold_are_left_out():
    unsure = objects(("clock", 10, 10, 60, 60), score=0.55)
    assert "clock" not in caption(**unsure)
    assert "clock" in make(threshold=0.5).label_row(row(**unsure))["caption"]


@pytest.mark.parametrize("layout", [17, 33])
def test_poses_are_described(layout):
    standing = {"eyes": 10, "shoulders": 20, "hips": 45, "knees": 65, "ankles": 88}
    assert "One person stands upright." in caption(pose_keypoints=[body(layout, **standing, wrists=45)])
    both = caption(pose_keypoints=[body(layout, **standing, wrists=5), body(layout, **standing, wrists=50)])
    assert "Two people stand upright. One person has an arm raised." in both
    sitting = caption(pose_keypoints=[body(layout, **{**standing, "knees": 50}, wrists=50)])
    invisible = caption(pose_keypoints=[body(layout, eyes=10, shoulders=20)])
    portrait = caption(pose_keypoints=[body(layout, eyes=10, shoulders=60, hips=120, knees=150)])
    assert "stand" not in sitting + invisible + portrait and "arm" not in sitting + invisible + portrait
    assert "One person is cut off above the knees." in portrait and "cut off" not in sitting + invisible
    lying = body(layout, **standing, wrists=5)
    for point in lying:
        point["x"], point["y"] = point["y"], point["x"]
    assert "person" not in caption(pose_keypoints=[lying])


@pytest.mark.parametrize(
    ("color", "name"),
    [
        ((220, 20, 20), "red"), ((250, 130, 10), "orange"), ((120, 70, 30), "brown"), ((230, 205, 160), "beige"),
        ((240, 230, 30), "yellow"), ((30, 140, 40), "green"), ((30, 60, 200), "blue"), ((255, 120, 190), "pink"),
        ((120, 40, 180), "purple"), ((40, 200, 200), "turquoise"),
    ],
)  # fmt: skip
def test_colors_have_everyday_names(color, name):
    picture = np.full((60, 80, 3), color, np.uint8)
    assert f"The picture's main colour is {name}." in caption(images_image=picture)
    picture[:, :50] = 0
    assert f"The picture's main colours are black and {name}." in caption(images_image=picture)


def test_gray_image_with_one_colored_object_is_not_black_and_white():
    picture = np.full((100, 100, 3), 128, np.uint8)
    assert "black and white" in caption(images_image=picture)
    picture[:15, :15] = (255, 0, 0)
    assert caption(images_image=picture).startswith("The picture's main colour is gray.")


def test_captions_of_photographs():
    assert "main colours are brown and beige" in caption(images_image=data.chelsea())
    assert caption(images_image=data.camera()[..., None].repeat(3, 2)).endswith("The picture is black and white.")
    assert caption(images_image=data.rocket()).endswith("main colour is blue. It is dark.")


def test_missing_columns_are_an_error_of_their_row():
    rows = [row(), row(boxes_boxes=None), row(pose_keypoints=None), row(images_image=None)]
    errors = [result["error"] for result in label_rows(make(), rows)]
    assert errors == [
        None,
        "no boxes: boxes.boxes is missing",
        "no pose: pose.keypoints is missing",
        "no images: images.image is missing",
    ]


def test_results_do_not_depend_on_process():
    script = (
        "from skimage import data\nfrom labeling.registry import load_labeler\n"
        "labeler = load_labeler('caption', {})\nlabeler.load()\n"
        "row = {'images.image': data.coffee(), 'images.text': None, 'boxes.boxes': [], 'boxes.names': [],\n"
        "       'boxes.scores': [], 'pose.keypoints': []}\n"
        "print(labeler.label_row(row)['caption'])"
    )
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    assert other == caption(images_image=data.coffee())


@pytest.mark.parametrize("build", [save_blip, save_vision_encoder_decoder, save_llava])
def test_model_by_path_writes_the_caption(build, tmp_path):
    torch.manual_seed(1)
    build(tmp_path)
    labeler = make(model=str(tmp_path), tokens=6)
    assert labeler.reads == ("images.image",)
    assert declare(labeler)["weights"] == labeler.weights_digest() != ""
    rows = [{"id": name, "images.image": getattr(data, name)()} for name in ("astronaut", "coffee")]
    table = label_table(labeler, rows, sets=False)
    assert table["error"].to_pylist() == [None, None]
    for text in table["caption"].to_pylist():
        assert len(text.split()) <= 6  # without the question
        assert set(text.split()) <= set(PLAIN_WORDS)
    assert label_table(make(model=str(tmp_path), tokens=6), rows[1:], sets=False).equals(table.slice(1, 1))
    (name,) = set(table["model"].to_pylist())
    assert name.endswith(labeler.weights_digest()[:8]) and str(tmp_path) not in name


def test_instruction_model_reads_the_prompt(tmp_path):
    torch.manual_seed(1)
    save_llava(tmp_path)
    row = {"id": "a", "images.image": data.coffee()}
    questions = ("describe", "red sofa grass describe the cat under a dog on the sofa")
    texts = {make(model=str(tmp_path), tokens=8, prompt=ask).label_row(row)["caption"] for ask in questions}
    assert len(texts) == 2


def test_empty_output_of_a_model_is_an_error(tmp_path):
    save_blip(tmp_path, ["[SEP]"])
    with pytest.raises(RowError, match="the model wrote nothing"):
        make(model=str(tmp_path)).label_row({"id": "a", "images.image": data.coffee()})


def test_drawn_captions_depend_on_their_row_alone(tmp_path):
    torch.manual_seed(1)
    save_llava(tmp_path)
    given = {"model": str(tmp_path), "tokens": 8, "temperature": 1.0, "top_p": 0.9, "dtype": "fp32"}
    rows = [{"id": f"row {number}", "images.image": data.coffee()} for number in range(4)]
    labeler = make(**given)
    single = [labeler.label_row(row) for row in rows]
    assert len({one["caption"] for one in single}) > 1  # the same picture
    labeler.device = "cpu:0"  # which computes in batches, as a GPU does
    assert labeler.label(rows) == single == list(reversed(make(**given).label(rows[::-1])))
    assert {**declare(labeler)["parameters"], **given} == declare(labeler)["parameters"]
    likely = make(**{**given, "temperature": 1e-6, "top_p": 1.0})
    greedy = make(**{**given, "temperature": 0.0, "top_p": 1.0})
    assert likely.label(rows) == greedy.label(rows)  # what is drawn at next to no temperature is the likeliest
