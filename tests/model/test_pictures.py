import numpy as np
import pytest

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
