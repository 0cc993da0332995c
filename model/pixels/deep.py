"""Levels of more than eight bits: which of them is white, and the arrays of files that Pillow does not read whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.pixels.outcome import Rejected
from model.pixels.spaces import Levels

UNSIGNED, SIGNED, FLOAT = 1, 2, 3
WHITE_IS_ZERO = 0
_FLOAT_TOPS = (255.0, 65535.0)  # white of float levels that go far beyond 1
_BRIGHTEST = 16.0  # float levels up to here are of 0…1: lights in an HDR picture are brighter than white


@dataclass(frozen=True)
class Depth:
    """How a TIFF counts its levels.

    form: 1 unsigned, 2 signed, 3 float; lowest, highest: levels of black and white where the file says them.
    """

    bits: int
    form: int = UNSIGNED
    lowest: float | None = None
    highest: float | None = None
    inverted: bool = False


def to_16_bits(levels: NDArray[Any], depth: Depth) -> Levels:
    """Levels of any type as 0…65535; of the same shape. Raises Rejected for float levels of no known range.

    Integers are scaled by their depth, never by what a picture holds, since a dark picture is dark: 8, 10, 12 or 16
    bits as the file says, signed ones from 0 to half of that. Integers of 32 bits, which say nothing (programs write
    their own whole numbers so), have as white the least of 255, 65535 and 2³¹−1 (2³²−1 unsigned) that none exceeds.
    Floats run from 0 to 1 by convention, lights beyond it are cut to white; where they exceed 16 the same holds for
    255 and 65535. What a TIFF states as lowest and highest level counts before all that. Not-a-number is black.
    """
    values = np.nan_to_num(levels, nan=0.0, posinf=np.inf, neginf=0.0) if levels.dtype.kind == "f" else levels
    low, high = depth.lowest, depth.highest
    if low is None or high is None or not high > low:
        low, high = 0.0, _white(values, depth)
    if values.dtype == np.uint16 and low == 0 and high == 65535:
        result = values
    else:
        scaled = np.empty(values.shape, np.uint16)
        for row, line in enumerate(values):
            shares = (line.astype(np.float64) - low) / (high - low)
            scaled[row] = np.rint(np.clip(shares, 0, 1) * 65535)
        result = scaled
    return 65535 - result if depth.inverted else result


def _white(levels: NDArray[Any], depth: Depth) -> float:
    most = float(levels.max(initial=0))
    if levels.dtype.kind == "f":
        if most <= _BRIGHTEST:
            return 1.0
        top = next((top for top in _FLOAT_TOPS if most <= top), None)
        if top is None:
            raise Rejected(f"float levels up to {most:.3g}: known are 0 to 1, to 255 and to 65535")
        return top
    if depth.bits > 16:
        last = 2.0**31 - 1 if depth.form == SIGNED or levels.dtype.kind == "i" else 2.0**32 - 1
        return next((top for top in _FLOAT_TOPS if most <= top), last)
    return 2.0 ** (depth.bits - (depth.form == SIGNED)) - 1


def read_levels(raw: bytes) -> NDArray[Any] | None:
    """(H, W) or (H, W, 3 or 4) levels of a PNG or TIFF as stored, RGB(A); None where OpenCV reads none."""
    import cv2

    try:
        levels = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    if levels is None or levels.dtype == np.uint8:
        return None
    if levels.ndim == 2 or levels.shape[2] == 1:
        return levels.reshape(levels.shape[:2])
    order = {3: [2, 1, 0], 4: [2, 1, 0, 3]}.get(levels.shape[2])
    return None if order is None else levels[..., order]
