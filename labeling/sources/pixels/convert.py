"""A file of any format as datasets store images: decoded whole, upright, opaque, 8-bit sRGB, and encoded again."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np

from labeling.sources.pixels import jpeg, profiles, tags
from labeling.sources.pixels.decode import Decoded, decode
from labeling.sources.pixels.outcome import EncodedImage, Rejected, broken
from labeling.sources.pixels.recoding import QUALITY, options_of_turned
from labeling.sources.pixels.signatures import describe_unknown, format_name, not_read
from labeling.sources.pixels.spaces import to_srgb


def convert(raw: bytes, max_pixels: int, min_side: int) -> EncodedImage:
    """Decode any file and encode it anew. Raises Rejected with the reason.

    What loses a little already (JPEG, HEIC, AVIF, JPEG XL, WebP with loss) becomes JPEG at quality 95 without
    subsampling (`recoding` has more on a JPEG that is only turned), the rest PNG.
    """
    form = format_name(raw)
    try:
        decoded = _decode(raw, form, max_pixels, min_side)
        colored = _colors(decoded)
        turned = _flatten(_turn(colored, decoded.turn))
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
    pictures = ("PostScript", "Photoshop", "GIMP", "OpenEXR", "Radiance", "JPEG XR", "DjVu", "BPG", "FLIF", "FITS")
    if name.startswith((*pictures, "PDF", "a Windows metafile", "CorelDRAW")):
        return f"{name} is not read: convert it to PNG, JPEG or TIFF"
    return f"not a picture: {name}"


def _reason(raw: bytes, form: str, error: Exception) -> Rejected:
    from PIL import UnidentifiedImageError

    if not form and isinstance(error, UnidentifiedImageError):
        return Rejected(describe_unknown(raw))
    return broken(form or "picture", error)


def _colors(decoded: Decoded) -> Any:
    """The picture as L, LA, RGB or RGBA in sRGB."""
    from PIL import Image

    image = decoded.image
    if image.mode in ("P", "PA", "1", "La", "RGBa", "RGBX", "HSV") or "transparency" in image.info:
        image = _without_palette(image)
    if decoded.profile and not profiles.is_srgb(decoded.profile):
        converted = profiles.convert(image, decoded.profile)
        image = image if converted is None else converted
    if image.mode not in ("L", "LA", "RGB", "RGBA"):
        image = image.convert("RGB")
    if decoded.space is None:
        return image
    alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
    bands = np.asarray(image.convert("L" if image.mode in ("L", "LA") else "RGB"))
    converted = Image.fromarray(to_srgb(bands, decoded.space, 255))
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


def _without_palette(image: Any) -> Any:
    if "transparency" in image.info or image.mode in ("PA", "La", "RGBa"):
        return image.convert("RGBA")
    if image.mode == "1":
        return image.convert("L")
    return image.convert("RGBA" if image.mode == "P" and image.palette.mode == "RGBA" else "RGB")


def _turn(image: Any, turn: int) -> Any:
    """Apply an EXIF orientation to the pixels alone; the EXIF block is never written again."""
    from PIL import Image

    move = Image.Transpose
    method = {
        2: move.FLIP_LEFT_RIGHT, 3: move.ROTATE_180, 4: move.FLIP_TOP_BOTTOM, 5: move.TRANSPOSE,
        6: move.ROTATE_270, 7: move.TRANSVERSE, 8: move.ROTATE_90,
    }.get(turn)  # fmt: skip
    return image if method is None else image.transpose(method)


def _flatten(image: Any) -> Any:
    """Transparency on white."""
    from PIL import Image

    if image.mode not in ("LA", "RGBA"):
        return image
    above = image.convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", above.size, "white"), above).convert("RGB")
    return flat.getchannel("G") if image.mode == "LA" else flat


def _encode(image: Any, form: str, **options: Any) -> EncodedImage:
    image.info = {}  # profile, EXIF and texts are those of the file that was
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return EncodedImage(buffer.getvalue(), image.width, image.height)
