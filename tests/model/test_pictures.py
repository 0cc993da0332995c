import io
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError
from skimage import data

from model import pictures
from model.inputs import InputError
from model.pictures import aspect_bucket, decode_gray, decode_picture, encode_png, fit_picture


@pytest.mark.parametrize("size", [64, 96, 256, 512, 1024])
@pytest.mark.parametrize("aspect", [0.1, 0.3, 0.62, 0.75, 1.0, 1.31, 1.5, 1.78, 2.4, 5.0])
def test_buckets_keep_area_and_aspect(size, aspect):
    width, height = aspect_bucket(round(3000 * aspect), 3000, size)
    assert width % 16 == height % 16 == 0
    assert abs(width * height / size**2 - 1) <= 1 / 8
    assert aspect_bucket(3000, round(3000 * aspect), size) == (height, width)
    if size >= 256 and 0.3 <= aspect <= 3:
        assert abs(np.log(width / height / aspect)) < 0.08


def test_square_bucket_is_exact_and_sizes_are_checked():
    assert aspect_bucket(300, 300, 256) == (256, 256)
    with pytest.raises(InputError, match="250 does not divide by 16; take 256"):
        aspect_bucket(300, 300, 250)


def test_fitting_crops_the_center_and_averages():
    picture = np.zeros((90, 200, 3), np.uint8)
    picture[:, 55:145] = 255  # the center 90 × 90
    fitted = fit_picture(picture, 48, 48)
    assert fitted.shape == (48, 48, 3)
    assert fitted.min() == 255
    checks = np.indices((128, 128)).sum(axis=0) % 2 * 255
    small = fit_picture(np.repeat(checks[..., None], 3, axis=2).astype(np.uint8), 16, 16)
    # Without antialiasing a chessboard of single pixels becomes black, white or stripes.
    assert np.abs(small.astype(int) - 127).max() <= 3


def test_png_round_trips_and_is_deterministic():
    random = np.random.default_rng(0)
    rgb = random.integers(0, 256, (17, 23, 3), dtype=np.uint8)
    gray = random.integers(0, 256, (17, 23), dtype=np.uint8)
    deep = random.integers(0, 65536, (17, 23), dtype=np.uint16)
    assert encode_png(rgb) == encode_png(rgb.copy(order="F"))
    np.testing.assert_array_equal(decode_picture(encode_png(rgb)), rgb)
    for array in (gray, deep):
        decoded = decode_gray(encode_png(array))
        assert decoded.dtype == array.dtype
        np.testing.assert_array_equal(decoded, array)
    np.testing.assert_array_equal(decode_picture(encode_png(gray)), np.repeat(gray[..., None], 3, axis=2))


def test_png_has_the_same_bytes_with_either_zlib(monkeypatch):
    """A shard is the same wherever it is made, also where zlib-ng is not installed."""
    random = np.random.default_rng(0)
    lines = (random.random((300, 400)) < 0.02).astype(np.uint8) * 255
    slope = np.cumsum(random.integers(0, 50, (300, 400)), axis=0).astype(np.uint16)
    fast = [encode_png(array) for array in (lines, slope)]
    assert pictures._zlib() is not zlib
    monkeypatch.setattr(pictures, "_zlib", lambda: zlib)
    assert [encode_png(array) for array in (lines, slope)] == fast
    for array, encoded in zip((lines, slope), fast, strict=True):  # a reader of another make
        np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED), array)


def as_jpeg(picture, mode, **settings):
    buffer = io.BytesIO()
    Image.fromarray(picture).convert(mode).save(buffer, "JPEG", **settings)
    return buffer.getvalue()


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_decodes_to_the_pixels_of_pillow(mode, progressive, subsampling):
    for number, (name, quality) in enumerate([("astronaut", 95), ("coffee", 75), ("chelsea", 30), ("rocket", 50)]):
        picture = getattr(data, name)()[number : 211 + number, : 150 + 3 * number]
        settings = {} if mode == "L" else {"subsampling": subsampling}
        if number == 1:
            settings |= {"restart_marker_blocks": 3}
        encoded = as_jpeg(picture, mode, quality=quality, progressive=progressive, **settings)
        np.testing.assert_array_equal(decode_picture(encoded), with_pillow(encoded))


def test_photographs_decode_to_the_pixels_of_pillow(photographs):
    files = [path for path in photographs.iterdir() if path.suffix in (".jpg", ".png")]
    assert {path.suffix for path in files} == {".jpg", ".png"}
    for path in files:
        with Image.open(path) as image:
            np.testing.assert_array_equal(decode_picture(path.read_bytes()), np.array(image.convert("RGB")))


def test_damaged_jpeg_decodes_as_pillow_does():
    whole = as_jpeg(data.astronaut(), "RGB")
    with pytest.raises(OSError, match="truncated"):
        decode_picture(whole[: len(whole) // 2])
    with pytest.raises(UnidentifiedImageError):
        decode_picture(b"\xff\xd8 and no more")
    followed = whole + b"\x00" * 99
    np.testing.assert_array_equal(decode_picture(followed), decode_picture(whole))
    outcomes = []
    for share in np.linspace(0.1, 0.95, 12):
        broken = bytearray(whole)
        broken[int(len(whole) * share)] ^= 0x55
        outcomes.append([outcome(decode, bytes(broken)) for decode in (decode_picture, with_pillow)])
    assert all(ours == theirs for ours, theirs in outcomes)
    assert len({ours for ours, _ in outcomes}) > 2  # some are shown in part


def with_pillow(encoded):
    return np.array(Image.open(io.BytesIO(encoded)).convert("RGB"))


def outcome(decode, encoded):
    try:
        return decode(encoded).tobytes()
    except OSError as error:
        return str(error)
