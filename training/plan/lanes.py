"""The order in which a stream's rows are drawn, divided into lanes that are read independently of each other.

S shards that have eligible rows, R eligible rows of them, L lanes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from training.plan.pinned_shards import Shards
from training.plan.streams import Stream
from training.recent import Recent
from training.seeded_generator import SeededGenerator

_GOLDEN = (5**0.5 - 1) / 2


def lane_turns(lanes: int) -> NDArray[np.int64]:
    """(L,) the order in which draws visit lanes: any few draws in a row are spread evenly over all of them.

    They are the ranks of the multiples of the golden ratio modulo 1, whose gaps have three lengths at most. Workers
    have neighboring lanes, so each has its share of every task in every step.
    """
    return np.argsort(np.argsort(np.arange(lanes) * _GOLDEN % 1.0, kind="stable"), kind="stable")


class LaneOrder:
    """The eligible rows of a stream in seeded order, epoch after epoch, every row once in each.

    An epoch takes shards in random order. Of every `window` shards in a row it takes the row groups in random order,
    and of every `window` row groups in a row the rows. This sequence is cut into L pieces, equal to a row: lane l walks
    piece l, and draws visit the lanes in turn. So a batch has rows of as many places as there are lanes, and who has
    few lanes reads few shards. A dataset that has no more than `window` row groups is shuffled as a whole.
    """

    def __init__(self, shards: Shards, stream: Stream, seed: int, window: int, lanes: int, first_turn: int = 0) -> None:
        """first_turn: where in the turns an epoch begins; streams that begin apart visit other lanes in a step."""
        self._seed: tuple[int | str, ...] = (seed, "lanes", stream.source, stream.task, stream.size)
        self._shards, self._key, self._window, self.lanes = shards, stream.key, window, lanes
        filled = np.flatnonzero(np.diff(shards.group_starts))  # those that have row groups
        rows = np.add.reduceat(shards.counts(stream.key), shards.group_starts[filled], dtype=np.int64)
        self._used = filled[rows > 0].astype(np.int32)
        self._rows = rows[rows > 0]
        self.total = int(rows.sum())
        self._turns = np.roll(lane_turns(lanes), -first_turn)
        sizes = np.full(lanes, self.total // lanes, np.int64)
        sizes[self._turns[: self.total % lanes]] += 1  # an epoch's last turns do not visit all
        self._starts = np.cumsum(sizes) - sizes
        self._epochs: Recent[tuple[NDArray[np.int32], NDArray[np.int64]]] = Recent(2)
        self._blocks: Recent[tuple[NDArray[np.int64], NDArray[np.int64]]] = Recent(lanes + 16)
        self._windows: Recent[NDArray[np.int32]] = Recent(lanes + 16)

    def lane(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The lane of each position, counted over all epochs."""
        return self._turns[positions % self.total % self.lanes]

    def at(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """(4, n): shard, row group, row in it, views (of a set, else 0) at positions counted over all epochs."""
        epochs, offsets = np.divmod(positions, self.total)
        rounds, turns = np.divmod(offsets, self.lanes)
        in_epoch = self._starts[self._turns[turns]] + rounds
        locations = np.empty((4, len(positions)), np.int64)
        for epoch in np.unique(epochs).tolist():
            _, starts = self._epochs.get(epoch, self._shard_order)
            chosen = np.flatnonzero(epochs == epoch)
            blocks = np.searchsorted(starts, in_epoch[chosen], side="right") - 1
            within = in_epoch[chosen] - starts[blocks]
            for number, block, position in zip(chosen.tolist(), blocks.tolist(), within.tolist(), strict=True):
                _, window_starts = self._blocks.get((epoch, block), self._row_group_order)
                window = int(window_starts.searchsorted(position, side="right")) - 1
                rows = self._windows.get((epoch, block, window), self._shuffled_rows)
                locations[:, number] = rows[:, position - window_starts[window]]
        return locations

    def _shard_order(self, epoch: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """(shards in the epoch's order, rows before each block of `window` shards)."""
        order = SeededGenerator(*self._seed, "epoch", epoch).permutation(len(self._used))
        ends = np.cumsum(self._rows[order])[self._window - 1 :: self._window]
        return self._used[order], np.concatenate([[0], ends])

    def _row_group_order(self, key: tuple[int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(row groups of a block of shards in their order, rows of the block before each window of them)."""
        epoch, block = key
        order, _ = self._epochs.get(epoch, self._shard_order)
        starts, counts = self._shards.group_starts, self._shards.counts(self._key)
        members = order[block * self._window : (block + 1) * self._window].tolist()
        groups = np.concatenate([np.arange(starts[shard], starts[shard + 1]) for shard in members])
        groups = groups[counts[groups] > 0]
        groups = groups[SeededGenerator(*self._seed, "block", epoch, block).permutation(len(groups))]
        ends = np.cumsum(counts[groups], dtype=np.int64)[self._window - 1 :: self._window]
        return groups, np.concatenate([[0], ends])

    def _shuffled_rows(self, key: tuple[int, int, int]) -> NDArray[np.int32]:
        """(4, rows of a window): shard, row group, row and views of each."""
        epoch, block, window = key
        groups, _ = self._blocks.get((epoch, block), self._row_group_order)
        parts = [self._rows_of(group) for group in groups[window * self._window :][: self._window].tolist()]
        rows = np.concatenate(parts, axis=1)
        return rows[:, SeededGenerator(*self._seed, "window", epoch, block, window).permutation(rows.shape[1])]

    def _rows_of(self, group: int) -> NDArray[np.int32]:
        """(4, eligible rows of a row group): shard, row group, row and views of each."""
        shards = self._shards
        shard = int(shards.group_starts.searchsorted(group, side="right")) - 1
        row_group = group - int(shards.group_starts[shard])
        start = shards.row_in_shard(shard, row_group, 0)
        rows = np.flatnonzero(shards.mask(self._key, shard)[start : start + int(shards.group_rows[group])])
        locations = np.zeros((4, len(rows)), np.int32)
        locations[0], locations[1], locations[2] = shard, row_group, rows
        if len(shards.views):
            locations[3] = shards.views[int(shards.row_starts[shard]) + start + rows]
        return locations
