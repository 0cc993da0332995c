"""One raw file becomes an image as datasets store it: checked by decoding it, upright, opaque, in sRGB."""

from __future__ import annotations

import hashlib

from labeling.sources.pixels.convert import refuse_unread
from labeling.sources.pixels.guard import shared_guard
from labeling.sources.pixels.keep import keep
from labeling.sources.pixels.outcome import EncodedImage, Rejected

__all__ = ["EncodedImage", "Rejected", "image_id", "normalize"]


def image_id(raw: bytes) -> str:
    """Content hash of a raw file: the id of its row."""
    return hashlib.blake2b(raw, digest_size=16).hexdigest()


def normalize(raw: bytes, max_pixels: int, min_side: int) -> EncodedImage:
    """Check that bytes are one whole image, and give it upright, 8-bit, opaque, in sRGB.

    Bytes of a JPEG, PNG or WebP that is such an image are kept, metadata included; others are encoded anew in a process
    of its own, which may die of them (`pixels.convert` says how, `pixels.deep` how levels of many bits are scaled). Of
    several frames or pages it is the first. Raises Rejected with the reason, and nothing else whatever the bytes hold:
    no image, a format that is not read, truncated, broken, too many pixels (a decompression bomb is refused by its
    header, before it is decoded), too small, or more time or memory than a picture needs.
    """
    if not raw:
        raise Rejected("empty file")
    refuse_unread(raw)
    guard = shared_guard()
    return keep(raw, max_pixels, min_side, guard.is_srgb) or guard.convert(raw, max_pixels, min_side)
