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
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from model.rotary import rotary_rows

Grid = tuple[int, int, int]  # F, r, c of a sample
BLOCK = 128  # tokens on a side of what FlexAttention computes or leaves out
_NOBODY = 2**30  # in place of a sample's number: image tokens that are padding


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
        rows = [self._rows(group) for group in self.groups]
        parts = [
            apply(rearrange(part, "(f t) D -> f t D", f=len(of_row)), of_row[:, None]).flatten(0, 1)
            for part, of_row in zip(self.split(x), _split(factor, rows), strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _rows(self, group: Group) -> int:
        return group.samples * (group.tokens if self.per_token else group.grid[0])

    @property
    def row_of_token(self) -> Tensor:
        """(N,)."""
        rows = [1 if self.per_token else g.tokens // g.grid[0] for g in self.groups for _ in range(self._rows(g))]
        return owners(rows, self.cos.device)

    @property
    def sample_of_token(self) -> Tensor:
        """(N,)."""
        return owners([group.tokens for group in self.groups for _ in range(group.samples)], self.cos.device)

    @property
    def sample_of_text(self) -> Tensor:
        """(T,), −1 for padding."""
        found, first = [], 0
        for group in self.groups:
            counts = group.lengths or (group.text_tokens // group.samples,) * group.samples
            owner = owners(counts, self.cos.device) + first
            found.append(owner if group.mask is None else owner.where(group.mask.flatten().bool(), -1))
            first += group.samples
        return torch.cat(found)


@dataclass
class TokenLayout:
    """The same as a Layout in tensors alone, all padded: what a compiled block reads of a pack, whatever its shapes.

    cos, sin: (N, 1, d); row_of_token: (N,); sample_of_row: (rows,); sample_of_token: (N,) and sample_of_text: (T,),
    int32, other numbers for padding than for samples; within, to_text: blocks of image and of text tokens that meet.
    """

    cos: Tensor
    sin: Tensor
    row_of_token: Tensor
    sample_of_row: Tensor
    sample_of_token: Tensor
    sample_of_text: Tensor
    within: Blocks
    to_text: Blocks

    @classmethod
    def of(cls, layout: Layout) -> TokenLayout:
        """The layout, padded. No size waits for the device."""
        of_token, of_text = layout.sample_of_token.int(), layout.sample_of_text.int()
        N, T, rows = len(of_token), len(of_text), len(layout.sample_of_row)
        # The compiler takes sizes that are equal in one pack to be equal in all, and 1 to stay 1. These never are:
        # blocks of image tokens divide by 4, those of text are odd, rows are even and do not divide by 4.
        N_pad, T_pad = -N % (4 * BLOCK), (-T - BLOCK) % (2 * BLOCK) + (2 * BLOCK if T <= BLOCK else 0)
        of_token, of_text = F.pad(of_token, (0, N_pad), value=_NOBODY), F.pad(of_text, (0, T_pad), value=-1)
        cos, sin = (F.pad(z, (0, 0, 0, 0, 0, N_pad)) for z in (layout.cos, layout.sin))
        return cls(
            cos,
            sin,
            F.pad(layout.row_of_token, (0, N_pad)),
            F.pad(layout.sample_of_row, (0, (-rows - 2) % 4)),
            of_token,
            of_text,
            Blocks.meeting(of_token, of_token),
            Blocks.meeting(of_token, of_text),
        )

    def per_row(self, x: Tensor, factor: Tensor, apply: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """apply(x (N, 1, D), factor (N, 1, D)) with each row of factor (rows, D) given to its tokens."""
        return apply(x[:, None], factor.index_select(0, self.row_of_token)[:, None])[:, 0]

    def mark_sizes(self) -> None:
        """Tell the compiler which axes differ from pack to pack."""
        mark_sizes(self.cos, self.sin, self.row_of_token, self.sample_of_token, self.sample_of_text)
        for table in (*self.within.tables, *self.to_text.tables):
            torch._dynamo.mark_dynamic(table, tuple(range(2, table.ndim)))


@dataclass
class Blocks:
    """Which blocks of keys a block of queries meets and the reverse, in the order of BlockMask's arguments.

    tables: for keys of each block of queries, then for queries of each block of keys: how many blocks meet in part
    (1, 1, blocks), which (1, 1, blocks, blocks), how many wholly, which. int32, those that meet first.
    """

    tables: tuple[Tensor, ...]

    @classmethod
    def meeting(cls, queries: Tensor, keys: Tensor) -> Blocks:
        """Of tokens of one number: queries (Nq,), keys (Nk,), each ascending but for −1, which meets nothing.

        This reads Nq + Nk numbers where torch's create_block_mask computes Nq · Nk.
        """
        first_q, last_q = _ends(queries)
        first_k, last_k = _ends(keys)
        some = (first_q[:, None] <= last_k) & (first_k <= last_q[:, None])
        whole = some & (first_q == last_q)[:, None] & (first_k == last_k)
        for tokens, axis in ((queries, 1), (keys, 0)):
            whole = whole & (tokens.unflatten(0, (-1, BLOCK)) >= 0).all(-1).unsqueeze(axis)
        part = some & ~whole
        return cls((*_table(part), *_table(whole), *_table(part.mT), *_table(whole.mT)))


def _ends(owner: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest and highest number in each block, without −1."""
    blocks = owner.unflatten(0, (-1, BLOCK))
    return blocks.where(blocks >= 0, _NOBODY + 1).amin(-1), blocks.amax(-1)


def _table(meets: Tensor) -> tuple[Tensor, Tensor]:
    """meets (a, b) → how many (1, 1, a), and their places followed by the others' (1, 1, a, b)."""
    count, places = meets.sum(-1), meets.int().argsort(dim=-1, descending=True, stable=True)
    return count.int()[None, None], places.int()[None, None].contiguous()


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


def mark_sizes(*sequences: Tensor) -> tuple[Tensor, ...]:
    """The tensors, whose first axis the compiler is to take for any length."""
    for sequence in sequences:
        torch._dynamo.mark_dynamic(sequence, 0)
    return sequences


def owners(counts: Sequence[int], device: torch.device) -> Tensor:
    """0 counts[0] times, 1 counts[1] times, …"""
    # The length is known here; on the device repeat_interleave would wait for it.
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).to(device, non_blocking=True)


def _split(x: Tensor, counts: Sequence[int]) -> tuple[Tensor, ...]:
    # The gradient of one split is one copy, that of slices a sum of as many padded with zeros, and of neither nothing.
    return x.split(list(counts)) if len(counts) > 1 else (x,)
