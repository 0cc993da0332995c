"""One raw file becomes an image as datasets store it: checked by decoding it, upright, opaque, in sRGB."""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass
from typing import Any

_KEPT_FORMATS = {"JPEG", "PNG", "WEBP"}  # bytes of these are stored as they are where nothing about them must change


class Rejected(Exception):
    """The bytes are no image to keep; the message is the reason."""


@dataclass(frozen=True)
class EncodedImage:
    """Encoded bytes with the size they decode to, in pixels."""

    encoded: bytes
    width: int
    height: int


def image_id(raw: bytes) -> str:
    """Content hash of a raw file: the id of its row."""
    return hashlib.blake2b(raw, digest_size=16).hexdigest()


def normalize(raw: bytes, max_pixels: int, min_side: int) -> EncodedImage:
    """Check that bytes are one whole image, and give it upright, 8-bit, opaque, in sRGB.

    Bytes of such an image are kept unchanged; others are encoded anew (JPEG stays JPEG at quality 95, the rest becomes
    PNG). Raises Rejected with the reason: no image, truncated, too many pixels (a decompression bomb is refused by its
    header, before it is decoded), too small.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            # Below, our own limit replaces the one that Pillow warns of.
            warnings.simplefilter("ignore")
            image: Image.Image = Image.open(io.BytesIO(raw))
    except Image.DecompressionBombError:
        raise Rejected(f"decompression bomb: more than {max_pixels:,} pixels") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        raise Rejected("not a picture" if raw else "empty file") from None
    width, height = image.size
    if width * height > max_pixels:
        raise Rejected(f"decompression bomb: {width} × {height} is more than {max_pixels:,} pixels")
    if min(width, height) < min_side:
        raise Rejected(f"too small: {width} × {height}, the shorter side must have {min_side} pixels")
    form = image.format or ""
    try:
        image.load()
        upright = ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        reason = "truncated" if "truncated" in str(error).lower() else f"broken: {error}"
        raise Rejected(f"{reason} {form} file" if reason == "truncated" else reason) from None
    profile = image.info.get("icc_profile")
    turned = image.getexif().get(0x0112, 1) != 1
    plain = image.mode in ("RGB", "L") and "transparency" not in image.info
    if form in _KEPT_FORMATS and plain and not turned and _is_srgb(profile):
        return EncodedImage(raw, width, height)
    flat = _flatten(_to_srgb(upright, profile))
    buffer = io.BytesIO()
    if form == "JPEG":
        flat.save(buffer, "JPEG", quality=95, subsampling=0)
    else:
        flat.save(buffer, "PNG")
    return EncodedImage(buffer.getvalue(), flat.width, flat.height)


def _is_srgb(profile: bytes | None) -> bool:
    if not profile:
        return True
    from PIL import ImageCms

    try:
        name = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile)))
    except (ImageCms.PyCMSError, OSError):
        return True  # an unreadable profile says nothing, and images without one are taken for sRGB
    return "srgb" in name.lower() or name.strip() == "c2"  # c2: a compact sRGB that phones and sites embed


def _to_srgb(image: Any, profile: bytes | None) -> Any:
    if _is_srgb(profile):
        return image
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile or b""))
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode=mode)
    except ImageCms.PyCMSError:
        return image  # a profile for another color space than the pixels have


def _flatten(image: Any) -> Any:
    """8-bit gray or RGB: transparency on white, 16-bit levels scaled."""
    from PIL import Image

    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        import numpy as np

        levels = np.asarray(image, dtype=np.float64)
        top = 65535.0 if levels.max(initial=0) > 255 else 255.0
        return Image.fromarray(np.clip(levels * (255.0 / top), 0, 255).astype(np.uint8))
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        above = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", above.size, "white"), above).convert("RGB")
    return image if image.mode in ("RGB", "L") else image.convert("RGB")
