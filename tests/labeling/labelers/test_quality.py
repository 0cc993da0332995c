import cv2
import numpy as np
import pytest
import torch
from skimage import data
from tiny_networks import save_classifier

from labeling.declaration import declare
from labeling.labelers.quality import measure
from labeling.registry import load_labeler
from labeling.run import label_rows
from model.inputs import InputError


def test_blur_lowers_sharpness_at_every_size():
    for picture in (data.astronaut(), data.coffee(), data.rocket().repeat(2, 0).repeat(2, 1)):
        values = [measure(cv2.GaussianBlur(picture, (0, 0), sigma) if sigma else picture) for sigma in (0, 1.5, 3, 6)]
        sharpness = [value["sharpness"] for value in values]
        if max(picture.shape) <= 640:
            assert sharpness == sorted(sharpness, reverse=True)
        assert sharpness[0] > sharpness[-1] and all(0 <= one <= 1 for one in sharpness)


def test_stronger_compression_gives_more_blocks_and_a_clean_picture_none():
    picture = data.astronaut()
    blocks = []
    for quality in (95, 40, 15, 5):
        encoded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        blocks.append(measure(cv2.imdecode(encoded, cv2.IMREAD_COLOR))["blockiness"])
    assert measure(picture)["blockiness"] < 0.1 and blocks == sorted(blocks) and blocks[-1] > 0.5


def test_light_contrast_and_color_are_what_they_say():
    dark, bright = np.full((60, 80, 3), 20, np.uint8), np.full((60, 80, 3), 230, np.uint8)
    assert measure(dark)["brightness"] < 0.1 < 0.85 < measure(bright)["brightness"]
    assert measure(dark)["contrast"] == measure(dark)["sharpness"] == measure(dark)["colorfulness"] == 0
    assert measure(data.coffee())["colorfulness"] > 0.4
    assert measure(data.coffee())["pixels"] == 400 * 600
    (tiny,) = label_rows(load_labeler("quality", {}), [{"id": "a", "images.image": dark[:1, :2]}])
    assert tiny["error"] is None and tiny["aesthetic"] is tiny["nsfw"] is None


def rows():
    return [{"id": str(n), "images.image": data.astronaut()[n : n + 200, :300]} for n in (0, 50, 300)]


def test_models_by_name_give_their_scores_and_batches_what_single_rows_give(tmp_path):
    torch.manual_seed(0)
    for name, classes in (("score", ["score"]), ("marks", ["1", "2", "3"]), ("nsfw", ["normal", "nsfw", "porn"])):
        (tmp_path / name).mkdir()
        save_classifier(tmp_path / name, classes)
    for aesthetic in ("score", "marks"):
        labeler = load_labeler("quality", {"aesthetic": str(tmp_path / aesthetic), "nsfw": str(tmp_path / "nsfw")})
        labeler.load()
        single = [labeler.label_row(row) for row in rows()]
        assert [{key: one[key] for key in labeler.schema.names} for one in label_rows(labeler, rows())] == single
        assert len({one["aesthetic"] for one in single}) == 3 and all(0 < one["nsfw"] < 1 for one in single)
        assert aesthetic == "score" or all(1 < one["aesthetic"] < 3 for one in single)
        assert labeler.uses_device and len(declare(labeler)["weights"]) > 40 and str(tmp_path) not in labeler.model
        labeler.device = "cpu:0"
        for one, other in zip(labeler.label(rows()), single, strict=True):
            assert one == pytest.approx(other, abs=1e-5)


def test_columns_come_with_what_is_asked_for_and_labels_of_before_stay_fresh(tmp_path):
    plain = load_labeler("quality", {})
    assert {"watermark", "text_share"}.isdisjoint(plain.schema.names)
    assert set(declare(plain)["parameters"]) == {"aesthetic", "nsfw", "unsafe", "dtype"}
    torch.manual_seed(0)
    save_classifier(tmp_path, ["no watermark", "Watermark", "not watermarked", "text"])
    labeler = load_labeler("quality", {"watermark": str(tmp_path)})
    labeler.load()
    assert labeler._classes("watermark") == [1]
    (row,) = label_rows(labeler, rows()[:1])
    assert 0 < row["watermark"] < 1 and row["nsfw"] is None and "text_share" not in row
    assert load_labeler("quality", {}).schema == plain.schema


def write(picture, words, scale):
    """The picture with lines of words on it, and the share of it that their boxes cover."""
    picture, covered = picture.copy(), np.zeros(picture.shape[:2], bool)
    for number, word in enumerate(words):
        thick = max(1, round(2 * scale))
        (width, height), _ = cv2.getTextSize(word, cv2.FONT_HERSHEY_SIMPLEX, scale, thick)
        left, bottom = 20, 60 + round(number * height * 2.5)
        cv2.putText(picture, word, (left, bottom), cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255), thick + 3)
        cv2.putText(picture, word, (left, bottom), cv2.FONT_HERSHEY_SIMPLEX, scale, (20, 20, 20), thick)
        covered[bottom - height : bottom, left : left + width] = True
    return picture, float(covered.mean())


def test_text_share_is_that_of_words_written_on_photographs():
    labeler = load_labeler("quality", {"text": True})
    labeler.load()
    found, true = [], []
    for photograph in (data.chelsea(), data.coffee(), data.astronaut()[100:, 300:]):
        clean = labeler.label_row({"id": "a", "images.image": photograph})["text_share"]
        assert clean < 0.01
        for words, scale in ((["(c) 2026 Stock"], 0.8), (["SALE TODAY", "half price"], 1.1)):
            picture, share = write(photograph, words, scale)
            found.append(labeler.label_row({"id": "a", "images.image": picture})["text_share"])
            true.append(share)
    ratios = np.array(found) / np.array(true)
    assert ratios.min() > 0.6 and ratios.max() < 2.0
    assert "rapidocr-onnxruntime" in labeler.model and len(declare(labeler)["weights"]) == 32


def test_packaged_network_finds_photographs_decent():
    labeler = load_labeler("quality", {"nsfw": "packaged"})
    labeler.load()
    for photograph in (data.astronaut(), data.chelsea(), data.coffee(), data.rocket()):
        row = labeler.label_row({"id": "a", "images.image": photograph})
        assert 0 <= row["nsfw"] < 0.2 and row["aesthetic"] is None


def test_weights_that_are_not_installed_are_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="only its weights are needed: pip install --no-deps rapidocr-onnxruntime"):
        load_labeler("quality", {"text": True}).load()


def test_model_without_unsafe_classes_is_told_in_one_line(tmp_path):
    save_classifier(tmp_path, ["cat", "dog"])
    with pytest.raises(InputError, match=r"quality.unsafe: the model's classes are cat, dog; name some"):
        load_labeler("quality", {"nsfw": str(tmp_path)}).load()
    labeler = load_labeler("quality", {"nsfw": str(tmp_path), "unsafe": ["dog"]})
    labeler.load()
    assert 0 < labeler.label_row(rows()[0])["nsfw"] < 1
