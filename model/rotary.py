"""Rotary positions of a grid of tokens over (frame, row, column), as real cosines and sines.

F frames, r × c tokens a frame, d head size, n = F·r·c.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from einops import rearrange
from torch import Tensor

BASE = 10000.0


def rotary_rows(
    frames: int, rows: int, columns: int, size: int, linear: float, ntk: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """cos, sin (n, 1, d) for one sample's tokens, in the order (frame, row, column), as `rotate` takes them.

    d is split in three equal parts, one an axis; frequencies are base^(−i/d), i = 0, 6, 12 … linear divides the
    frequencies, ntk multiplies the base (MODEL.md, time-aware scaling). Cached by shape.
    """
    make = _rows if torch.compiler.is_compiling() else _cached_rows
    return make(frames, rows, columns, size, linear, ntk, device)


def _rows(
    frames: int, rows: int, columns: int, size: int, linear: float, ntk: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    # What is cached while sampling must serve training too, where inference tensors are refused.
    with torch.inference_mode(False):
        frequencies = (BASE * ntk) ** (-torch.arange(0, size, 6, device=device, dtype=torch.float32) / size) / linear
        axes = (frames, rows, columns)
        angles = [torch.outer(torch.arange(n, device=device, dtype=torch.float32), frequencies) for n in axes]
        grid = torch.cat(
            [
                angle.view(*(n if i == axis else 1 for i, n in enumerate(axes)), -1).expand(*axes, -1)
                for axis, angle in enumerate(angles)
            ],
            dim=-1,
        )
        grid = rearrange(grid, "F r c i -> (F r c) 1 i")
        cos, sin = grid.cos(), grid.sin()
        return cos.repeat_interleave(2, -1), torch.stack([-sin, sin], -1).flatten(-2)


_cached_rows = lru_cache(maxsize=64)(_rows)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate adjacent channel pairs of x (N, A, d), in float32: cos (N, 1, d), and sin with the signs −, +."""
    x32 = x.float()
    swapped = rearrange(x32, "N A (i two) -> N A i two", two=2).flip(-1).flatten(-2)
    return (x32 * cos + swapped * sin).to(x.dtype)
