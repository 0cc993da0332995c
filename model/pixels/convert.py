"""A file of any format as datasets store images: decoded whole, upright, opaque, 8-bit sRGB, and encoded again."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

from model.pixels import jpeg, tags
from model.pixels.appearance import flatten, in_srgb, upright
from model.pixels.decode import Decoded, decode
from model.pixels.outcome import EncodedImage, Rejected, broken
from model.pixels.recoding import QUALITY, options_of_turned
from model.pixels.signatures import describe_unknown, format_name, not_read


def convert(raw: bytes, max_pixels: int, min_side: int, exact: bool = False) -> EncodedImage:
    """Decode any file and encode it anew. Raises Rejected with the reason.

    exact: always as PNG, so that nothing is lost; for a picture that is used once and not stored. Otherwise
    what loses a little already (JPEG, HEIC, AVIF, JPEG XL, WebP with loss) becomes JPEG at quality 95 without
    subsampling (`recoding` has more on a JPEG that is only turned), the rest PNG.
    """
    form = format_name(raw)
    try:
        decoded = _decode(raw, form, max_pixels, min_side)
        colored = in_srgb(decoded)
        turned = flatten(upright(colored, decoded.turn))
        if exact:
            return _encode(turned, "PNG", compress_level=1)
        if not decoded.is_lossy:
            return _encode(turned, "PNG")
        options: dict[str, Any] = {"quality": QUALITY, "subsampling": 0}
        if decoded.coding and colored is decoded.image:
            options = options_of_turned(decoded.coding, decoded.turn, decoded.image.size)
        return _encode(turned, "JPEG", **options)
    except Rejected:
        raise
    except MemoryError:
        raise Rejected(f"broken: {form or 'picture'}: decoding it needs too much memory") from None
    except Exception as error:
        # Pillow's decoders raise nearly anything for what a damaged file holds.
        raise _reason(raw, form, error) from None


def _decode(raw: bytes, form: str, max_pixels: int, min_side: int) -> Decoded:
    try:
        return decode(raw, form, max_pixels, min_side)
    except Rejected:
        raise
    except Exception as error:
        if form != "JPEG" or "truncated" in str(error):
            raise
        decoded = decode(jpeg.without_metadata(raw), form, max_pixels, min_side)
        return replace(decoded, turn=tags.orientation(jpeg.exif_block(raw), None))


def refuse_unread(raw: bytes) -> None:
    """Raise Rejected for a file that is not read, and by its first bytes is known to be another thing."""
    if name := not_read(raw):
        raise Rejected(_refusal(name))


def _refusal(name: str) -> str:
    if "Git LFS" in name:
        return name
    if name.startswith("camera raw"):
        return f"{name} is not read: develop it to JPEG, PNG or TIFF"
    pictures = (
        "PostScript",
        "Photoshop",
        "GIMP",
        "OpenEXR",
        "Radiance",
        "JPEG",
        "lossless JPEG",
        "DjVu",
        "BPG",
        "FLIF",
    )
    if name.startswith((*pictures, "FITS", "PAM", "MNG", "JNG", "PDF", "a texture", "a Windows metafile", "CorelDRAW")):
        return f"{name} is not read: convert it to PNG, JPEG or TIFF"
    return f"not a picture: {name}"


def _reason(raw: bytes, form: str, error: Exception) -> Rejected:
    from PIL import UnidentifiedImageError

    if not form and isinstance(error, UnidentifiedImageError):
        return Rejected(describe_unknown(raw))
    return broken(form or "picture", error)


def _encode(image: Any, form: str, **options: Any) -> EncodedImage:
    image.info = {}  # profile, EXIF and texts are those of the file that was
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return EncodedImage(buffer.getvalue(), image.width, image.height)
