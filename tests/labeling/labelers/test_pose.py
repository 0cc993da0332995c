import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from skimage import data
from tiny_networks import save_vitpose

from labeling.registry import load_labeler
from labeling.run import label_rows, label_table
from model.conditions import draw_skeleton
from model.pictures import decode_picture

PERSON = (14, 12, 370, 508)
NOSE, LEFT_SHOULDER, RIGHT_SHOULDER = 0, 11, 12  # of mediapipe's 33


def make(**parameters):
    labeler = load_labeler("pose", parameters)
    labeler.load()
    return labeler


def row(picture, *boxes, names=None, identity="one"):
    corners = [dict(zip(("x0", "y0", "x1", "y1"), box, strict=True)) for box in boxes]
    return {"id": identity, "images.image": picture, "boxes.boxes": corners,
            "boxes.names": names or ["person"] * len(boxes)}  # fmt: skip


def at(person, index):
    return np.array([person[index]["x"], person[index]["y"]])


@pytest.fixture(scope="module")
def labeler():
    return make()


@pytest.fixture
def two():
    """The astronaut twice, side by side."""
    return np.concatenate([data.astronaut()] * 2, axis=1)


def test_points_lie_on_the_person_in_pixels_of_the_picture(labeler):
    (person,) = labeler.label_row(row(data.astronaut(), PERSON))["keypoints"]
    assert len(person) == 33 and person[NOSE]["score"] > 0.9
    assert np.abs(at(person, NOSE) - (224, 122)).max() < 20
    assert at(person, LEFT_SHOULDER)[0] > 250 and at(person, RIGHT_SHOULDER)[0] < 180  # hers, not the viewer's


def test_each_person_box_gives_one_person_inside(labeler, two):
    shifted = (PERSON[0] + 512, PERSON[1], PERSON[2] + 512, PERSON[3])
    people = labeler.label_row(row(two, PERSON, shifted))["keypoints"]
    assert len(people) == 2
    noses = sorted(at(person, NOSE)[0] for person in people)
    assert np.abs(np.array(noses) - (224, 736)).max() < 25
    assert len(make(people=1).label_row(row(two, PERSON, shifted))["keypoints"]) == 1


def test_three_people_are_three_poses_where_the_boxes_show_them(labeler):
    three = np.concatenate([data.astronaut()[:, :400]] * 3, axis=1)
    boxes = [(left + PERSON[0], PERSON[1], left + PERSON[2], PERSON[3]) for left in (0, 400, 800)]
    people = labeler.label_row(row(three, *boxes))["keypoints"]
    assert np.abs(np.array(sorted(at(person, NOSE)[0] for person in people)) - (224, 624, 1024)).max() < 25


def test_person_in_two_boxes_counts_once(labeler):
    near = tuple(value + 4 for value in PERSON)
    assert len(labeler.label_row(row(data.astronaut(), PERSON, near))["keypoints"]) == 1


def test_whole_image_is_tried_only_without_any_box(labeler):
    (person,) = labeler.label_row(row(data.astronaut()))["keypoints"]
    assert np.abs(at(person, NOSE) - (224, 122)).max() < 25
    assert labeler.label_row(row(data.astronaut(), (400, 10, 500, 200), names=["train"]))["keypoints"] == []


def test_skeleton_is_the_drawing_of_the_points(labeler):
    result = labeler.label_row(row(data.astronaut(), PERSON))
    skeleton = decode_picture(result["skeleton"])
    assert skeleton.shape == (512, 512, 3) and skeleton.any()
    assert np.array_equal(skeleton, draw_skeleton(result["keypoints"], 512, 512))


def test_image_without_people_is_labeled_and_missing_boxes_are_an_error(labeler):
    empty, missing = label_rows(labeler, [row(data.coffee()), {**row(data.coffee()), "boxes.boxes": None}])
    assert empty["error"] is None and empty["keypoints"] == []
    assert decode_picture(empty["skeleton"]).shape == (400, 600, 3) and not decode_picture(empty["skeleton"]).any()
    assert missing["error"].startswith("no boxes")


def test_results_do_not_depend_on_batch_or_other_labelers(labeler):
    cup, person = row(data.coffee(), identity="cup"), row(data.astronaut(), PERSON)
    together = label_table(labeler, [cup, person], sets=False)
    assert label_table(make(), [person], sets=False).to_pylist() == together.slice(1).to_pylist()
    assert "mediapipe" in together["model"][0].as_py() and labeler.weights_digest()


def test_results_do_not_depend_on_process(labeler):
    script = (
        "import hashlib\nfrom skimage import data\nfrom labeling.registry import load_labeler\n"
        "labeler = load_labeler('pose', {})\nlabeler.load()\n"
        "box = dict(zip(('x0', 'y0', 'x1', 'y1'), (14, 12, 370, 508)))\n"
        "row = {'id': 'one', 'images.image': data.astronaut(), 'boxes.boxes': [box], 'boxes.names': ['person']}\n"
        "print(hashlib.sha256(repr(labeler.label_row(row)).encode()).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    here = labeler.label_row(row(data.astronaut(), PERSON))
    assert hashlib.sha256(repr(here).encode()).hexdigest() == other


def test_scores_of_boxes_are_not_read(labeler):
    assert set(labeler.reads) == {"images.image", "boxes.boxes", "boxes.names"}  # else they would make poses stale


def test_pose_model_is_loaded_by_path(tmp_path):
    torch.manual_seed(0)
    save_vitpose(tmp_path)
    labeler = make(model=str(tmp_path))
    names = ["person", "person", "cat"]
    given = row(data.astronaut(), PERSON, (380, 20, 500, 300), (10, 10, 60, 60), names=names)
    result = labeler.label_row(given)
    assert [len(person) for person in result["keypoints"]] == [17, 17]
    first = np.array([[point["x"], point["y"]] for point in result["keypoints"][0]])
    assert (first > -200).all() and (first < 712).all()  # near its box, in pixels of the picture
    assert decode_picture(result["skeleton"]).shape == (512, 512, 3)
    assert labeler.label_row(row(data.astronaut()))["keypoints"] == []
    assert labeler.model == f"VitPoseForPoseEstimation {labeler.weights_digest()[:8]}"  # no path of this machine


def test_three_people_side_by_side_are_three_poses_where_the_first_look_finds_one_twice():
    """Two of them small and close together: a crop around one shows the other as well."""
    person = data.astronaut()[PERSON[1] : PERSON[3] : 6, PERSON[0] : PERSON[2] : 6]
    height, width = person.shape[:2]
    street = np.full((240, 320, 3), 150, np.uint8)
    boxes = []
    for left in (40, 40 + width + 4, 220):
        street[100 : 100 + height, left : left + width] = person
        boxes.append((left, 100, left + width, 100 + height))
    people = make(looks=4).label_row(row(street, *boxes))["keypoints"]
    assert len(people) == 3
    middles = sorted(np.median([point["x"] for point in one]) for one in people)
    for middle, box in zip(middles, boxes, strict=True):
        assert box[0] <= middle <= box[2]
    assert len(make().label_row(row(street, *boxes))["keypoints"]) <= 3  # as groups of before have it


def test_further_looks_put_nobody_where_no_box_is():
    assert make(looks=4).label_row(row(data.coffee()[::2, ::2]))["keypoints"] == []
