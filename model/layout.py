"""How the samples of a call lie in one sequence: who attends to whom, at which position, under which frame's noise.

N image tokens and T text tokens of all samples, F frames, r × c tokens a frame, d head size; a group is g consecutive
samples of n = F·r·c tokens each, whose texts have at most L tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import torch
from einops import rearrange
from torch import Tensor

from model.rotary import rotary_rows

Grid = tuple[int, int, int]  # F, r, c of a sample


@dataclass(frozen=True)
class Group:
    """Consecutive samples of one shape: frames, rows and columns of each, how many, and their texts.

    lengths: text tokens of each sample, or None where the texts are padded to one length already, with `mask` (g, L).
    """

    grid: Grid
    samples: int
    text_tokens: int
    lengths: tuple[int, ...] | None = None
    mask: Tensor | None = None

    @property
    def tokens(self) -> int:
        F, r, c = self.grid
        return F * r * c

    @cached_property
    def padding(self) -> tuple[Tensor, Tensor]:
        """(g·L) places in the group's text tokens, and (g, L) where they are real, for texts of different lengths."""
        assert self.lengths is not None
        lengths, place = torch.tensor(self.lengths)[:, None], torch.arange(max(self.lengths))
        real = place < lengths
        return torch.where(real, lengths.cumsum(0) - lengths + place, 0).flatten(), real

    def texts(self, part: Tensor) -> tuple[Tensor, Tensor | None]:
        """This group's text tokens (t, A, d), padded: (g, L, A, d), and the mask (g, L) of what is no padding."""
        mask = self.mask
        if self.lengths is not None and len(set(self.lengths)) > 1:
            places, mask = (z.to(part.device, non_blocking=True) for z in self.padding)
            part = part.index_select(0, places)
        return part.unflatten(0, (self.samples, part.shape[0] // self.samples)), mask


@dataclass
class Layout:
    """Groups in order, and the rows that noise levels belong to: frames, or tokens when each has its own.

    cos, sin: (N, 1, d), see model.rotary. sample_of_row: (rows,). A group's rows have the same number of tokens each.
    """

    groups: list[Group]
    cos: Tensor
    sin: Tensor
    sample_of_row: Tensor
    per_token: bool = False

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """x (N, …) → that of each group."""
        return _split(x, [group.samples * group.tokens for group in self.groups])

    def split_text(self, y: Tensor) -> tuple[Tensor, ...]:
        """y (T, …) → that of each group."""
        return _split(y, [group.text_tokens for group in self.groups])

    def per_row(self, x: Tensor, factor: Tensor, apply: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """apply(x (N, D), factor (rows, D)) with each row of factor given to its tokens, broadcast, not gathered."""
        rows = [group.samples * (group.tokens if self.per_token else group.grid[0]) for group in self.groups]
        parts = [
            apply(rearrange(part, "(f t) D -> f t D", f=len(of_row)), of_row[:, None]).flatten(0, 1)
            for part, of_row in zip(self.split(x), _split(factor, rows), strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @cached_property
    def sample_of_token(self) -> Tensor:
        """(N,), for block masks."""
        return owners([group.tokens for group in self.groups for _ in range(group.samples)], self.cos.device)

    @cached_property
    def sample_of_text(self) -> Tensor:
        """(T,), −1 for padding, for block masks."""
        found, first = [], 0
        for group in self.groups:
            counts = group.lengths or (group.text_tokens // group.samples,) * group.samples
            owner = owners(counts, self.cos.device) + first
            found.append(owner if group.mask is None else owner.where(group.mask.flatten().bool(), -1))
            first += group.samples
        return torch.cat(found)

    @cached_property
    def block_masks(self) -> dict[str, object]:
        """FlexAttention's masks, made by the first block that attends and the same for all."""
        return {}


def batch_layout(
    samples: int, grid: Grid, mask: Tensor, per_token: bool, size: int, linear: float, ntk: float
) -> Layout:
    """The layout of samples of one shape with texts padded to one length, mask (B, L)."""
    group = Group(grid, samples, mask.numel(), None, mask)
    cos, sin = rotary_rows(*grid, size, linear, ntk, mask.device)
    rows = group.tokens if per_token else grid[0]
    of_row = torch.arange(samples, device=mask.device).repeat_interleave(rows)
    return Layout([group], cos.repeat(samples, 1, 1), sin.repeat(samples, 1, 1), of_row, per_token)


def packed_layout(grids: Sequence[Grid], lengths: Sequence[int], size: int, device: torch.device) -> Layout:
    """The layout of samples of any shapes and text lengths, in which equal shapes follow each other."""
    groups: list[Group] = []
    first = 0
    for grid, alike in groupby(grids):
        count = len(list(alike))
        texts = tuple(lengths[first : first + count])
        groups.append(Group(grid, count, sum(texts), texts))
        first += count
    rows = [rotary_rows(*group.grid, size, 1.0, 1.0, device) for group in groups]
    cos, sin = (
        torch.cat([row[i].repeat(group.samples, 1, 1) for row, group in zip(rows, groups, strict=True)]) for i in (0, 1)
    )
    return Layout(groups, cos, sin, owners([F for F, _, _ in grids], device))


def owners(counts: Sequence[int], device: torch.device) -> Tensor:
    """0 counts[0] times, 1 counts[1] times, …"""
    # The length is known here; on the device repeat_interleave would wait for it.
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).to(device, non_blocking=True)


def _split(x: Tensor, counts: Sequence[int]) -> tuple[Tensor, ...]:
    # The gradient of one split is one copy, that of slices a sum of as many padded with zeros, and of neither nothing.
    return x.split(list(counts)) if len(counts) > 1 else (x,)
