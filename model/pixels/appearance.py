"""What a decoded picture looks like: its colors in sRGB, upright, opaque. One way for files and for Pillow's images."""

from __future__ import annotations

from typing import Any

import numpy as np

from model.pixels import profiles
from model.pixels.decode import Decoded
from model.pixels.spaces import to_srgb


def appearance(decoded: Decoded) -> Any:
    """The picture as it is to look: a Pillow image of mode L or RGB."""
    return flatten(upright(in_srgb(decoded), decoded.turn))


def in_srgb(decoded: Decoded) -> Any:
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
    if image.mode == "La":  # which Pillow converts to nothing else
        return image.convert("LA")
    if "transparency" in image.info or image.mode in ("PA", "RGBa"):
        return image.convert("RGBA")
    if image.mode == "1":
        return image.convert("L")
    return image.convert("RGBA" if image.mode == "P" and image.palette.mode == "RGBA" else "RGB")


def upright(image: Any, turn: int) -> Any:
    """Apply an EXIF orientation to the pixels alone; the EXIF block is never written again."""
    from PIL import Image

    move = Image.Transpose
    method = {
        2: move.FLIP_LEFT_RIGHT, 3: move.ROTATE_180, 4: move.FLIP_TOP_BOTTOM, 5: move.TRANSPOSE,
        6: move.ROTATE_270, 7: move.TRANSVERSE, 8: move.ROTATE_90,
    }.get(turn)  # fmt: skip
    return image if method is None else image.transpose(method)


def flatten(image: Any) -> Any:
    """Transparency on white."""
    from PIL import Image

    if image.mode not in ("LA", "RGBA"):
        return image
    above = image.convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", above.size, "white"), above).convert("RGB")
    return flat.getchannel("G") if image.mode == "LA" else flat
