"""Color spaces of three primaries and a curve, and levels of any depth in one of them as 8-bit sRGB.

For what carries no profile (codes of ITU-T H.273, gAMA and cHRM of a PNG, Adobe RGB by EXIF), and for pictures of more
than 8 bits, which Pillow's color management does not take.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Levels = NDArray[Any]  # unsigned integers
Light = NDArray[np.float64]
Curve = Callable[[Light], Light]  # level in 0…1 → light in 0…1

_D50 = (0.9642, 1.0, 0.8249)
_D65 = (0.3127, 0.3290)
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_BAND = 1 << 20  # pixels converted at once

_BT709 = ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060))
_SMPTE_C = ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070))
_ADOBE = ((0.640, 0.330), (0.210, 0.710), (0.150, 0.060))
_P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
# Code of H.273 → chromaticities of red, green and blue, and of white.
_PRIMARIES = {
    1: (_BT709, _D65),
    4: (((0.67, 0.33), (0.21, 0.71), (0.14, 0.08)), (0.310, 0.316)),
    5: (((0.64, 0.33), (0.29, 0.60), (0.15, 0.06)), _D65),
    6: (_SMPTE_C, _D65),
    7: (_SMPTE_C, _D65),
    9: (((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)), _D65),
    11: (_P3, (0.314, 0.351)),
    12: (_P3, _D65),
}
_REFERENCE_WHITE = 203.0  # cd/m², ITU-R BT.2408: what is brighter in an HDR picture becomes white


@dataclass(frozen=True)
class ColorSpace:
    """to_xyz: (3, 3), linear RGB → XYZ under D50; curves: of red, green and blue."""

    to_xyz: NDArray[np.float64]
    curves: tuple[Curve, Curve, Curve]


def xyz_of(primaries: Any, white: tuple[float, float]) -> NDArray[np.float64]:
    """(3, 3): linear RGB of these chromaticities → XYZ, adapted to D50 by Bradford's transform."""
    columns = np.array([[x / y, 1.0, (1 - x - y) / y] for x, y in primaries]).T
    point = np.array([white[0] / white[1], 1.0, (1 - white[0] - white[1]) / white[1]])
    adaptation = np.linalg.inv(_BRADFORD) @ np.diag((_BRADFORD @ _D50) / (_BRADFORD @ point)) @ _BRADFORD
    return adaptation @ (columns * np.linalg.solve(columns, point))


def srgb_light(level: Light) -> Light:
    """sRGB's curve."""
    return np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)


def power(exponent: float) -> Curve:
    """Light is the level to this power."""
    return lambda level: level**exponent


def coded_space(primaries: int, transfer: int) -> ColorSpace | None:
    """The space of two codes of H.273; None for sRGB, and for what means nothing or nothing else.

    The curves of television (1, 6, 14, 15) are taken for sRGB's, as viewers of still pictures do.
    """
    curve = {
        4: power(2.2), 5: power(2.8), 8: power(1.0), 16: _pq_light, 17: power(2.6), 18: _hlg_light,
    }.get(transfer, srgb_light)  # fmt: skip
    chromaticities, white = _PRIMARIES.get(primaries, (_BT709, _D65))
    if curve is srgb_light and (chromaticities is _BT709 or primaries in (5, 6, 7)):
        return None  # primaries of old television differ by less than the encoders that write these codes care for
    return ColorSpace(xyz_of(chromaticities, white), (curve, curve, curve))


def stated_space(gamma: float | None, chromaticities: tuple[float, ...] | None) -> ColorSpace | None:
    """The space of a PNG's gAMA and cHRM; None where that is sRGB, or nothing that makes sense."""
    curve: Curve = srgb_light
    if gamma is not None and 0.1 <= gamma <= 10 and abs(gamma - 0.45455) > 0.02:
        curve = power(1 / gamma)
    matrix = xyz_of(_BT709, _D65)
    if chromaticities is not None and min(chromaticities) > 0 and max(chromaticities) < 1:
        white, *primaries = zip(chromaticities[::2], chromaticities[1::2], strict=True)
        try:
            own = xyz_of(primaries, white)
        except np.linalg.LinAlgError:
            own = matrix
        if np.isfinite(own).all() and np.abs(own - matrix).max() > 0.01:
            matrix = own
    elif curve is srgb_light:
        return None
    if curve is srgb_light and np.abs(matrix - xyz_of(_BT709, _D65)).max() <= 0.01:
        return None
    return ColorSpace(matrix, (curve, curve, curve))


def adobe_rgb() -> ColorSpace:
    """Adobe RGB (1998)."""
    curve = power(563 / 256)
    return ColorSpace(xyz_of(_ADOBE, _D65), (curve, curve, curve))


def to_srgb(levels: Levels, space: ColorSpace | None, top: int) -> NDArray[np.uint8]:
    """(H, W) or (H, W, 3) levels in 0…top as 8-bit sRGB of the same shape; space None: they are sRGB already."""
    if space is None:
        return scale_to_bytes(levels, top)
    ramp = np.arange(top + 1) / top
    tables = [np.clip(np.nan_to_num(curve(ramp)), 0, 1).astype(np.float32) for curve in space.curves]
    result = np.empty(levels.shape, np.uint8)
    if levels.ndim == 2:
        return np.take(_encode(tables[1]), np.minimum(levels, top), out=result)
    matrix = (np.linalg.inv(xyz_of(_BT709, _D65)) @ space.to_xyz).astype(np.float32)
    rows = max(1, _BAND // max(1, levels.shape[1]))
    for start in range(0, levels.shape[0], rows):
        band = np.minimum(levels[start : start + rows], top)
        light = np.stack([table[band[..., channel]] for channel, table in enumerate(tables)], -1)
        result[start : start + rows] = _encode(light @ matrix.T)
    return result


def scale_to_bytes(levels: Levels, top: int) -> NDArray[np.uint8]:
    """Levels in 0…top as 0…255, rounded; of any shape, row by row."""
    if top == 255:
        return levels.astype(np.uint8)
    ramp = (np.arange(top + 1, dtype=np.uint32) * 255 + top // 2) // top
    return np.take(ramp.astype(np.uint8), np.minimum(levels, top))


def _encode(light: NDArray[Any]) -> NDArray[np.uint8]:
    """Linear light → 8-bit sRGB."""
    return np.take(_srgb_table(), np.rint(np.clip(light, 0, 1) * 65535).astype(np.uint16))


@cache
def _srgb_table() -> NDArray[np.uint8]:
    light = np.arange(65536) / 65535
    level = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.rint(255 * level).astype(np.uint8)


def _pq_light(level: Light) -> Light:
    """SMPTE ST 2084: level → light, 1 at the reference white."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    root = level ** (1 / m2)
    return 10_000 / _REFERENCE_WHITE * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)


def _hlg_light(level: Light) -> Light:
    """ITU-R BT.2100 HLG on a display of 1,000 cd/m²: level → light, 1 at the reference white."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(level <= 0.5, level**2 / 3, (np.exp((level - c) / a) + b) / 12)
    return 1000 / _REFERENCE_WHITE * scene**1.2
