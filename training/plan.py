"""The plan: which samples a step has, as a pure function of (manifest, seed, step).

It does not depend on the number of workers, and no state is carried from step to step: any step can be asked for at
once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from model.constants import SIZE_STEP
from model.prompts import RAYS, find_task
from training.config import ObjectiveConfig
from training.mixture import Manifest, Stream
from training.seeded_generator import SeededGenerator

_BLOCK = 1024  # samples within which every task gets its exact share
_LEAST_PER_BLOCK = 2  # of the rarest task; blocks are longer where 1024 samples would hold fewer

Value = TypeVar("Value")


@dataclass(frozen=True)
class PlannedSample:
    """One sample of a step, before anything is read.

    index: number of the sample in the run; row: within the row group; views: of a set, in the order shown.
    tokens: image tokens of a square picture of the stream's size, which the aspects around it come close to.
    """

    index: int
    stream: int
    task: str
    shard: int
    row_group: int
    row: int
    views: tuple[int, ...]
    frames: int
    tokens: int
    drop_caption: bool
    degradation_seed: int
    noise_seed: int


class Plan:
    """The samples of every step of a run."""

    def __init__(self, manifest: Manifest, seed: int, batch: int, objective: ObjectiveConfig, window: int) -> None:
        """batch: samples of a step over all workers; window: row groups shuffled together."""
        self.manifest, self.seed, self.batch, self.objective = manifest, seed, batch, objective
        self._streams = [index for index, stream in enumerate(manifest.streams) if stream.rows]
        self._rows = {index: _Rows(manifest, manifest.streams[index], seed, window) for index in self._streams}
        weights = np.array([manifest.streams[index].weight for index in self._streams])
        self._bounds = np.concatenate([[0.0], np.cumsum(weights / weights.sum())])
        self._bounds[-1] = 1.0
        self._block = max(_BLOCK, int(np.ceil(_LEAST_PER_BLOCK / np.diff(self._bounds).min())))
        self._blocks: _Recent[tuple[NDArray[np.int64], NDArray[np.int64]]] = _Recent(max(2, 1 + batch // self._block))
        conditions = [find_task(manifest.streams[index].task).condition for index in self._streams]
        # Of a sample of each stream; 0 for a stream of sets.
        self._frames = np.array([0 if condition == RAYS else 1 + (condition is not None) for condition in conditions])
        sides = np.array([manifest.streams[index].size // SIZE_STEP for index in self._streams], np.int64)
        self._tokens = self._frames * sides**2

    def step(self, step: int) -> list[PlannedSample]:
        """The samples of a step, in their order."""
        return [self.sample(step * self.batch + place) for place in range(self.batch)]

    def step_sizes(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """((batch,) image tokens, (batch,) frames) of the samples of a step, without drawing the rest of them."""
        indices = np.arange(step * self.batch, (step + 1) * self.batch)
        numbers, places = np.divmod(indices, self._block)
        streams = np.empty(len(indices), np.int64)
        for number in np.unique(numbers):
            labels, _ = self._blocks.get(int(number), self._shuffle_block)
            streams[numbers == number] = labels[places[numbers == number]]
        tokens, frames = self._tokens[streams], self._frames[streams]
        for place in np.flatnonzero(frames == 0):  # of sets, whose frames are drawn
            sample = self.sample(int(indices[place]))
            tokens[place], frames[place] = sample.tokens, sample.frames
        return tokens, frames

    def sample(self, index: int) -> PlannedSample:
        """The sample of that number in the run."""
        stream_index, position = self._draw_task(index)
        stream = self.manifest.streams[stream_index]
        shard, row_group, row, set_views = self._rows[stream_index].at(position)
        generator = SeededGenerator(self.seed, "sample", index)
        views: tuple[int, ...] = ()
        condition = find_task(stream.task).condition
        frames = 1 if condition is None else 2
        if set_views:
            most = min(self.objective.max_views, set_views)
            count = generator.integer(min(self.objective.min_views, most), most)
            views = tuple(int(view) for view in generator.permutation(set_views)[:count])
            frames = 2 * count
        return PlannedSample(
            index=index,
            stream=stream_index,
            task=stream.task,
            shard=shard,
            row_group=row_group,
            row=row,
            views=views,
            frames=frames,
            tokens=frames * (stream.size // SIZE_STEP) ** 2,
            drop_caption=generator.uniform() < self.objective.caption_dropout,
            degradation_seed=generator.word(),
            noise_seed=generator.word(),
        )

    def _draw_task(self, index: int) -> tuple[int, int]:
        """(stream, which draw of that stream it is) of a sample.

        Within a block every stream has its share of the samples, in random order, so that how often it was drawn
        before is known without going through the steps before.
        """
        number, place = divmod(index, self._block)
        labels, ordinals = self._blocks.get(number, self._shuffle_block)
        stream = int(labels[place])
        return self._streams[stream], int(self._before(number)[stream] + ordinals[place])

    def _before(self, block: int) -> NDArray[np.int64]:
        """(streams,) how often each was drawn before the block starts."""
        bounds = np.floor(self._bounds * (block * self._block) + 0.5).astype(np.int64)
        return bounds[1:] - bounds[:-1]

    def _shuffle_block(self, block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        counts = self._before(block + 1) - self._before(block)
        assert counts.min() >= 0 and counts.sum() == self._block, counts
        order = SeededGenerator(self.seed, "tasks", block).permutation(self._block)
        labels = np.repeat(np.arange(len(counts)), counts)[order]
        ordinals = np.empty_like(labels)
        for stream in range(len(counts)):
            ordinals[labels == stream] = np.arange(counts[stream])
        return labels, ordinals


class _Rows:
    """The eligible rows of a stream in seeded order, epoch after epoch.

    An epoch takes the row groups in random order and shuffles rows within windows of them: reads stay within a few
    row groups at a time, and a position is found from one cumulative sum and one small permutation.
    """

    def __init__(self, manifest: Manifest, stream: Stream, seed: int, window: int) -> None:
        self._seed: tuple[int | str, ...] = (seed, stream.source, stream.task, stream.size)
        self._shards = manifest.sources[stream.source].shards
        self._stream, self._window = stream, window
        sizes = np.array([len(shard.row_groups) for shard in self._shards], np.int64)
        self._shard_of = np.repeat(np.arange(len(sizes)), sizes)
        self._group_of = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        self._counts = np.array(list(chain.from_iterable(shard.eligible_counts(stream) for shard in self._shards)))
        self._used = np.flatnonzero(self._counts)
        self._total = int(self._counts.sum())
        self._epochs: _Recent[tuple[NDArray[np.int64], NDArray[np.int64]]] = _Recent(2)
        self._windows: _Recent[tuple[NDArray[np.int64], NDArray[np.int64]]] = _Recent(4)
        self._eligible: _Recent[NDArray[np.int64]] = _Recent(4 * window)

    def at(self, position: int) -> tuple[int, int, int, int]:
        """(shard, row group, row in the row group, views of the row or 0) at a position counted over all epochs."""
        epoch, offset = divmod(position, self._total)
        _, starts = self._epochs.get(epoch, self._order)
        window = int(np.searchsorted(starts, offset, side="right")) - 1
        groups, places = self._windows.get((epoch, window), self._shuffle)
        group = int(groups[offset - starts[window]])
        row = int(self._eligible.get(group, self._rows_of)[places[offset - starts[window]]])
        shard = self._shards[self._shard_of[group]]
        group_in_shard = int(self._group_of[group])
        views = shard.views[sum(shard.row_groups[:group_in_shard]) + row] if shard.views else 0
        return int(self._shard_of[group]), group_in_shard, row, views

    def _order(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(row groups in the epoch's order, offset at which each window starts)."""
        order = self._used[SeededGenerator(*self._seed, "epoch", epoch).permutation(len(self._used))]
        ends = np.cumsum(self._counts[order])[self._window - 1 :: self._window]
        return order, np.concatenate([[0], ends])

    def _shuffle(self, key: tuple[int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(row group, which of its eligible rows) for each place of a window."""
        epoch, window = key
        order, _ = self._epochs.get(epoch, self._order)
        members = order[window * self._window : (window + 1) * self._window]
        groups = np.repeat(members, self._counts[members])
        places = np.concatenate([np.arange(self._counts[group]) for group in members])
        shuffled = SeededGenerator(*self._seed, "window", epoch, window).permutation(len(groups))
        return groups[shuffled], places[shuffled]

    def _rows_of(self, group: int) -> NDArray[np.int64]:
        """The eligible rows of a row group."""
        shard = self._shards[self._shard_of[group]]
        start = sum(shard.row_groups[: self._group_of[group]])
        return np.flatnonzero(shard.mask(self._stream)[start : start + shard.row_groups[self._group_of[group]]])


class _Recent(OrderedDict[Any, Value]):
    """A cache of the last `size` results of a function, by its argument."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def get(self, key: Any, make: Callable[[Any], Value]) -> Value:  # type: ignore[override]
        if key in self:
            self.move_to_end(key)
            return self[key]
        value = self[key] = make(key)
        if len(self) > self.size:
            self.popitem(last=False)
        return value
