"""Which stream every sample of a run is drawn from, and which of that stream's draws it is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from training.recent import Recent
from training.seeded_generator import SeededGenerator

_BLOCK = 1024  # samples within which every task gets its exact share
_LEAST_PER_BLOCK = 2  # of the rarest task; blocks are longer where 1024 samples would hold fewer


class TaskOrder:
    """Within a block of samples every stream has its share, in random order.

    So how often a stream was drawn before is known without going through the steps before.
    """

    def __init__(self, weights: Sequence[float], seed: int, batch: int) -> None:
        """weights: of each stream; batch: samples of a step, which are asked for together."""
        self._seed = seed
        shares = np.array(weights)
        self._bounds = np.concatenate([[0.0], np.cumsum(shares / shares.sum())])
        self._bounds[-1] = 1.0
        self.block = max(_BLOCK, int(np.ceil(_LEAST_PER_BLOCK / np.diff(self._bounds).min())))
        self._blocks: Recent[tuple[NDArray[np.int64], NDArray[np.int64]]] = Recent(max(2, 1 + batch // self.block))

    def draws(self, first: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """((count,) stream, (count,) how often it was drawn before) of the run's samples from `first` on."""
        streams, positions = [], []
        for number in range(first // self.block, -(-(first + count) // self.block)):
            part = slice(max(0, first - number * self.block), first + count - number * self.block)
            labels, ordinals = self._blocks.get(number, self._shuffle_block)
            streams.append(labels[part])
            positions.append(ordinals[part])
        return np.concatenate(streams), np.concatenate(positions)

    def draw(self, index: int) -> tuple[int, int]:
        """(stream, how often it was drawn before) of one sample."""
        number, place = divmod(index, self.block)
        labels, ordinals = self._blocks.get(number, self._shuffle_block)
        return int(labels[place]), int(ordinals[place])

    def _before(self, block: int) -> NDArray[np.int64]:
        """(streams,) how often each was drawn before the block starts."""
        bounds = np.floor(self._bounds * (block * self.block) + 0.5).astype(np.int64)
        return bounds[1:] - bounds[:-1]

    def _shuffle_block(self, block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        before = self._before(block)
        counts = self._before(block + 1) - before
        assert counts.min() >= 0 and counts.sum() == self.block, counts
        order = SeededGenerator(self._seed, "tasks", block).permutation(self.block)
        labels = np.repeat(np.arange(len(counts)), counts)[order]
        ordinals = np.empty_like(labels)
        for stream in range(len(counts)):
            ordinals[labels == stream] = before[stream] + np.arange(counts[stream])
        return labels, ordinals
