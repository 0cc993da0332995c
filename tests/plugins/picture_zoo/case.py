"""A file and what is to become of it."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from labeling.sources.normalize import Rejected, normalize
from model.pictures import decode_picture

MOST_PIXELS, LEAST_SIDE = 10**6, 32


@dataclass(frozen=True)
class Case:
    """look: the (H, W, 3) or (H, W) picture that is right, within `apart` levels on average; reason: what a rejection
    says, which is right, too, where both are given. kept: whether the file's bytes are to be stored as they are.
    """

    name: str
    raw: bytes
    look: NDArray[np.uint8] | Image.Image | None = None
    reason: str | None = None
    apart: float = 3.0
    kept: bool | None = None


def fault(case: Case) -> str:
    """What is wrong about what becomes of a case, "" where it is right."""
    try:
        image = normalize(case.raw, MOST_PIXELS, LEAST_SIDE)
    except Rejected as error:
        if case.reason is None:
            return f"{case.name}: rejected: {error}"
        return "" if case.reason in str(error) and "\n" not in str(error) else f"{case.name}: says {str(error)!r}"
    if case.look is None:
        return f"{case.name}: taken, not rejected with {case.reason!r}"
    picture = decode_picture(image.encoded)
    with Image.open(io.BytesIO(image.encoded)) as stored:
        if not np.array_equal(picture, np.asarray(stored.convert("RGB"))):
            return f"{case.name}: decode_picture and Pillow give other pixels"
        if stored.mode not in ("RGB", "L") and not (image.encoded == case.raw and case.kept):
            return f"{case.name}: stored as {stored.mode}"
    look = np.asarray(case.look)
    look = np.repeat(look[..., None], 3, 2) if look.ndim == 2 else look
    if picture.shape != look.shape or (image.height, image.width) != look.shape[:2]:
        return f"{case.name}: {image.width} × {image.height}, {picture.shape} and not {look.shape}"
    off = np.abs(picture.astype(float) - look).mean()
    if off > case.apart:
        return f"{case.name}: {off:.1f} levels off, mean {picture.mean():.0f} and not {look.mean():.0f}"
    if case.kept is not None and (image.encoded == case.raw) != case.kept:
        return f"{case.name}: bytes {'changed' if case.kept else 'kept'}"
    return ""
