import hashlib
import subprocess
import sys

import mmcv
import numpy as np
import pytest
import torch
from skimage import data
from tiny_models import save_depth_anything
from transformers import DepthAnythingForDepthEstimation, DPTImageProcessor

from labeling.labelers.depth import DepthLabeler
from labeling.registry import load_labeler
from labeling.run import label_rows, label_table
from model.conditions import condition_picture
from model.inputs import InputError
from model.pictures import decode_gray, encode_png


def make(**parameters):
    labeler = load_labeler("depth", parameters)
    assert isinstance(labeler, DepthLabeler)
    labeler.load()
    return labeler


def row(picture, right=None, disparity=None, scale=None):
    return {
        "id": "a",
        "images.image": picture,
        "images.right": right,
        "images.disparity": disparity,
        "images.disparity_scale": scale,
    }


def inverse_depth(result):
    """What a reader of the label gets back: NaN where unknown."""
    levels = decode_gray(result["depth"])
    assert levels.dtype == np.uint16
    scaled = result["far"] + (levels.astype(float) - 1) / 65534 * (result["near"] - result["far"])
    return np.where(levels > 0, scaled, np.nan)


@pytest.fixture(scope="module")
def motorcycle(photographs):
    left, right = (mmcv.imread(str(photographs / f"motorcycle_{side}.png"), channel_order="rgb") for side in
                   ("left", "right"))  # fmt: skip
    with np.load(photographs / "motorcycle_disp.npz") as file:
        truth = file[file.files[0]]
    return left, right, np.where(np.isfinite(truth), truth, np.nan)


def compare(inverse, truth):
    """(share of pixels known, correlation, share of the known ones wrong by over two pixels)"""
    both = np.isfinite(inverse) & np.isfinite(truth)
    wrong = np.abs(inverse - truth)[both] > 2
    return np.isfinite(inverse).mean(), np.corrcoef(inverse[both], truth[both])[0, 1], wrong.mean()


def test_stereo_agrees_with_measured_disparity(motorcycle):
    left, right, truth = motorcycle
    result = make().label_row(row(left, encode_png(right)))
    assert result["method"] == "stereo"
    known, correlation, wrong = compare(inverse_depth(result), truth)
    assert known > 0.85
    assert correlation > 0.97
    assert wrong < 0.05
    # The border that only the left camera sees stays unknown, and no more of it than that.
    assert 0.5 < np.isfinite(inverse_depth(result))[:, :80].mean() < 0.8
    drawn = condition_picture("depth", {"depth.depth": result["depth"]}, left.shape[1], left.shape[0])
    assert drawn.shape == left.shape


def test_large_pairs_are_matched_at_reduced_size(motorcycle):
    left, right, truth = motorcycle
    result = make(long_side=371).label_row(row(left, encode_png(right)))
    known, correlation, wrong = compare(inverse_depth(result), truth)
    assert known > 0.8 and correlation > 0.95 and wrong < 0.15


def test_pair_of_equal_images_is_an_error(motorcycle):
    left = motorcycle[0]
    flat, other = label_rows(make(), [row(left, encode_png(left)), row(left, encode_png(left[:-1]))])
    assert "no depth could be told apart" in flat["error"]
    assert "right picture of 741×499" in other["error"]


def test_given_disparity_is_kept_and_unknown_stays_unknown():
    steps = np.zeros((40, 60), np.uint16)
    steps[:, 10:] = np.linspace(100, 50_000, 50).astype(np.uint16)
    picture = np.zeros((40, 60, 3), np.uint8)
    result = make().label_row(row(picture, None, encode_png(steps), 0.01))
    assert result["method"] == "given"
    assert (result["far"], result["near"]) == (pytest.approx(1.0), pytest.approx(500.0))
    levels = decode_gray(result["depth"])
    assert not levels[:, :10].any() and levels[0, 10] == 1 and levels[0, -1] == 65535
    np.testing.assert_allclose(inverse_depth(result)[:, 10:], steps[:, 10:] * 0.01, atol=0.01)
    unscaled, misfit = label_rows(
        make(), [row(picture, None, encode_png(steps)), row(picture[1:], None, encode_png(steps), 1.0)]
    )
    assert "without images.disparity_scale" in unscaled["error"]
    assert "given of 60×40 pixels" in misfit["error"]


def test_row_without_any_source_of_depth_names_the_remedy():
    table = label_table(make(), [row(data.chelsea())], sets=False)
    assert table["error"].to_pylist() == ["no depth model, stereo pair or true disparity: set depth.model=NAME"]
    assert table["depth"].to_pylist() == [None]


@pytest.mark.parametrize("kind", ["relative", "metric"])
def test_model_is_loaded_from_its_folder(tmp_path, kind):
    save_depth_anything(tmp_path, kind)
    folder, labeler = tmp_path, make(model=str(tmp_path))
    assert labeler.reads == ("images.image",)
    assert labeler.model == f"DepthAnythingForDepthEstimation {labeler.weights_digest()[:8]}"
    picture = data.chelsea()
    result = labeler.label_row({"id": "a", "images.image": picture})
    assert result["method"] == labeler.model
    inverse = inverse_depth(result)
    inputs = DPTImageProcessor.from_pretrained(folder)(images=picture, return_tensors="pt")
    with torch.no_grad():
        predicted = DepthAnythingForDepthEstimation.from_pretrained(folder)(**inputs).predicted_depth[0].numpy()
    expected = mmcv.imresize(1 / predicted if kind == "metric" else predicted, picture.shape[1::-1])
    assert inverse.shape == picture.shape[:2]
    both = np.isfinite(inverse)
    assert both.mean() > 0.9 and np.corrcoef(inverse[both], expected[both])[0, 1] > 0.97
    other = make(model=str(folder), gives="inverse" if kind == "metric" else "depth")
    turned = inverse_depth(other.label_row({"id": "a", "images.image": picture}))
    assert np.corrcoef(turned[both], inverse[both])[0, 1] < -0.3
    before = labeler.weights_digest()
    assert before and before == make(model=str(folder)).weights_digest() and make().weights_digest() == ""


def test_only_safetensors_are_read(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="no weights in safetensors"):
        make(model=str(tmp_path))
    with pytest.raises(InputError, match="no such folder"):
        load_labeler("depth", {"model": "/missing/depth"}).weights_digest()
    with pytest.raises(InputError, match="take 5"):
        load_labeler("depth", {"block": 4})


def test_results_do_not_depend_on_process(motorcycle, tmp_path, photographs):
    left, right, _ = motorcycle
    save_depth_anything(tmp_path, "relative")
    script = (
        "import hashlib, sys, mmcv\nfrom labeling.registry import load_labeler\nfrom model.pictures import encode_png\n"
        "left, right = (mmcv.imread(f'{sys.argv[1]}/motorcycle_{side}.png', channel_order='rgb')\n"
        "               for side in ('left', 'right'))\n"
        "row = {'images.image': left, 'images.right': encode_png(right)}\n"
        "for parameters in ({}, {'model': sys.argv[2]}):\n"
        "    labeler = load_labeler('depth', parameters); labeler.load()\n"
        "    print(hashlib.sha256(labeler.label_row(row)['depth']).hexdigest())\n"
    )  # fmt: skip
    other = subprocess.run(
        [sys.executable, "-c", script, str(photographs), str(tmp_path)], capture_output=True, text=True, check=True
    ).stdout.split()
    here = [make(**parameters).label_row(row(left, encode_png(right)))["depth"]
            for parameters in ({}, {"model": str(tmp_path)})]  # fmt: skip
    assert [hashlib.sha256(depth).hexdigest() for depth in here] == other
