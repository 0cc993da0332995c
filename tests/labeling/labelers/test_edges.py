import hashlib
import subprocess
import sys

import numpy as np
import pytest
from skimage import data

from labeling.labeler import RowError
from labeling.labelers.edges import EdgesLabeler
from labeling.registry import load_labeler
from labeling.run import label_rows, label_table
from model.conditions import condition_picture
from model.inputs import InputError
from model.pictures import aspect_bucket, decode_gray, fit_picture


def make(**parameters):
    labeler = load_labeler("edges", parameters)
    assert isinstance(labeler, EdgesLabeler)
    labeler.load()
    return labeler


def edges(picture, **parameters):
    return decode_gray(make(**parameters).label_row({"id": "a", "images.image": picture})["edges"])


def square(side, inner=0.5, color=(255, 255, 255)):
    picture = np.zeros((side, side, 3), np.uint8)
    first, last = round(side * (0.5 - inner / 2)), round(side * (0.5 + inner / 2))
    picture[first:last, first:last] = color
    return picture


@pytest.mark.parametrize("side", [96, 500, 2000])
def test_lines_lie_on_the_outline_alone(side):
    lines = edges(square(side))
    assert lines.shape == (side, side) and lines.dtype == np.uint8 and set(np.unique(lines)) == {0, 255}
    rows, columns = np.nonzero(lines)
    y, x = (rows + 0.5) / side, (columns + 0.5) / side
    off = np.abs(np.maximum(np.abs(x - 0.5), np.abs(y - 0.5)) - 0.25)
    assert off.max() < 0.015
    assert lines[:, side // 2].any() and lines[side // 2].any()


def test_colors_of_equal_brightness_have_an_edge():
    picture = np.full((200, 200, 3), (150, 0, 0), np.uint8)
    picture[:, 100:] = (0, 76, 0)  # as bright as the red
    assert edges(picture)[:, 90:110].any(axis=1).mean() > 0.9


@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee", "rocket", "retina"])
def test_photographs_keep_visible_lines_at_training_size(name):
    picture = getattr(data, name)()
    lines = edges(picture)
    assert 0.01 < (lines > 0).mean() < 0.35
    height, width = picture.shape[:2]
    drawn = condition_picture("edges", {"edges.edges": make().label_row({"images.image": picture})["edges"]},
                              width, height)  # fmt: skip
    small = fit_picture(drawn, *aspect_bucket(width, height, 96))
    assert np.percentile(small[small > 16], 75) > 110


def test_large_and_small_copies_have_the_same_edges():
    import mmcv

    picture = data.astronaut()
    large = edges(mmcv.imresize(picture, (1536, 1536), interpolation="bicubic"))
    one, other = (fit_picture(np.repeat(a[..., None], 3, 2), 96, 96)[..., 0].ravel() for a in (large, edges(picture)))
    assert np.corrcoef(one, other)[0, 1] > 0.85


def test_parameters_change_edges_and_are_checked():
    picture = data.chelsea()
    shares = [(edges(picture, low=low, high=2 * low) > 0).mean() for low in (20, 60, 150)]
    assert shares[0] > shares[1] > shares[2]
    assert (edges(picture, blur=4.0) > 0).mean() < shares[1]
    assert not edges(np.full((64, 48, 3), 90, np.uint8)).any()
    with pytest.raises(InputError, match=r"edges: method: .*'canny'"):
        load_labeler("edges", {"method": "hed"})
    with pytest.raises(InputError, match="low 300 is above high 140"):
        load_labeler("edges", {"low": 300})


def test_row_without_image_is_in_error():
    with pytest.raises(RowError, match="no images"):
        make().label_row({"id": "a", "images.image": None})
    good, bad = label_rows(make(), [{"id": "a", "images.image": square(64)}, {"id": "b", "images.image": None}])
    assert good["error"] is None and bad["error"] == "no images: images.image is missing"


def test_results_do_not_depend_on_process():
    table = label_table(make(), [{"id": "a", "images.image": data.coffee()}], sets=False)
    script = (
        "import hashlib\nfrom skimage import data\nfrom labeling.registry import load_labeler\n"
        "labeler = load_labeler('edges', {}); labeler.load()\n"
        "row = labeler.label_row({'id': 'a', 'images.image': data.coffee()})\n"
        "print(hashlib.sha256(row['edges']).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    assert hashlib.sha256(table["edges"][0].as_py()).hexdigest() == other
    assert table["model"][0].as_py().startswith("opencv ")
