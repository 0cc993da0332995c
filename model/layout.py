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
    """Consecutive samples of one shape: where they begin in the pack, how many, tokens of each, and their texts.

    lengths: text tokens of each sample, or None where the texts are padded to one length already, with `mask` (g, L).
    """

    grid: Grid
    start: int
    samples: int
    text_start: int
    text_tokens: int
    lengths: tuple[int, ...] | None = None
    mask: Tensor | None = None

    @property
    def tokens(self) -> int:
        F, r, c = self.grid
        return F * r * c

    @property
    def span(self) -> slice:
        return slice(self.start, self.start + self.samples * self.tokens)

    @cached_property
    def padding(self) -> tuple[Tensor, Tensor]:
        """(g·L) places in the group's text tokens, and (g, L) where they are real, for texts of different lengths."""
        assert self.lengths is not None
        lengths, place = torch.tensor(self.lengths)[:, None], torch.arange(max(self.lengths))
        real = place < lengths
        return torch.where(real, lengths.cumsum(0) - lengths + place, 0).flatten(), real

    def texts(self, y: Tensor) -> tuple[Tensor, Tensor | None]:
        """This group's part of y (T, A, d), padded: (g, L, A, d), and the mask (g, L) of what is no padding."""
        part, mask = y[self.text_start : self.text_start + self.text_tokens], self.mask
        if self.lengths is not None and len(set(self.lengths)) > 1:
            places, mask = (z.to(y.device, non_blocking=True) for z in self.padding)
            part = part.index_select(0, places)
        return part.unflatten(0, (self.samples, part.shape[0] // self.samples)), mask


@dataclass
class Layout:
    """Groups in order, and the rows that noise levels belong to: frames, or tokens when each has its own.

    cos, sin: (N, 1, d), see model.rotary. sample_of_row: (rows,). row_tokens: tokens of each row, one number where all
    are equal.
    """

    groups: list[Group]
    cos: Tensor
    sin: Tensor
    sample_of_row: Tensor
    row_tokens: int | list[int]

    def per_row(self, x: Tensor, change: Tensor, apply: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """apply(x (N, D), change (rows, D)) with each row of change given to its tokens."""
        if isinstance(self.row_tokens, int):
            framed = rearrange(x, "(f t) D -> f t D", t=self.row_tokens)
            return rearrange(apply(framed, change[:, None]), "f t D -> (f t) D")
        return apply(x, change[self.row_of_token])

    @cached_property
    def row_of_token(self) -> Tensor:
        """(N,)"""
        assert not isinstance(self.row_tokens, int)
        return owners(self.row_tokens, self.cos.device)

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
    group = Group(grid, 0, samples, 0, mask.numel(), None, mask)
    cos, sin = rotary_rows(*grid, size, linear, ntk, mask.device)
    rows = group.tokens if per_token else grid[0]
    of_row = torch.arange(samples, device=mask.device).repeat_interleave(rows)
    return Layout([group], cos.repeat(samples, 1, 1), sin.repeat(samples, 1, 1), of_row, group.tokens // rows)


def packed_layout(grids: Sequence[Grid], lengths: Sequence[int], size: int, device: torch.device) -> Layout:
    """The layout of samples of any shapes and text lengths, in which equal shapes follow each other."""
    groups: list[Group] = []
    start = text_start = first = 0
    for grid, alike in groupby(grids):
        count = len(list(alike))
        texts = tuple(lengths[first : first + count])
        groups.append(Group(grid, start, count, text_start, sum(texts), texts))
        start, text_start, first = groups[-1].span.stop, text_start + sum(texts), first + count
    rows = [rotary_rows(*group.grid, size, 1.0, 1.0, device) for group in groups]
    cos, sin = (
        torch.cat([row[i].repeat(group.samples, 1, 1) for row, group in zip(rows, groups, strict=True)]) for i in (0, 1)
    )
    tokens = [r * c for F, r, c in grids for _ in range(F)]
    of_row = owners([F for F, _, _ in grids], device)
    return Layout(groups, cos, sin, of_row, tokens[0] if len(set(tokens)) == 1 else tokens)


def owners(counts: Sequence[int], device: torch.device) -> Tensor:
    """0 counts[0] times, 1 counts[1] times, …"""
    # The length is known here; on the device repeat_interleave would wait for it.
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).to(device, non_blocking=True)
