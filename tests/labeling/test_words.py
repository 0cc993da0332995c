import numpy as np
import pytest
import torch
from skimage import data
from tiny_networks import save_grounding_dino, save_owlv2, save_sam2, save_sam3, save_vitpose, save_yolos

from labeling.labelers.boxes import _grounded
from labeling.networks.words import NamesParameters, mentioned, names_of, parse_names, phrases
from labeling.registry import load_labeler
from labeling.run import label_rows
from model.inputs import InputError
from model.pictures import decode_gray


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("A brown dog sits on a red sofa next to two cats.", ["brown dog", "red sofa", "cat"]),
        ("The picture shows three people, a car and a traffic light.", ["person", "car", "traffic light"]),
        ("A group of children eats a slice of pizza in the background.", ["child", "pizza"]),
        ("The picture's main colours are brown and beige. It is dark.", []),
        ("", []),
    ],
)
def test_captions_name_things(text, names):
    assert phrases(text) == names


@pytest.mark.parametrize(
    "text",
    ["cat, traffic light, sofa", "1. Cat 2. a traffic light\n3) the sofa.", '["cat", "traffic light", "sofa"]',
     "- cat - traffic light - sofa", "cat; traffic light; and a sofa; cat"],
)  # fmt: skip
def test_lists_of_models_are_read_however_they_are_written(text):
    assert parse_names(text, 10) == ["cat", "traffic light", "sofa"] and parse_names(text, 2) == [
        "cat",
        "traffic light",
    ]


def test_names_come_from_where_the_parameters_say():
    row = {"caption.caption": "Two people hold wine glasses.", "objects.names": ["Person", "sofa"]}

    def found(**parameters):
        return names_of(row, NamesParameters(**parameters))

    assert found(names=["cat", "dog"]) == ["cat", "dog"]
    assert found(names_from="caption") == ["person"]
    assert found(names_from="caption", names=["dog", "wine glass", "person"]) == ["wine glass", "person"]
    assert found(names_from="objects") == ["Person", "sofa"]
    assert found(names_from="objects", names=["people", "sofa"]) == ["people", "sofa"]
    assert mentioned("a caterpillar", ["cat"]) == []


def test_box_has_the_name_whose_words_score_highest():
    tokens = [2, 7, 5, 10, 11, 5, 3]  # [CLS] cat . wine glass . [SEP]
    logits = np.full((3, 7), -5.0, np.float32)
    logits[0, 1], logits[1, 4], logits[2, 2] = 2.0, 1.0, 9.0  # cat; glass; the dot, which is no name
    output = {"logits": logits[None], "pred_boxes": np.full((1, 3, 4), 0.5, np.float32)}
    found = _grounded(output, (100, 200), ["cat", "wine glass"], [[7], [10, 11]], tokens)
    assert [name for _, _, name in found[:2]] == ["cat", "wine glass"]
    assert found[0][0] == [50, 25, 150, 75] and found[0][1] == pytest.approx(1 / (1 + np.exp(-2)))
    assert found[2][1] < 0.01


@pytest.mark.parametrize(
    ("group", "build", "parameters", "line"),
    [
        ("boxes", save_grounding_dino, {}, "boxes.names: this model finds what it is told to"),
        ("boxes", save_owlv2, {}, "boxes.names: this model finds what it is told to"),
        ("boxes", save_yolos, {"names": ["cat"]}, "boxes.names: this model has classes of its own"),
        ("boxes", None, {"names": ["cat"]}, "boxes.names: the embedded detector finds COCO's classes"),
        ("segmentation", save_sam2, {}, "segmentation.kind: this model cuts out what it is told to; set it to boxes"),
        ("segmentation", save_sam3, {}, "segmentation.kind: this model cuts out what it is told to; set it to words"),
        ("segmentation", save_sam3, {"kind": "words"}, "segmentation.names: names or names_from go with kind words"),
        ("segmentation", save_sam2, {"names": ["cat"]}, "segmentation.names: names or names_from go with kind words"),
        ("segmentation", None, {"kind": "boxes"}, "segmentation.kind: boxes need a model"),
    ],
)
def test_contradictory_parameters_are_one_line(group, build, parameters, line, tmp_path):
    if build:
        build(tmp_path)
        parameters = {"model": str(tmp_path), **parameters}
    with pytest.raises(InputError, match=line):
        load_labeler(group, parameters).load()


def test_masks_have_the_names_of_their_boxes_and_of_words(tmp_path):
    torch.manual_seed(0)
    for build in (save_sam2, save_sam3):
        (tmp_path / build.__name__).mkdir()
        build(tmp_path / build.__name__)
    corners = {"x0": 50.0, "y0": 40.0, "x1": 400.0, "y1": 300.0}
    row = {"id": "a", "images.image": data.coffee(), "boxes.boxes": [corners], "boxes.names": ["teapot"]}
    by_boxes = load_labeler("segmentation", {"model": str(tmp_path / "save_sam2"), "kind": "boxes"})
    by_words = load_labeler(
        "segmentation", {"model": str(tmp_path / "save_sam3"), "kind": "words", "names": ["cat", "dog"], "threshold": 0}
    )
    assert by_boxes.reads == ("images.image", "boxes.boxes", "boxes.names") and by_words.reads == ("images.image",)
    for labeler, names in ((by_boxes, {"teapot"}), (by_words, {"cat", "dog"})):
        labeler.load()
        (result,) = label_rows(labeler, [row])
        mask = decode_gray(result["mask"])
        assert result["error"] is None and mask.shape == (400, 600) and set(result["names"]) <= names
        assert mask.max() == len(result["names"]) == len(result["colors"]) > 0
    (nothing,) = label_rows(by_boxes, [{**row, "boxes.boxes": [], "boxes.names": []}])
    assert nothing["names"] == [] and not decode_gray(nothing["mask"]).any()


def test_people_have_the_names_that_detectors_give_them(tmp_path):
    save_vitpose(tmp_path)
    box = {"x0": 10.0, "y0": 10.0, "x1": 200.0, "y1": 300.0}

    def people(names, **parameters):
        labeler = load_labeler("pose", {"model": str(tmp_path), **parameters})
        labeler.load()
        row = {"id": "a", "images.image": data.astronaut(), "boxes.boxes": [box] * len(names), "boxes.names": names}
        (result,) = label_rows(labeler, [row])
        return result["error"] or len(result["keypoints"])

    assert people(["Person", "person", "PERSON ", "dog"]) == 3  # several of them
    assert people(["man", "woman", "dog"], person=["Man", "woman"]) == 2
    assert people(["LABEL_0", "LABEL_1", "0"], person=[0]) == people(["LABEL_0", "0"], person=["LABEL_0"]) == 2
    assert people(["LABEL_0", "LABEL_17"]) == "the boxes' classes are numbers (0, 17): set pose.person to one"
