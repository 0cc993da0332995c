"""How the samples of a call lie in one sequence: what attends to what, at which position, with which noise level.

N image tokens and T text tokens of all samples, M noise levels of all samples (one a frame, or one a token), d head
size; a group is g consecutive samples of n image tokens each, whose texts have at most L tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from model.rotary import rotary_table

Grid = tuple[int, int, int]  # frames of a sample, rows and columns of tokens in each
BLOCK = 128  # tokens on a side of the blocks that FlexAttention computes or leaves out
# What stands in place of the sample's number for tokens that are padding: above and below all numbers of samples, so
# that image tokens and text tokens stay sorted.
_IMAGE_PADDING, _TEXT_PADDING = 2**30, -1


@dataclass(frozen=True)
class Group:
    """Consecutive samples of one shape: the grid of each, how many they are, and the tokens of all their texts.

    lengths: text tokens of each sample, or None where the texts are padded to one length already, with `mask` (g, L).
    """

    grid: Grid
    samples: int
    text_tokens: int
    lengths: tuple[int, ...] | None = None
    mask: Tensor | None = None

    @property
    def tokens(self) -> int:
        """Image tokens of one sample."""
        return math.prod(self.grid)

    @cached_property
    def padding(self) -> tuple[Tensor, Tensor]:
        """How texts of different lengths become equally long: (g·L,) indices of the group's text tokens, mask (g, L).

        The mask is True where a token is not padding; padding takes the token of index 0.
        """
        assert self.lengths is not None
        lengths, place = torch.tensor(self.lengths)[:, None], torch.arange(max(self.lengths))
        mask = place < lengths
        return torch.where(mask, lengths.cumsum(0) - lengths + place, 0).flatten(), mask

    def texts(self, part: Tensor) -> tuple[Tensor, Tensor | None]:
        """This group's text tokens (t, A, d), padded: (g, L, A, d), and the mask (g, L), None without padding."""
        mask = self.mask
        if self.lengths is not None and len(set(self.lengths)) > 1:
            indices, mask = (z.to(part.device, non_blocking=True) for z in self.padding)
            part = part.index_select(0, indices)
        return part.unflatten(0, (self.samples, part.shape[0] // self.samples)), mask


@dataclass
class Layout:
    """Groups in order, with the noise levels of their samples.

    cos, sin: (N, 1, d), see model.rotary. sample_of_level: (M,). per_token: whether each token has a level of its own;
    otherwise each frame has one.
    """

    groups: list[Group]
    cos: Tensor
    sin: Tensor
    sample_of_level: Tensor
    per_token: bool = False

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """x (N, …) → that of each group."""
        return _split(x, [group.samples * group.tokens for group in self.groups])

    def split_text(self, y: Tensor) -> tuple[Tensor, ...]:
        """y (T, …) → that of each group."""
        return _split(y, [group.text_tokens for group in self.groups])

    def per_level(self, x: Tensor, factor: Tensor, apply: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """apply(x (N, D), factor (M, D)) where the tokens of a level get its row of factor: (N, D).

        It is broadcast over consecutive groups whose levels have equally many tokens: `apply` is called with (m, t, D)
        and (m, 1, D), m levels of t tokens each.
        """
        runs = self._runs()
        parts = [
            apply(rearrange(part, "(m t) D -> m t D", m=len(own)), rearrange(own, "m D -> m 1 D")).flatten(0, 1)
            for part, own in zip(_split(x, [m * t for m, t in runs]), _split(factor, [m for m, _ in runs]), strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _runs(self) -> list[tuple[int, int]]:
        """(levels, tokens of each) of consecutive groups. The compiler understands neither groupby nor a cache here."""
        runs: list[tuple[int, int]] = []
        for group in self.groups:
            levels, tokens = self._levels(group), 1 if self.per_token else group.tokens // group.grid[0]
            if runs and runs[-1][1] == tokens:
                levels += runs.pop()[0]
            runs.append((levels, tokens))
        return runs

    def _levels(self, group: Group) -> int:
        return group.samples * (group.tokens if self.per_token else group.grid[0])

    @property
    def level_of_token(self) -> Tensor:
        """(N,)."""
        tokens = [1 if self.per_token else g.tokens // g.grid[0] for g in self.groups for _ in range(self._levels(g))]
        return owners(tokens, self.cos.device)

    @property
    def sample_of_token(self) -> Tensor:
        """(N,)."""
        return owners([group.tokens for group in self.groups for _ in range(group.samples)], self.cos.device)

    @property
    def sample_of_text(self) -> Tensor:
        """(T,), −1 for padding."""
        parts, first = [], 0
        for group in self.groups:
            counts = group.lengths or (group.text_tokens // group.samples,) * group.samples
            owner = owners(counts, self.cos.device) + first
            parts.append(owner if group.mask is None else owner.where(group.mask.flatten().bool(), _TEXT_PADDING))
            first += group.samples
        return torch.cat(parts)


@dataclass
class TokenLayout:
    """A Layout as padded tensors only, so that one compiled block serves packs of any shapes.

    cos, sin: (N, 1, d); level_of_token: (N,); sample_of_level: (M,); sample_of_token: (N,) and sample_of_text: (T,),
    int32, where padding has numbers that no sample has. within, to_text: which blocks of image tokens attend to which
    blocks of image tokens and of text tokens.
    """

    cos: Tensor
    sin: Tensor
    level_of_token: Tensor
    sample_of_level: Tensor
    sample_of_token: Tensor
    sample_of_text: Tensor
    within: Blocks
    to_text: Blocks

    @classmethod
    def of(cls, layout: Layout) -> TokenLayout:
        """The layout, padded. All sizes are computed on the host, so that nothing waits for the device."""
        of_token, of_text = layout.sample_of_token.int(), layout.sample_of_text.int()
        N, T, M = len(of_token), len(of_text), len(layout.sample_of_level)
        # The compiler assumes that sizes that are equal in one pack are equal in all, and that 1 stays 1. So no two are
        # ever equal: the number of blocks of image tokens divides by 4, that of text tokens is odd and above 1, and M
        # is even and does not divide by 4.
        N_pad, T_pad = -N % (4 * BLOCK), (-T - BLOCK) % (2 * BLOCK) + (2 * BLOCK if T <= BLOCK else 0)
        of_token = F.pad(of_token, (0, N_pad), value=_IMAGE_PADDING)
        of_text = F.pad(of_text, (0, T_pad), value=_TEXT_PADDING)
        cos, sin = (F.pad(z, (0, 0, 0, 0, 0, N_pad)) for z in (layout.cos, layout.sin))
        return cls(
            cos,
            sin,
            F.pad(layout.level_of_token, (0, N_pad)),
            F.pad(layout.sample_of_level, (0, (-M - 2) % 4)),
            of_token,
            of_text,
            Blocks.of_equal_samples(of_token, of_token),
            Blocks.of_equal_samples(of_token, of_text),
        )

    def pad(self, x: Tensor, y: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Image tokens x (…, p·p·C), text tokens y (…, Y) and timesteps t (…), with zeros up to N, T and M."""
        return _pad(x, len(self.cos)), _pad(y, len(self.sample_of_text)), _pad(t, len(self.sample_of_level))

    def per_level(self, x: Tensor, factor: Tensor, apply: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """apply(x (N, D), factor (M, D)) where the tokens of a level get its row of factor: (N, D).

        It is gathered for each token: `apply` is called with (N, 1, D) and (N, 1, D).
        """
        return apply(x[:, None], factor.index_select(0, self.level_of_token)[:, None])[:, 0]

    def mark_sizes(self) -> None:
        """Tell the compiler which axes differ from pack to pack."""
        mark_sizes(self.cos, self.sin, self.level_of_token, self.sample_of_token, self.sample_of_text)
        for table in (*self.within.tables, *self.to_text.tables):
            torch._dynamo.mark_dynamic(table, tuple(range(2, table.ndim)))


@dataclass
class Blocks:
    """Which blocks of queries attend to which blocks of keys, as the tables of FlexAttention's BlockMask.

    tables: eight, int32, in the order of BlockMask's arguments. For each block of queries the number (1, 1, blocks) and
    the indices (1, 1, blocks, blocks) of the blocks of keys that it attends to in part, then of those that it attends
    to wholly; then the same with queries and keys exchanged.
    """

    tables: tuple[Tensor, ...]

    @classmethod
    def of_equal_samples(cls, queries: Tensor, keys: Tensor) -> Blocks:
        """Of tokens that attend within their sample: sample numbers of queries (Nq,) and keys (Nk,).

        Both ascend but for −1, which attends to nothing. This reads Nq + Nk numbers where torch's create_block_mask
        computes Nq · Nk.
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
    return blocks.where(blocks >= 0, _IMAGE_PADDING + 1).amin(-1), blocks.amax(-1)


def _table(attends: Tensor) -> tuple[Tensor, Tensor]:
    """Booleans (a, b) → for each row how many are true (1, 1, a), and the columns, the true ones first (1, 1, a, b)."""
    count, columns = attends.sum(-1), attends.int().argsort(dim=-1, descending=True, stable=True)
    return count.int()[None, None], columns.int()[None, None].contiguous()


def batch_layout(
    samples: int, grid: Grid, mask: Tensor, per_token: bool, size: int, linear: float, ntk: float
) -> Layout:
    """The layout of samples of one shape with texts padded to one length, mask (B, L).

    size: of a head; linear, ntk: of the rotary frequencies, see model.rotary.
    """
    group = Group(grid, samples, mask.numel(), None, mask)
    cos, sin = rotary_table(*grid, size, linear, ntk, mask.device)
    levels = group.tokens if per_token else grid[0]
    of_level = torch.arange(samples, device=mask.device).repeat_interleave(levels)
    return Layout([group], cos.repeat(samples, 1, 1), sin.repeat(samples, 1, 1), of_level, per_token)


def packed_layout(grids: Sequence[Grid], lengths: Sequence[int], size: int, device: torch.device) -> Layout:
    """The layout of samples of any shapes and text lengths, in which equal shapes are consecutive; size: of a head."""
    groups: list[Group] = []
    first = 0
    for grid, run in groupby(grids):
        count = len(list(run))
        texts = tuple(lengths[first : first + count])
        groups.append(Group(grid, count, sum(texts), texts))
        first += count
    tables = [rotary_table(*group.grid, size, 1.0, 1.0, device) for group in groups]
    cos, sin = (
        torch.cat([table[i].repeat(group.samples, 1, 1) for table, group in zip(tables, groups, strict=True)])
        for i in (0, 1)
    )
    return Layout(groups, cos, sin, owners([F for F, _, _ in grids], device))


def mark_sizes(*sequences: Tensor) -> tuple[Tensor, ...]:
    """The tensors, after telling the compiler that their first axis may have any length."""
    for sequence in sequences:
        torch._dynamo.mark_dynamic(sequence, 0)
    return sequences


def owners(counts: Sequence[int], device: torch.device) -> Tensor:
    """0 counts[0] times, 1 counts[1] times, …"""
    # On the host, where the length of the result is known; on the device repeat_interleave would wait for it.
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).to(device, non_blocking=True)


def _pad(x: Tensor, length: int) -> Tensor:
    return torch.cat([x, x.new_zeros(length - len(x), *x.shape[1:])])


def _split(x: Tensor, counts: Sequence[int]) -> tuple[Tensor, ...]:
    # The gradient of a split is one copy, where slices would add up as many tensors padded with zeros.
    return x.split(list(counts)) if len(counts) > 1 else (x,)
