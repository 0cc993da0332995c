"""Rotary positions of a grid of tokens over (frame, row, column), as real cosines and sines.

F frames, r × c tokens a frame, d head size, n = F·r·c.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

BASE = 10000.0


@lru_cache(maxsize=256)
def rotary_rows(
    frames: int, rows: int, columns: int, size: int, linear: float, ntk: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """cos, sin (n, d/2) for one sample's tokens, in the order (frame, row, column).

    d is split in three equal parts, one an axis; frequencies are base^(−i/d), i = 0, 6, 12 … linear divides the
    frequencies, ntk multiplies the base (MODEL.md, time-aware scaling).
    """
    frequencies = (BASE * ntk) ** (-torch.arange(0, size, 6, device=device, dtype=torch.float32) / size) / linear
    axes = (frames, rows, columns)
    angles = [torch.outer(torch.arange(n, device=device, dtype=torch.float32), frequencies) for n in axes]
    grid = torch.cat(
        [
            angle.view(*(n if i == axis else 1 for i, n in enumerate(axes)), -1).expand(*axes, -1)
            for axis, angle in enumerate(angles)
        ],
        dim=-1,
    ).flatten(0, 2)
    return grid.cos(), grid.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate adjacent channel pairs of x (N, A, d) by angles (N, d/2), in float32."""
    pairs = x.float().unflatten(-1, (-1, 2))
    even, odd = pairs.unbind(-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x.dtype)
