"""ICC profiles: whether one is sRGB, and pictures of one in sRGB."""

from __future__ import annotations

import io
import struct
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.pixels.spaces import ColorSpace, Curve, power

_ALIKE = 3  # levels of 255: profiles that come this close to sRGB for every test color are taken for it
_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "LAB": "LAB"}  # color space of a profile → mode of its pixels


def profile_space(profile: bytes) -> str:
    """ "RGB", "GRAY", "CMYK", "Lab" and so on: the color space in a profile's header."""
    return profile[16:20].decode("latin-1").strip()


@lru_cache(maxsize=256)
def is_srgb(profile: bytes) -> bool:
    """Whether colors mean in a profile what they mean in sRGB, tried with colors; its name is not asked.

    True for what is no profile, too: it says nothing, and pictures without one are taken for sRGB.
    """
    from PIL import Image

    mode = _MODES.get(profile_space(profile).upper())
    if mode not in ("RGB", "L"):
        return _open(profile) is None
    if mode == "L":
        colors = np.arange(256, dtype=np.uint8).reshape(16, 16)
    else:
        steps = np.linspace(0, 255, 9).astype(np.uint8)
        grid = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(-1, 3)
        grays = np.repeat(np.arange(0, 256, 3, dtype=np.uint8)[:, None], 3, axis=1)
        colors = np.concatenate([grid, grays])[None]
    converted = convert(Image.fromarray(colors), profile)
    if converted is None:
        return True
    return int(np.abs(np.asarray(converted).astype(int) - colors).max()) <= _ALIKE


def convert(image: Any, profile: bytes) -> Any:
    """A Pillow image of a profile as L, RGB or RGBA in sRGB; None where the profile is of no use for it.

    Gray pictures with a profile of colors have it too: their gray is red = green = blue.
    """
    from PIL import ImageCms

    source = _open(profile)
    mode = _MODES.get(profile_space(profile).upper())
    if source is None or mode is None:
        return None
    if image.mode in ("L", "LA") and mode == "RGB":
        colored = convert(image.convert("RGBA" if image.mode == "LA" else "RGB"), profile)
        return colored and colored.convert(image.mode)
    alpha = image.getchannel("A") if image.mode in ("RGBA", "LA") else None
    bands = image.convert(image.mode[:-1]) if alpha else image
    if bands.mode != mode:
        return None
    try:
        result = ImageCms.profileToProfile(bands, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, ValueError):
        return None
    if result is None:
        return None
    if mode == "L":
        result = result.getchannel("G")
    if alpha:
        result.putalpha(alpha)
    return result


def _open(profile: bytes) -> Any:
    from PIL import ImageCms

    try:
        return ImageCms.ImageCmsProfile(io.BytesIO(profile))
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None


def lab_profile() -> bytes:
    """The profile of CIELAB pictures that carry none."""
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


def matrix_space(profile: bytes) -> ColorSpace | None:
    """The space of a profile of primaries and curves, or of one gray curve; None for one of tables.

    ICC.1:2022, 9.2 and 10.6, 10.18.
    """
    try:
        (count,) = struct.unpack_from(">I", profile, 128)
        spans = {
            name: (start, size)
            for name, start, size in (struct.unpack_from(">4sII", profile, 132 + 12 * n) for n in range(min(count, 99)))
        }
        if b"A2B0" in spans:
            return None
        if b"kTRC" in spans:
            curve = _curve(profile, *spans[b"kTRC"])
            return ColorSpace(np.eye(3), (curve, curve, curve))
        columns = [struct.unpack_from(">3i", profile, spans[name][0] + 8) for name in (b"rXYZ", b"gXYZ", b"bXYZ")]
        red, green, blue = (_curve(profile, *spans[name]) for name in (b"rTRC", b"gTRC", b"bTRC"))
        return ColorSpace(np.array(columns).T / 65536, (red, green, blue))
    except (struct.error, KeyError, ValueError, IndexError):
        return None


def _curve(profile: bytes, start: int, size: int) -> Curve:
    kind = profile[start : start + 4]
    if kind == b"curv":
        (count,) = struct.unpack_from(">I", profile, start + 8)
        if count == 0:
            return power(1.0)
        values = np.frombuffer(profile, ">u2", count, start + 12)
        if count == 1:
            return power(values[0] / 256)
        return _interpolated(values / 65535)
    if kind != b"para":
        raise ValueError(kind)
    (form,) = struct.unpack_from(">H", profile, start + 8)
    numbers = np.frombuffer(profile, ">i4", (1, 3, 4, 5, 7)[form], start + 12) / 65536
    gamma, a, b, c, d, e, f = np.pad(numbers, (0, 7 - len(numbers))).tolist()
    if form == 0:
        return power(gamma)
    if form < 3:
        d, c, e, f = -b / a, 0.0, c, c
    return lambda level: np.where(level >= d, np.maximum(a * level + b, 0) ** gamma + e, c * level + f)


def _interpolated(values: NDArray[np.float64]) -> Curve:
    positions = np.linspace(0, 1, len(values))
    return lambda level: np.interp(level, positions, values)
