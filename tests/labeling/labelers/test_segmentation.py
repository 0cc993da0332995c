import hashlib
import subprocess
import sys

import mmcv
import numpy as np
import pytest
import torch
from skimage import data
from tiny_networks import save_eomt, save_segformer

from labeling.dataset import Dataset
from labeling.declaration import declare, is_same
from labeling.plan import choose_labelers
from labeling.registry import load_labeler
from labeling.run import label_rows, label_table
from model.conditions import condition_picture
from model.inputs import InputError
from model.pictures import decode_gray
from model.prompts import COLORS


def make(**parameters):
    labeler = load_labeler("segmentation", parameters)
    labeler.load()
    return labeler


def box(x0, y0, x1, y1):
    return {"x0": x0, "y0": y0, "x1": x1, "y1": y1}


def row(picture, *objects, identity="one"):
    boxes, names = [box(*corners) for corners, _ in objects], [name for _, name in objects]
    return {"id": identity, "images.image": picture, "boxes.boxes": boxes, "boxes.names": names}


def mask_of(result):
    return decode_gray(result["mask"])


@pytest.fixture(scope="module")
def labeler():
    return make()


@pytest.fixture
def shapes():
    """(picture, teapot, kettle): discs on a textured ground, the kettle in front of the teapot."""
    down, across = np.mgrid[:240, :360]
    teapot = (down - 120) ** 2 + (across - 150) ** 2 < 80**2
    kettle = (down - 130) ** 2 + (across - 160) ** 2 < 30**2
    noise = np.random.default_rng(0).integers(0, 20, (240, 360, 1), np.uint8)
    picture = np.where(kettle[..., None], (20, 40, 200), np.where(teapot[..., None], (200, 40, 20), (90, 160, 90)))
    return (picture + noise).astype(np.uint8), teapot, kettle


def overlap(a, b):
    return (a & b).sum() / (a | b).sum()


def test_person_is_segmented_inside_the_box(labeler):
    result = labeler.label_row(row(data.astronaut(), ((14, 12, 370, 508), "person")))
    mask = mask_of(result)
    assert mask.dtype == np.uint8 and mask.shape == (512, 512) and set(np.unique(mask)) == {0, 1}
    assert mask[100, 220] == mask[400, 150] == 1  # face, suit
    assert mask[60, 60] == mask[60, 330] == 0 and not mask[:, 375:].any()  # flag, sky, right of the box
    assert result["names"] == ["person"]


def test_nobody_is_segmented_without_a_person_box(labeler):
    result = labeler.label_row(row(data.astronaut(), ((400, 10, 500, 200), "train")))
    assert "person" not in result["names"] and mask_of(result)[100, 220] == 0


def test_other_objects_keep_their_outline_and_small_ones_are_on_top(labeler, shapes):
    picture, teapot, kettle = shapes
    # The small one first: its place in the list does not decide.
    result = labeler.label_row(row(picture, ((128, 98, 192, 162), "kettle"), ((68, 38, 232, 202), "teapot")))
    mask = mask_of(result)
    assert sorted(result["names"]) == ["kettle", "teapot"]
    number = {name: index + 1 for index, name in enumerate(result["names"])}
    assert overlap(mask == number["kettle"], kettle) > 0.9
    assert overlap(mask == number["teapot"], teapot & ~kettle) > 0.85


def test_large_images_are_segmented_at_working_size_and_come_back_whole(labeler, shapes):
    picture, teapot, kettle = shapes
    large = picture.repeat(3, 0).repeat(3, 1)
    result = labeler.label_row(row(large, ((204, 114, 696, 606), "teapot")))
    assert mask_of(result).shape == (720, 1080)
    behind = kettle.repeat(3, 0).repeat(3, 1)  # whether the other thing belongs to it, GrabCut may decide
    mask, expected = mask_of(result) == 1, teapot.repeat(3, 0).repeat(3, 1)
    assert overlap(mask & ~behind, expected & ~behind) > 0.9


def test_box_as_large_as_the_image_is_no_error(labeler):
    assert label_rows(labeler, [row(data.chelsea(), ((0, 0, 451, 300), "cat"))])[0]["error"] is None


def test_label_is_drawn_in_the_colors_of_its_classes(labeler, shapes):
    given = row(shapes[0], ((128, 98, 192, 162), "kettle"), ((68, 38, 232, 202), "teapot"))
    result = labeler.label_row(given)
    assert len(set(result["colors"])) == 2 and set(result["colors"]) <= set(COLORS.values())
    drawn = condition_picture("segmentation", {f"segmentation.{k}": v for k, v in result.items()}, 360, 240)
    assert set(map(tuple, drawn.reshape(-1, 3))) == {
        (0, 0, 0),
        *(tuple(bytes.fromhex(c[1:])) for c in result["colors"]),
    }
    other = {tuple(labeler.label_row({**given, "id": str(index)})["colors"]) for index in range(3)}
    assert len(other) > 1  # drawn for each row


def test_image_without_regions_is_labeled_and_missing_boxes_are_an_error(labeler):
    black, missing = label_rows(
        labeler, [row(np.zeros((40, 50, 3), np.uint8)), {**row(data.coffee()), "boxes.boxes": None}]
    )
    assert black["error"] is None and black["names"] == black["colors"] == []
    assert mask_of(black).shape == (40, 50) and not mask_of(black).any()
    assert missing["error"].startswith("no boxes")


def test_results_do_not_depend_on_batch_or_other_labelers(labeler):
    cat = row(data.chelsea(), ((10, 2, 430, 296), "cat"))
    person = row(data.astronaut(), ((14, 12, 370, 508), "person"), identity="two")
    together = label_table(labeler, [cat, person], sets=False)
    assert label_table(make(), [person], sets=False).to_pylist() == together.slice(1).to_pylist()
    assert "mediapipe" in together["model"][0].as_py() and labeler.weights_digest()


def test_results_do_not_depend_on_process(labeler):
    script = (
        "import hashlib\nfrom skimage import data\nfrom labeling.registry import load_labeler\n"
        "labeler = load_labeler('segmentation', {})\nlabeler.load()\n"
        "given = ('astronaut', (14, 12, 370, 508), 'person'), ('coffee', (60, 15, 490, 390), 'cup')\n"
        "for name, corners, kind in given:\n"
        "    row = {'id': 'one', 'images.image': getattr(data, name)(), 'boxes.names': [kind],\n"
        "           'boxes.boxes': [dict(zip(('x0', 'y0', 'x1', 'y1'), corners))]}\n"
        "    print(hashlib.sha256(labeler.label_row(row)['mask']).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    here = [
        labeler.label_row(row(data.astronaut(), ((14, 12, 370, 508), "person"))),
        labeler.label_row(row(data.coffee(), ((60, 15, 490, 390), "cup"))),
    ]
    assert [result["names"] for result in here] == [["person"], ["cup"]]
    assert [hashlib.sha256(result["mask"]).hexdigest() for result in here] == other


@pytest.mark.parametrize(
    ("build", "kind"), [(save_eomt, ""), (save_eomt, "semantic"), (save_segformer, ""), (save_segformer, "semantic")]
)
def test_segmenter_is_loaded_by_path(build, kind, tmp_path):
    torch.manual_seed(0)
    build(tmp_path)
    labeler = make(model=str(tmp_path), threshold=0, kind=kind)
    assert labeler.reads == ("images.image",)  # it knows by itself what there is
    given = {"id": "one", "images.image": data.coffee()}
    result = labeler.label_row(given)
    mask = mask_of(result)
    assert mask.shape == (400, 600) and mask.max() == len(result["names"]) == len(result["colors"]) > 0
    assert set(result["names"]) <= {"teapot", "kettle"}
    assert make(model=str(tmp_path), threshold=0, kind=kind).label_row(given) == result
    assert labeler.model.split()[1] == labeler.weights_digest()[:8]  # and no path of this machine


def test_semantic_model_refuses_single_objects(tmp_path):
    save_segformer(tmp_path)
    with pytest.raises(InputError, match=r"segmentation.kind: instance regions .* take semantic"):
        make(model=str(tmp_path), kind="instance")


@pytest.mark.parametrize(
    ("name", "corners", "least", "most"),
    [
        # Coins of a gray picture are discs, π/4 of their boxes; of the whole picture's colors they have the same.
        ("coins", (25, 178, 61, 215), 0.6, 0.9),
        ("coins", (185, 106, 224, 144), 0.6, 0.9),
        ("coins", (305, 17, 365, 75), 0.6, 0.9),
        ("chelsea", (324, 98, 451, 294), 0.4, 0.9),  # what the cat lies on, at the border of the picture
        ("coffee", (173, 12, 412, 240), 0.5, 0.8),
    ],
)
@pytest.mark.parametrize("scale", [1, 4])
def test_small_objects_and_those_at_the_border_are_found(labeler, name, corners, least, most, scale):
    picture = getattr(data, name)()
    picture = picture if picture.ndim == 3 else picture[..., None].repeat(3, 2)
    large = picture.repeat(scale, 0).repeat(scale, 1)
    x0, y0, x1, y1 = (scale * value for value in corners)
    mask = mask_of(labeler.label_row(row(large, ((x0, y0, x1, y1), "thing"))))
    assert least < mask[y0:y1, x0:x1].mean() < most
    assert mask.sum() == mask[y0 : y1 + scale, x0 : x1 + scale].sum()  # and nothing outside of the box


def test_only_labels_by_grabcut_have_a_new_version(labeler, tmp_path):
    save_segformer(tmp_path)
    assert declare(labeler)["version"] == 2
    assert declare(load_labeler("segmentation", {"model": str(tmp_path)}))["version"] == 1


def test_box_of_a_pixel_is_no_error(labeler):
    result = label_rows(labeler, [row(data.coffee()[:24, :24], ((3, 3, 4, 4), "crumb"), ((0, 0, 2, 1), "dust"))])[0]
    assert result["error"] is None


def test_class_that_a_crowd_hides_is_not_named(labeler, monkeypatch):
    picture = data.astronaut()
    masks = {(0, 0, 512, 512): np.ones((512, 512), bool)}  # a car, and people before nearly all of it
    for column in range(4):
        person = np.zeros((512, 512), bool)
        person[:, 128 * column : 128 * (column + 1)] = True
        masks[(128 * column, 0, 128 * column + 128, 511)] = person
    masks[(384, 0, 512, 511)][0] = False  # a hundred pixels of the car are left
    monkeypatch.setattr(labeler._boxes, "thing", lambda _picture, corners: masks[tuple(corners)])
    boxes = [dict(zip(("x0", "y0", "x1", "y1"), corners, strict=True)) for corners in masks]
    row = {"id": "a", "images.image": picture, "boxes.boxes": boxes, "boxes.names": ["car", *["horse"] * 4]}
    label = labeler.label_row(row)
    assert label["names"] == ["horse"] and set(np.unique(decode_gray(label["mask"]))) <= {0, 1}


def test_small_people_are_cut_out_of_the_full_picture():
    """One of 60 pixels before a lawn, where the mask of the same person in full size says what is right."""
    person = data.astronaut()
    expected = mask_of(make().label_row(row(person, ((14, 12, 370, 508), "person")))).astype(float)
    small, truth = (mmcv.imresize(one, (60, 60), interpolation="area") for one in (person, expected))
    street = np.repeat(np.repeat(data.grass()[..., None], 3, 2), 2, 1)  # 512 by 1024
    street[300:360, 700:760][truth > 0.5] = small[truth > 0.5]
    given = row(street, ((701, 301, 744, 360), "person"))
    found = [mask_of(make(full_people=full).label_row(given))[300:360, 700:760] > 0 for full in (False, True)]
    before, now = (overlap(one, truth > 0.5) for one in found)
    assert now > 0.85 and now > before + 0.1


def test_person_whom_the_network_does_not_see_is_cut_out_as_other_things_are(shapes):
    picture, _, kettle = shapes
    corners = (128, 98, 192, 162)
    thing = make().label_row(row(picture, (corners, "kettle")))
    person = make(full_people=True).label_row(row(picture, (corners, "person")))
    assert person["names"] == ["person"] and person["mask"] == thing["mask"]
    assert overlap(mask_of(person) > 0, kettle) > 0.8


def test_new_groups_look_for_people_in_the_full_picture_and_those_of_before_stay_as_they_are(tmp_path):
    before, new = Dataset(tmp_path / "before"), Dataset(tmp_path / "new")
    for dataset in (before, new):
        dataset.describe("pictures", [], [])
    declared = declare(make())
    before.declare("segmentation", declared)

    def of(dataset, **given):
        return choose_labelers(dataset, ["segmentation"], {"segmentation": given})["segmentation"]

    assert of(new).parameters.full_people and not of(new, full_people=False).parameters.full_people
    assert not of(new, model="owner/segmenter").parameters.full_people
    assert is_same(declared, declare(of(before))) and "full_people" not in declared["parameters"]
