import cv2
import numpy as np
import pytest
from skimage import data

from labeling.declaration import declare
from labeling.registry import load_labeler
from labeling.run import label_rows
from model.conditions import degrade
from model.inputs import InputError
from model.pictures import decode_picture, encode_png


@pytest.fixture(scope="module")
def labeler():
    labeler = load_labeler("embedding", {})
    labeler.load()
    return labeler


def embeddings(labeler, pictures):
    rows = [{"id": str(number), "images.image": picture} for number, picture in enumerate(pictures)]
    return np.array([row["embedding"] for row in label_rows(labeler, rows)], np.float32)


def test_copies_are_nearer_than_other_pictures(labeler):
    pictures = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket()]
    encoded = [cv2.imdecode(cv2.imencode(".jpg", one, [cv2.IMWRITE_JPEG_QUALITY, 30])[1], 1) for one in pictures]
    cropped = [one[10:-10, 10:-10] for one in pictures]
    small = [cv2.resize(one, None, fx=0.4, fy=0.4, interpolation=cv2.INTER_AREA) for one in pictures]
    given = embeddings(labeler, pictures)
    assert np.allclose(np.linalg.norm(given, axis=1), 1, atol=2e-3) and given.shape == (4, 1280)
    others = (given @ given.T)[~np.eye(4, dtype=bool)].max()
    for copies in (encoded, cropped, small):
        alike = (given * embeddings(labeler, copies)).sum(1)
        assert alike.min() > others + 0.1


def test_batches_give_what_single_rows_give(labeler):
    pictures = [data.coffee(), data.chelsea()]
    single = embeddings(labeler, pictures)
    labeler.device = "cpu:0"  # which computes in batches, as a GPU does
    together = embeddings(labeler, pictures)
    labeler.device = "cpu"
    assert np.abs(single - together).max() < 1e-3  # the last bit of half precision
    assert np.array_equal(single[1:], embeddings(labeler, pictures[1:]))
    assert declare(labeler)["weights"] == labeler.weights_digest() != ""


def test_surroundings_of_an_object_do_not_count():
    labeler = load_labeler("embedding-object", {})
    labeler.load()
    cup = data.coffee()[100:280, 100:330]
    rows = []
    for number, (place, surroundings) in enumerate(((40, data.grass()), (150, data.brick()), (90, data.gravel()))):
        picture = np.repeat(surroundings[:400, :400, None], 3, axis=2)
        mask = np.zeros(picture.shape[:2], np.uint8)
        picture[place : place + 180, place : place + 230] = cup if number < 2 else data.chelsea()[60:240, 100:330]
        mask[place : place + 180, place : place + 230] = 2
        mask[:20, :20] = 1
        row = {"id": str(number), "images.image": picture, "segmentation.names": ["stone", "cup"]}
        rows.append({**row, "segmentation.mask": encode_png(mask)})
    labels = label_rows(labeler, [*rows, {**rows[0], "id": "none", "segmentation.mask": encode_png(0 * mask)}])
    one, same, other = (np.array(label["embedding"], np.float32) for label in labels[:3])
    assert one @ same > 0.99 > 0.8 > one @ other
    assert labels[0]["name"] == "cup" and labels[3]["error"] == "no object is segmented"


def test_degraded_pictures_are_stored_by_kind_and_drawn_by_the_row():
    picture = data.coffee()
    for kind in ("deblurring", "inpainting", "upscaling"):
        labeler = load_labeler(f"degraded-{kind}", {})
        one, other = (labeler.label_row({"id": identity, "images.image": picture}) for identity in "ab")
        stored = decode_picture(one["picture"])
        assert np.array_equal(stored, degrade(picture, kind, one["seed"])) and one["seed"] != other["seed"]
        again = load_labeler(f"degraded-{kind}", {"draw": 1}).label_row({"id": "a", "images.image": picture})
        assert one == labeler.label_row({"id": "a", "images.image": picture}) != again
    with pytest.raises(InputError, match=r"degraded-KIND \(did you mean 'deblurring'\?\)"):
        load_labeler("degraded-deblur", {})
