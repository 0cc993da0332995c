"""From raw bytes to a row of the images group: decoded once to prove it is a picture, upright, in sRGB."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

VERSION = 1
IMAGES = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.binary()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("source", pa.string()),
        ("author", pa.string()),
        ("licence", pa.string()),
        ("text", pa.string()),
        ("right", pa.binary()),
        ("disparity", pa.binary()),
        ("disparity_scale", pa.float32()),
    ]
)
REJECTED = pa.schema([("source", pa.string()), ("reason", pa.string()), ("size", pa.int64())])

SHARD_ROWS = 1024
SHARD_BYTES = 256 << 20
ROW_GROUP_ROWS = 16
ROW_GROUP_BYTES = 16 << 20
ROW_GROUP_PIXELS = 32 << 20  # 96 MB decoded: what a labeling job holds of one row group

_KEPT = {"JPEG", "PNG", "WEBP"}  # encoded bytes of these are stored as they came when nothing about them must change


class Rejected(Exception):
    """The bytes are not a picture to keep; the message is the reason."""


@dataclass(frozen=True)
class Picture:
    """Encoded bytes with the size they decode to, in pixels."""

    encoded: bytes
    width: int
    height: int


def picture_id(raw: bytes) -> str:
    """Content hash of a raw file: the id of its row."""
    return hashlib.blake2b(raw, digest_size=16).hexdigest()


def normalize(raw: bytes, max_pixels: int, min_side: int) -> Picture:
    """Check that bytes are one whole picture and give it upright, 8-bit, opaque, in sRGB.

    Bytes that are so already are kept to the letter; others are encoded anew (JPEG stays JPEG at quality 95, the rest
    becomes PNG). Raises Rejected with the reason: no picture, truncated, too many pixels (a decompression bomb is
    refused from its header, before decoding), too small.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            # Our own limit, read from the header, stands in for Pillow's: a warning there is no verdict.
            warnings.simplefilter("ignore")
            picture: Image.Image = Image.open(io.BytesIO(raw))
    except Image.DecompressionBombError:
        raise Rejected(f"decompression bomb: more than {max_pixels:,} pixels") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        raise Rejected("not a picture" if raw else "empty file") from None
    width, height = picture.size
    if width * height > max_pixels:
        raise Rejected(f"decompression bomb: {width} × {height} is more than {max_pixels:,} pixels")
    if min(width, height) < min_side:
        raise Rejected(f"too small: {width} × {height}, the shorter side must have {min_side} pixels")
    form = picture.format or ""
    try:
        picture.load()
        upright = ImageOps.exif_transpose(picture)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        reason = "truncated" if "truncated" in str(error).lower() else f"broken: {error}"
        raise Rejected(f"{reason} {form} file" if reason == "truncated" else reason) from None
    profile = picture.info.get("icc_profile")
    turned = picture.getexif().get(0x0112, 1) != 1
    plain = picture.mode in ("RGB", "L") and "transparency" not in picture.info
    if form in _KEPT and plain and not turned and _is_srgb(profile):
        return Picture(raw, width, height)
    flat = _flatten(_to_srgb(upright, profile))
    buffer = io.BytesIO()
    if form == "JPEG":
        flat.save(buffer, "JPEG", quality=95, subsampling=0)
    else:
        flat.save(buffer, "PNG")
    return Picture(buffer.getvalue(), flat.width, flat.height)


def cut_row_groups(pictures: Sequence[Picture]) -> list[int]:
    """Rows of each row group, so that none has more rows, encoded bytes or pixels than the limits above."""
    groups: list[int] = []
    size = pixels = 0
    for picture in pictures:
        area = picture.width * picture.height
        full = groups and (
            groups[-1] >= ROW_GROUP_ROWS
            or size + len(picture.encoded) > ROW_GROUP_BYTES
            or pixels + area > ROW_GROUP_PIXELS
        )
        if full or not groups:
            groups.append(0)
            size = pixels = 0
        groups[-1] += 1
        size += len(picture.encoded)
        pixels += area
    return groups


def _is_srgb(profile: bytes | None) -> bool:
    if not profile:
        return True
    from PIL import ImageCms

    try:
        name = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile)))
    except (ImageCms.PyCMSError, OSError):
        return True  # an unreadable profile says nothing; pictures without one are taken for sRGB as well
    return "srgb" in name.lower() or name.strip() == "c2"  # c2: a compact sRGB that phones and sites embed


def _to_srgb(picture: Any, profile: bytes | None) -> Any:
    if _is_srgb(profile):
        return picture
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile or b""))
        mode = "RGBA" if picture.mode == "RGBA" else "RGB"
        return ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode=mode)
    except ImageCms.PyCMSError:
        return picture  # a profile for another color space than the pixels have


def _flatten(picture: Any) -> Any:
    """8-bit gray or RGB: transparency on white, 16-bit levels scaled."""
    from PIL import Image

    if picture.mode.startswith("I;16") or picture.mode in ("I", "F"):
        import numpy as np

        levels = np.asarray(picture, dtype=np.float64)
        top = 65535.0 if levels.max(initial=0) > 255 else 255.0
        return Image.fromarray(np.clip(levels * (255.0 / top), 0, 255).astype(np.uint8))
    if "transparency" in picture.info or picture.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        above = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", above.size, "white"), above).convert("RGB")
    return picture if picture.mode in ("RGB", "L") else picture.convert("RGB")
