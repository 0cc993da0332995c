"""Rotary positions of a grid of tokens over (frame, row, column), as real cosines and sines.

d head size, n tokens of a grid: frames · rows · columns.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from einops import rearrange
from torch import Tensor

BASE = 10000.0


def rotary_table(
    frames: int, rows: int, columns: int, size: int, linear: float, ntk: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """cos, sin (n, 1, d) for one sample's tokens, in the order (frame, row, column), as `rotate` takes them.

    d is split in three equal parts, one an axis; frequencies are base^(−i/d), i = 0, 6, 12 … linear divides the
    frequencies, ntk multiplies the base (docs/model.md, time-aware scaling). The table of each axis is cached, some
    kilobytes; that of the grid is put together from three.
    """
    make = _axis if torch.compiler.is_compiling() else _cached_axis
    axes = (frames, rows, columns)
    per_axis = zip(*(make(n, size, linear, ntk, device) for n in axes), strict=True)
    cos, sin = (
        torch.cat([f[:, None, None].expand(*axes, -1), r[:, None].expand(*axes, -1), c.expand(*axes, -1)], -1)
        for f, r, c in per_axis
    )
    return cos.view(-1, 1, size), sin.view(-1, 1, size)


def _axis(n: int, size: int, linear: float, ntk: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos, sin (n, d/3) of positions 0 … n−1."""
    # A table cached while sampling must serve training too, where inference tensors are refused.
    with torch.inference_mode(False):
        frequencies = (BASE * ntk) ** (-torch.arange(0, size, 6, device=device, dtype=torch.float32) / size) / linear
        angles = torch.outer(torch.arange(n, device=device, dtype=torch.float32), frequencies)
        cos, sin = angles.cos(), angles.sin()
        return cos.repeat_interleave(2, -1), torch.stack([-sin, sin], -1).flatten(-2)


_cached_axis = lru_cache(maxsize=256)(_axis)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate adjacent channel pairs of x (N, A, d), in float32: cos (N, 1, d), and sin with the signs −, +."""
    x32 = x.float()
    swapped = rearrange(x32, "N A (i two) -> N A i two", two=2).flip(-1).flatten(-2)
    return (x32 * cos).addcmul_(swapped, sin).to(x.dtype)
