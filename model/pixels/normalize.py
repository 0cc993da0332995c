"""A picture file, whatever it holds, as a whole picture or the reason why it is none."""

from __future__ import annotations

from model.pixels.convert import refuse_unread
from model.pixels.guard import shared_guard
from model.pixels.keep import keep
from model.pixels.outcome import EncodedImage, Rejected


def normalize(raw: bytes, max_pixels: int, min_side: int, exact: bool = False) -> EncodedImage:
    """Check that bytes are one whole image, and give it upright, 8-bit, opaque, in sRGB.

    Bytes of a JPEG, PNG or WebP that is such an image are kept, metadata included; others are encoded anew in a process
    of its own, which may die of them (`pixels.convert` says how, `pixels.deep` how levels of many bits are scaled). Of
    several frames or pages it is the first. Raises Rejected with the reason, and nothing else whatever the bytes hold:
    no image, a format that is not read, truncated, broken, too many pixels (a decompression bomb is refused by its
    header, before it is decoded), too small, or more time or memory than a picture needs. exact: what is encoded anew
    loses nothing, for a picture that is used once; datasets keep photographs as JPEG.
    """
    if not raw:
        raise Rejected("empty file")
    refuse_unread(raw)
    guard = shared_guard()
    return keep(raw, max_pixels, min_side, guard.is_srgb) or guard.convert(raw, max_pixels, min_side, exact)
