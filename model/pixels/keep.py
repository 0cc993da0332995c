"""Files whose bytes are stored as they are: what `decode_picture` gives for them is the picture as it is to look."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from model.pixels import jpeg, tags
from model.pixels.decode import open_checked, open_png, png_space, png_turn
from model.pixels.outcome import EncodedImage, Rejected, broken
from model.pixels.png import read_png
from model.pixels.signatures import format_name

_MOST_SCANS = 64  # of a progressive JPEG; more of them may keep a decoder busy for hours

IsSrgb = Callable[[bytes], bool | None]  # of a profile; None where it is not known


def keep(raw: bytes, max_pixels: int, min_side: int, is_srgb: IsSrgb, is_guarded: bool = False) -> EncodedImage | None:
    """The image of a whole JPEG, PNG or WebP about which nothing has to change; None for any other file.

    The bytes are those of the file, but for long texts and further frames of a PNG, which are left out, and for a JPEG
    with metadata that its decoder stumbles over, which loses them. All of the file is decoded once, a JPEG at an eighth
    of its size, which finds the same faults. is_guarded: this process may die of a file. Raises Rejected.
    """
    form = format_name(raw)
    try:
        if form == "JPEG":
            if jpeg.scans(raw) > _MOST_SCANS and not is_guarded:
                return None
            return _keep_jpeg(raw, max_pixels, min_side, is_srgb)
        if form == "PNG":
            return _keep_png(raw, max_pixels, min_side, is_srgb)
        if form == "WEBP":
            return _keep_webp(raw, max_pixels, min_side, is_srgb)
    except Rejected:
        raise
    except MemoryError:
        raise
    except Exception as error:
        # Pillow's decoders raise nearly anything for what a damaged file holds.
        raise broken(form, error) from None
    return None


def _keep_jpeg(raw: bytes, max_pixels: int, min_side: int, is_srgb: IsSrgb) -> EncodedImage | None:
    data = raw
    try:
        image = open_checked(data, max_pixels, min_side, ("JPEG",))
    except Rejected:
        raise
    except Exception:
        data = jpeg.without_metadata(raw)
        image = open_checked(data, max_pixels, min_side, ("JPEG",))
    exif = image.info.get("exif") if data is raw else jpeg.exif_block(raw)
    profile = image.info.get("icc_profile")
    if image.mode not in ("L", "RGB") or tags.orientation(exif, image.info.get("xmp")) != 1:
        return None
    if not is_srgb(profile) if profile else tags.is_adobe_rgb(exif):
        return None
    width, height = image.size
    image.draft(None, (max(1, width // 8), max(1, height // 8)))
    image.load()
    return EncodedImage(data, width, height)


def _keep_png(raw: bytes, max_pixels: int, min_side: int, is_srgb: IsSrgb) -> EncodedImage | None:
    facts = read_png(raw)
    if facts.bits > 8 or png_space(facts) or (facts.profile and not is_srgb(facts.profile)):
        return None
    data, image = open_png(facts.data, max_pixels, min_side)
    return EncodedImage(data, *image.size) if _is_opaque(image) and png_turn(facts, image) == 1 else None


def _keep_webp(raw: bytes, max_pixels: int, min_side: int, is_srgb: IsSrgb) -> EncodedImage | None:
    image = open_checked(raw, max_pixels, min_side, ("WEBP",))
    profile = image.info.get("icc_profile")
    if image.is_animated or (profile and not is_srgb(profile)):
        return None
    if tags.orientation(image.info.get("exif"), image.info.get("xmp")) != 1 or not _is_opaque(image):
        return None
    return EncodedImage(raw, *image.size)


def _is_opaque(image: Any) -> bool:
    """Whether the pixels, which are loaded, can be taken without asking for transparency."""
    if "transparency" in image.info:
        return False
    image.load()
    if image.mode in ("LA", "RGBA"):
        return image.getchannel("A").getextrema() == (255, 255)
    return image.mode in ("1", "L", "P", "RGB")
