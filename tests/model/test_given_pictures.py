"""A picture that a program gives is the same picture as in a file, whatever the file's colors, depth and turn."""

from __future__ import annotations

import importlib
import io
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from model.inputs import InputError
from model.pictures import as_picture, read_picture

# What Pillow does not tell of a file: codes of colors, levels of 8 bits with a sign, fractions below 8 bits of colors;
# a preview before the picture; the other colors of 16 bits that lie one after another. Text that it refuses.
_UNTOLD = ("cicp-", "coded-p3.avif", "signed8.tif", "premultiplied-deep.tif", "preview-first.tif", "planes-")


@pytest.mark.parametrize("group", ["turns", "colors", "depths", "containers"])
def test_pillow_images_look_as_their_files_do(group: str) -> None:
    import pillow_heif

    pillow_heif.register_heif_opener()
    compared, differing = 0, []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in importlib.import_module(f"picture_zoo.{group}").cases():
            if case.look is None or case.name.startswith(_UNTOLD):
                continue
            try:
                image = Image.open(io.BytesIO(case.raw))
            except (OSError, ValueError):
                continue
            try:
                given = as_picture(image)
            except InputError as error:
                differing.append(f"{case.name}: {error}")
                continue
            file = read_picture(case.raw)
            compared += 1
            if given.shape != file.shape or np.abs(given.astype(int) - file).max() > 1:
                differing.append(case.name)
    assert compared > 20
    assert not differing


def ramp() -> np.ndarray:
    return np.tile(np.linspace(0, 255, 64).round().astype(np.uint8), (48, 1))


@pytest.mark.parametrize("mode", ["I;16", "I", "F", "L"])
def test_gray_of_any_depth_keeps_its_shades(mode: str) -> None:
    deep = np.tile(np.linspace(0, 65535, 64), (48, 1))
    levels = {
        "I;16": deep.astype(np.uint16),
        "I": deep.astype(np.int32),
        "F": (deep / 65535).astype(np.float32),
        "L": ramp(),
    }[mode]
    given = as_picture(Image.fromarray(levels))
    assert given.shape == (48, 64, 3)
    assert np.abs(given[0, :, 0].astype(int) - ramp()[0]).max() <= 1


def test_every_mode_of_pillow_looks_like_the_picture_it_is_of() -> None:
    y, x = np.mgrid[:48, :64]
    colors = Image.fromarray(np.stack([x * 4, y * 5, x + y], -1).astype(np.uint8))
    gray = colors.convert("L")
    deep = np.asarray(gray).astype(np.uint16) * 257
    images = {mode: colors.convert(mode) for mode in ("RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV")}
    images |= {mode: gray.convert(mode) for mode in ("L", "LA", "P")}
    images |= {"RGBa": images["RGBA"].convert("RGBa"), "La": images["LA"].convert("La"), "PA": gray.convert("PA")}
    images |= {
        mode: Image.frombytes(mode, gray.size, deep.astype(kind).tobytes())
        for mode, kind in (("I;16", "<u2"), ("I;16L", "<u2"), ("I;16B", ">u2"), ("I", "<i4"))
    }
    images["F"] = Image.fromarray(np.asarray(gray).astype(np.float32) / 255)
    for mode, image in images.items():
        expected = np.asarray(colors if mode.startswith(("R", "C", "Y", "H")) else gray.convert("RGB")).astype(int)
        most = {"YCbCr": 3, "HSV": 8}.get(mode, 1)  # which Pillow rounds
        assert np.abs(as_picture(image) - expected).max() <= most, mode
    black_and_white = colors.convert("1")
    np.testing.assert_array_equal(as_picture(black_and_white)[..., 0], np.asarray(black_and_white) * 255)


def floats(*levels: float) -> Image.Image:
    return Image.fromarray(np.array([levels], np.float32))


def integers(*levels: int) -> Image.Image:
    return Image.fromarray(np.array([levels], np.int32))


def test_images_of_floats_follow_the_rule_of_arrays() -> None:
    assert as_picture(floats(-1, 0, 1))[0, :, 0].tolist() == [0, 128, 255]
    assert as_picture(floats(0, 0.5, 1))[0, :, 0].tolist() == [0, 128, 255]
    from model.arguments import as_pictures

    dark, bright = as_pictures([floats(-0.5), floats(0.5)], 1)[0]
    assert (dark[0, 0, 0], bright[0, 0, 0]) == (64, 191)
    turned = floats(0, 1)
    exif = Image.Exif()
    exif[274] = 6
    turned.info["exif"] = exif.tobytes()
    assert as_picture(turned).shape == (2, 1, 3)


@pytest.mark.parametrize("form", ["png", "pgm", "tif"])
def test_deep_picture_keeps_its_shades_through_pillow(form: str) -> None:
    """A copy, or another mode of as many bits, no longer says what file it is of."""
    buffer = io.BytesIO()
    Image.fromarray(np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (48, 1))).save(
        buffer, {"png": "PNG", "pgm": "PPM", "tif": "TIFF"}[form]
    )
    file = Image.open(io.BytesIO(buffer.getvalue()))
    for image in (file.copy(), file.convert("I"), file):
        assert np.abs(as_picture(image)[0, :, 0].astype(int) - ramp()[0]).max() <= 1


def test_pixels_under_transparency_never_show() -> None:
    colors = np.zeros((8, 8, 3), np.uint8) + np.array((200, 10, 10), np.uint8)
    alpha = np.zeros((8, 8, 1), np.uint8)
    alpha[:4] = 255
    both = np.concatenate([colors, alpha], -1)
    tensor = torch.from_numpy(both).permute(2, 0, 1)
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([200, 10, 10, 0, 0, 0])
    palette.info["transparency"] = 1
    assert (as_picture(palette) == 255).all()
    for form in (Image.fromarray(both), both, both / 255.0, tensor, tensor / 255.0):
        picture = as_picture(form)
        np.testing.assert_array_equal(picture[:4], colors[:4])
        assert (picture[4:] == 255).all()


def test_gray_arrays_and_tensors_are_pictures() -> None:
    gray = ramp()
    expected = np.repeat(gray[..., None], 3, 2)
    tensor = torch.from_numpy(gray)
    forms = [gray, gray[..., None], gray / 255.0, gray / 127.5 - 1, tensor, tensor[None], tensor[None].half() / 255]
    for form in forms:
        np.testing.assert_array_equal(as_picture(form), expected)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.ones((8, 8, 3), np.uint16), "no picture: levels of uint16; give uint8 in 0…255, or floats"),
        (np.ones((8, 8, 3), np.int64), "levels of int64"),
        (np.ones((8, 8, 3), bool), "levels of bool"),
        (torch.ones(3, 8, 8, dtype=torch.int32), "levels of int32"),
        (np.full((8, 8, 3), 255.0), "floats from 255 to 255"),
        (np.array([[0.0, 128.0]]), "floats from 0 to 128"),
        (np.array([[-0.03, 0.9]]), "floats from -0.03 to 0.9: they may be of 0…1 or of -1…1; clip them"),
        (np.array([[np.nan, 1.0]]), "floats from nan"),
        (np.array([[0.0, np.inf]]), "floats from 0 to inf"),
        (np.zeros((0, 8, 3), np.uint8), "no picture: (0, 8, 3)"),
        (torch.zeros(8, 8, 3), "no picture: (8, 8, 3); give tensors (3, H, W)"),
        (np.zeros((8, 8, 4)) - 1, "picture with alpha and floats from -1"),
        (Image.new("RGB", (0, 4)), "picture of 0 × 4: it has no pixels"),
        ("cat.png", "no picture: str; give a PIL image, an array or a tensor"),
        (floats(0, 10), "floats from 0 to 10: give 0…1, -1…1 or uint8"),
        (floats(np.nan), "floats from nan"),
        (integers(0, 70000), "mode I with levels from 0 to 70000"),
        (integers(-1, 300), "mode I with levels from -1 to 300"),
        (integers(0, 200), "mode I with levels up to 200: they may be of 8 bits or of 16; give mode L or I;16"),
        (torch.zeros(3, 8, 8).to_sparse(), "no picture: a tensor without levels to read"),
        (torch.zeros(3, 8, 8, device="meta"), "no picture: a tensor without levels to read"),
        (np.array([["a"]]), "levels of <U1"),
    ],
)
def test_invalid_picture_is_refused(picture: object, message: str) -> None:
    with pytest.raises(InputError) as error:
        as_picture(picture)
    assert message in str(error.value)


def test_cut_file_behind_a_pillow_image_is_one_line() -> None:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(buffer, "PNG")
    with pytest.raises(InputError, match=r"^(truncated|broken)[^\n]*$"):
        as_picture(Image.open(io.BytesIO(buffer.getvalue()[:2000])))


def test_range_of_a_batch_is_found_once() -> None:
    """As diffusers finds it: a bright picture among those of -1…1 is one of them."""
    from model.arguments import as_pictures

    dark, bright = np.full((8, 8, 3), -0.5), np.full((8, 8, 3), 0.5)
    for batch in ([dark, bright], np.stack([dark, bright]), [torch.full((3, 8, 8), -0.5), torch.full((3, 8, 8), 0.5)]):
        first, second = as_pictures(batch, 1)[0]
        assert (first == 64).all() and (second == 191).all()
