"""The plan of runs whose manifest has no lanes: the order of samples of version 1, in which they go on."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from model.constants import SIZE_STEP
from model.prompts import RAYS, find_task
from training.config import ObjectiveConfig
from training.objective import draw_levels
from training.plan.manifest import Manifest
from training.plan.pinned_shards import Shards
from training.plan.planned_sample import Leveled, PlannedSample, StepSizes
from training.plan.streams import Stream
from training.plan.task_order import TaskOrder
from training.recent import Recent
from training.seeded_generator import SeededGenerator


class FirstPlan:
    """The samples of every step of a run."""

    def __init__(self, manifest: Manifest, seed: int, batch: int, objective: ObjectiveConfig, window: int) -> None:
        """batch: samples of a step over all workers; window: row groups shuffled together."""
        self.manifest, self.seed, self.batch, self.objective = manifest, seed, batch, objective
        self._streams = [index for index, stream in enumerate(manifest.streams) if stream.rows]
        used = [manifest.streams[index] for index in self._streams]
        self._rows = {
            index: _Rows(manifest.sources[stream.source].shards, stream, seed, window)
            for index, stream in zip(self._streams, used, strict=True)
        }
        self.tasks = TaskOrder([stream.weight for stream in used], seed, batch)
        conditions = [find_task(stream.task).condition for stream in used]
        # Tokens of a sample of each stream; 0 for a stream of sets.
        self._frames = np.array([0 if condition == RAYS else 1 + (condition is not None) for condition in conditions])
        self._tokens = self._frames * np.array([stream.size // SIZE_STEP for stream in used], np.int64) ** 2

    def step(self, step: int) -> list[PlannedSample]:
        """The samples of a step, in their order."""
        return [self.sample(step * self.batch + position) for position in range(self.batch)]

    def sizes(self, step: int) -> StepSizes:
        """Sizes of the samples of a step, without drawing the rest of them."""
        first = step * self.batch
        streams, _ = self.tasks.draws(first, self.batch)
        tokens, frames = self._tokens[streams], self._frames[streams]
        for position in np.flatnonzero(frames == 0):  # of sets, whose frames are drawn
            sample = self.sample(first + int(position))
            tokens[position], frames[position] = sample.tokens, sample.frames
        counted = int(frames.sum())
        if self.objective.known_frame_share:  # how many frames are in the loss is drawn for each sample
            counted = sum(int(in_loss.sum()) for _, _, in_loss in self.draw(step, range(self.batch)))
        return StepSizes(tokens, counted, None)

    def draw(self, step: int, positions: Iterable[int]) -> list[Leveled]:
        """The samples of a step at these positions, with noise levels."""
        samples = [self.sample(step * self.batch + position) for position in positions]
        return [(planned, *draw_levels(planned.noise_seed, planned.frames, self.objective)) for planned in samples]

    def sample(self, index: int) -> PlannedSample:
        """The sample of that number in the run."""
        drawn, position = self.tasks.draw(index)
        stream_index = self._streams[drawn]
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


class _Rows:
    """The eligible rows of a stream in seeded order, epoch after epoch.

    An epoch takes the row groups in random order and shuffles rows within windows of them: reads stay within a few
    row groups at a time, and a position is found from one cumulative sum and one small permutation.
    """

    def __init__(self, shards: Shards, stream: Stream, seed: int, window: int) -> None:
        self._seed: tuple[int | str, ...] = (seed, stream.source, stream.task, stream.size)
        self._shards, self._key, self._window = shards, stream.key, window
        self._counts = shards.counts(stream.key)
        self._used = np.flatnonzero(self._counts)
        self._total = int(self._counts.sum(dtype=np.int64))
        self._epochs: Recent[tuple[NDArray[np.int64], NDArray[np.int64]]] = Recent(2)
        self._windows: Recent[tuple[NDArray[np.int64], NDArray[np.int64]]] = Recent(4)
        self._eligible: Recent[NDArray[np.int64]] = Recent(4 * window)

    def at(self, position: int) -> tuple[int, int, int, int]:
        """(shard, row group, row in the row group, views of the row or 0) at a position counted over all epochs."""
        epoch, offset = divmod(position, self._total)
        _, starts = self._epochs.get(epoch, self._order)
        window = int(np.searchsorted(starts, offset, side="right")) - 1
        groups, ranks = self._windows.get((epoch, window), self._shuffle)
        group = int(groups[offset - starts[window]])
        row = int(self._eligible.get(group, self._rows_of)[ranks[offset - starts[window]]])
        shards, shard = self._shards, self._shard_of(group)
        row_group = group - int(shards.group_starts[shard])
        views = 0
        if len(shards.views):
            views = int(shards.views[shards.row_starts[shard] + shards.row_in_shard(shard, row_group, row)])
        return shard, row_group, row, views

    def _shard_of(self, group: int) -> int:
        return int(np.searchsorted(self._shards.group_starts, group, side="right")) - 1

    def _order(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(row groups in the epoch's order, offset at which each window starts)."""
        order = self._used[SeededGenerator(*self._seed, "epoch", epoch).permutation(len(self._used))]
        ends = np.cumsum(self._counts[order], dtype=np.int64)[self._window - 1 :: self._window]
        return order, np.concatenate([[0], ends])

    def _shuffle(self, key: tuple[int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(row group, which of its eligible rows) for each row of a window."""
        epoch, window = key
        order, _ = self._epochs.get(epoch, self._order)
        members = order[window * self._window : (window + 1) * self._window]
        groups = np.repeat(members, self._counts[members])
        ranks = np.concatenate([np.arange(self._counts[group]) for group in members])
        shuffled = SeededGenerator(*self._seed, "window", epoch, window).permutation(len(groups))
        return groups[shuffled], ranks[shuffled]

    def _rows_of(self, group: int) -> NDArray[np.int64]:
        """The eligible rows of a row group."""
        shard = self._shard_of(group)
        start = self._shards.row_in_shard(shard, group - int(self._shards.group_starts[shard]), 0)
        return np.flatnonzero(self._shards.mask(self._key, shard)[start : start + self._shards.group_rows[group]])
