import numpy as np
import pytest
from skimage import data

from labeling.declaration import declare
from labeling.registry import load_labeler
from labeling.run import label_rows
from model.conditions import condition_picture
from model.pictures import decode_gray
from model.prompts import build_prompt


@pytest.fixture(scope="module")
def labeler():
    labeler = load_labeler("hed", {"long_side": 192})
    labeler.load()
    return labeler


def edges(labeler, picture):
    return decode_gray(labeler.label_row({"id": "a", "images.image": picture})["hed"])


def test_outlines_are_found_and_textures_are_not(labeler):
    picture = np.full((120, 160, 3), 70, np.uint8) + np.random.default_rng(0).integers(0, 30, (120, 160, 1), np.uint8)
    picture[30:90, 50:110] = (220, 60, 40)
    found = edges(labeler, picture)
    assert found.shape == (120, 160) and found.dtype == np.uint8
    assert found[60, 48:53].max() > 150 and found[60, 107:112].max() > 150  # sides of the square
    assert found[60, 80] < 60 and np.median(found[5:20, 5:150]) < 60  # inside, and noise


def test_channels_have_the_order_of_the_weights(labeler):
    """Blue and red are not the same to the network; the mean of each channel is."""
    picture = np.ascontiguousarray(data.astronaut()[::4, ::4])
    assert not np.array_equal(edges(labeler, picture), edges(labeler, np.ascontiguousarray(picture[..., ::-1])))


def test_label_keeps_the_size_of_the_picture_and_is_a_condition(labeler):
    picture = data.rocket()
    result = labeler.label_row({"id": "a", "images.image": picture})
    drawn = condition_picture("hed", {"hed.hed": result["hed"]}, picture.shape[1], picture.shape[0])
    assert drawn.shape == picture.shape and np.array_equal(drawn[..., 0], decode_gray(result["hed"]))
    assert build_prompt("hed", "a rocket") == "[[hed2img]] a rocket"
    assert load_labeler("latents-64-hed", {}).reads == ("hed.hed", "images.width", "images.height")
    assert "hed" in load_labeler("text", {"tasks": ["text2image", "hed"]}).parameters.tasks


def test_batches_give_what_single_rows_give(labeler):
    rows = [{"id": str(n), "images.image": data.coffee()[n : n + 200, :300]} for n in (0, 100)]
    single = [labeler.label_row(row)["hed"] for row in rows]
    assert [result["hed"] for result in label_rows(labeler, rows)] == single
    labeler.device = "cpu:0"  # which computes in batches, as a GPU does
    together = [decode_gray(result["hed"]).astype(int) for result in labeler.label(rows)]
    labeler.device = "cpu"
    assert all(
        np.abs(one - decode_gray(other).astype(int)).max() <= 1 for one, other in zip(together, single, strict=True)
    )
    assert declare(labeler)["weights"] == labeler.weights_digest() != ""
