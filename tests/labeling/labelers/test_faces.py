import numpy as np
import pytest
import torch
from skimage import data
from tiny_networks import save_yolos

from labeling.declaration import declare
from labeling.registry import load_labeler
from labeling.run import label_rows, label_table

FACE = (165, 70, 275, 180)  # of the astronaut


def make(**parameters):
    labeler = load_labeler("faces", parameters)
    labeler.load()
    return labeler


@pytest.fixture(scope="module")
def labeler():
    return make()


def row(picture, identity="one"):
    return {"id": identity, "images.image": picture}


def test_face_has_a_box_points_and_an_identity(labeler):
    result = labeler.label_row(row(data.astronaut()))
    (box,), (points,), (identity,) = result["boxes"], result["landmarks"], result["embeddings"]
    assert all(abs(box[key] - value) < 30 for key, value in zip(("x0", "y0", "x1", "y1"), FACE, strict=True))
    assert len(points) == 5 and len(identity) == 128 and result["scores"][0] > 0.8
    assert all(box["x0"] < point["x"] < box["x1"] and box["y0"] < point["y"] < box["y1"] for point in points)


def test_same_person_is_near_and_others_are_far(labeler, photographs):
    def identity(picture):
        return np.array(labeler.label_row(row(picture))["embeddings"][0])

    one = identity(data.astronaut())
    same = identity(np.ascontiguousarray(data.astronaut()[::2, ::-2] // 2 + 60))  # smaller, mirrored and paler
    from pathlib import Path

    import pipelines
    from model.pictures import decode_picture

    folder = Path(pipelines.__file__).parent / "demo_data" / "photographs"
    portrait, sitting = (
        identity(decode_picture((folder / f"tesla_{name}.jpg").read_bytes())) for name in ("portrait", "sitting")
    )
    assert np.linalg.norm(one - same) < 0.6 and np.linalg.norm(portrait - sitting) < 0.6
    assert np.linalg.norm(one - portrait) > 0.6 and np.linalg.norm(one - sitting) > 0.6


def test_people_of_a_group_are_found_each_once(labeler):
    small = data.astronaut()[40:232, 120:312][::2, ::2]  # a face of 50 pixels
    group = np.full((600, 900, 3), 120, np.uint8)
    places = [(30, 40), (60, 400), (40, 760), (420, 100), (380, 480), (450, 780)]
    for top, left in places:
        group[top : top + 96, left : left + 96] = small
    result = labeler.label_row(row(group))
    assert len(result["boxes"]) == len(places)
    found = sorted(((box["x0"] + box["x1"]) / 2, (box["y0"] + box["y1"]) / 2) for box in result["boxes"])
    for (x, y), (top, left) in zip(found, sorted(places, key=lambda place: place[1]), strict=True):
        assert left < x < left + 96 and top < y < top + 96


def test_pictures_without_faces_have_none(labeler):
    for picture in (data.coffee(), data.chelsea(), np.zeros((20, 30, 3), np.uint8)):
        (result,) = label_rows(labeler, [row(picture)])
        assert result["error"] is None and result["boxes"] == result["embeddings"] == []


def test_results_do_not_depend_on_batch(labeler):
    rows = [row(data.coffee(), "a"), row(data.astronaut(), "b")]
    together = label_table(labeler, rows, sets=False)
    assert label_table(make(), rows[1:], sets=False).to_pylist() == together.slice(1).to_pylist()
    assert declare(labeler)["weights"] == labeler.weights_digest() and "mediapipe" in together["model"][0].as_py()


def test_faces_of_a_detector_by_path_have_points_and_identities_too(tmp_path):
    torch.manual_seed(0)
    save_yolos(tmp_path)
    labeler = make(model=str(tmp_path), threshold=0, least_side=4)
    result = labeler.label_row(row(data.astronaut()))
    assert len(result["boxes"]) == len(result["landmarks"]) == len(result["embeddings"]) > 0
    assert labeler.model.startswith("Yolos") and "face-recognition-models" in labeler.model
