"""Pictures that Pillow has opened, or that programs have made with it: what they say of their colors and their turn."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np

from model.pixels import profiles, tags
from model.pixels.decode import Decoded, deep_picture, own_levels, tiff_levels
from model.pixels.deep import Depth
from model.pixels.outcome import Rejected
from model.pixels.spaces import ColorSpace, adobe_rgb, coded_space, stated_space

_TURNED_BY_ITS_DECODER = ("JXL", "HEIF")  # what EXIF says of the turn is history
_SIXTEEN_BITS = ("PNG", "PPM")  # formats of which Pillow gives levels of 16 bits as 32


def decoded_of(image: Any) -> Decoded:
    """A Pillow image with what its metadata say of it. Raises what Pillow raises for a file that is broken."""
    try:
        image.load()
    except (ValueError, SyntaxError):  # a text behind a PNG's pixels that Pillow refuses; the pixels are there
        if image.format != "PNG" or image.tile:
            raise
    info = image.info
    exif, profile = info.get("exif"), info.get("icc_profile") or None
    turn = _turn(image, exif)
    space = None if profile else _space(image, exif)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        clear = info.get("transparency")
        levels, depth = own_levels(image)
        if image.mode == "I" and image.format is None:
            _check_levels(levels)
        if image.mode == "I" and image.format in (None, *_SIXTEEN_BITS):
            levels, depth = levels.astype(np.uint16), Depth(16)
        if image.format == "TIFF":
            levels, depth = tiff_levels(levels, getattr(image, "tag_v2", {}))
        return deep_picture(levels, depth, profile, space, turn, levels == clear if isinstance(clear, int) else None)
    if image.mode == "LAB" and not profile:
        profile = profiles.lab_profile()
    return Decoded(image, profile, space, turn)


def _check_levels(levels: Any) -> None:
    """Raise Rejected for integers that a program gives, and that may or must be of another depth than 16 bits."""
    least, most = int(levels.min()), int(levels.max())
    if least < 0 or most > 65535:
        raise Rejected(f"picture of mode I with levels from {least} to {most}: give 0…65535, or another mode")
    if 0 < most <= 255:
        raise Rejected(
            f"picture of mode I with levels up to {most}: they may be of 8 bits or of 16; give mode L or I;16"
        )


def _turn(image: Any, exif: Any) -> int:
    if image.format in _TURNED_BY_ITS_DECODER:
        return 1
    text = image.info.get("Raw profile type exif")  # in which older programs write it
    if not exif and isinstance(text, str):
        with suppress(ValueError):
            exif = bytes.fromhex("".join(text.split("\n")[3:]))
    return tags.orientation(exif if isinstance(exif, bytes) else None, image.info.get("xmp"))


def _space(image: Any, exif: Any) -> ColorSpace | None:
    """The color space of a picture without a profile; None for sRGB."""
    info = image.info
    coded = info.get("nclx_profile")  # of HEIC
    if isinstance(coded, dict):
        return coded_space(*(int(coded.get(name, 2)) for name in ("color_primaries", "transfer_characteristics")))
    if isinstance(exif, bytes) and image.format in ("JPEG", "MPO") and tags.is_adobe_rgb(exif):
        return adobe_rgb()
    if "srgb" in info:
        return None
    gamma, chromaticity = info.get("gamma"), info.get("chromaticity")
    return stated_space(
        gamma if isinstance(gamma, float) else None, chromaticity if isinstance(chromaticity, tuple) else None
    )
