"""The plan: which samples a step has, as a pure function of (manifest, seed, step).

It does not depend on the number of workers, and no state is carried from step to step: any step can be asked for at
once. What all workers need of a step is drawn for all of its samples at once, the rest for those that are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from model.constants import SIZE_STEP
from model.prompts import EDITING, find_task
from training.config import ObjectiveConfig
from training.plan.first_version import FirstPlan
from training.plan.lanes import LaneOrder
from training.plan.manifest import Manifest
from training.plan.planned_sample import Leveled, PlannedSample, StepSizes
from training.plan.task_order import TaskOrder
from training.recent import Recent
from training.seeded_generator import SeededGenerator, as_uniforms, indexed_words
from training.source_config import views_of_sample

# What each of a sample's random words decides. The levels of a set come from a generator of its own.
_CAPTION, _DEGRADATION, _NOISE, _VIEWS, _KNOWS, _KNOWN, _LEVEL = range(7)
_WORDS, _LEAST_WORDS = 8, 4
_NORMAL = NormalDist()


@dataclass(frozen=True, eq=False)
class _Drawn:
    """All samples of a step, (batch,) each. uniforms: (batch, _WORDS).

    knows: whether some frames are known; drops: whether the condition is pure noise.
    """

    streams: NDArray[np.int64]
    positions: NDArray[np.int64]
    words: NDArray[np.uint64]
    uniforms: NDArray[np.float64]
    lanes: NDArray[np.int64]
    frames: NDArray[np.int64]
    knows: NDArray[np.bool_]
    drops: NDArray[np.bool_]


class Plan:
    """The samples of every step of a run, in lanes (`training.plan.lanes`)."""

    def __init__(self, manifest: Manifest, seed: int, batch: int, objective: ObjectiveConfig, window: int) -> None:
        """batch: samples of a step over all workers; window: row groups shuffled together."""
        self.manifest, self.seed, self.batch, self.objective = manifest, seed, batch, objective
        self._numbers = [index for index, stream in enumerate(manifest.streams) if stream.rows]
        self._streams = [manifest.streams[index] for index in self._numbers]
        weights = np.array([stream.weight for stream in self._streams])
        before = np.cumsum(weights) - weights  # so that the draws of a step take the turns one stream after another
        first_turns = np.round(before / weights.sum() * manifest.lanes).astype(int).tolist()
        self._rows = [
            LaneOrder(manifest.sources[stream.source].shards, stream, seed, window, manifest.lanes, first_turn)
            for stream, first_turn in zip(self._streams, first_turns, strict=True)
        ]
        self.tasks = TaskOrder([stream.weight for stream in self._streams], seed, batch)
        kinds = [find_task(stream.task) for stream in self._streams]
        self._sets = np.array([task.is_of_sets for task in kinds])
        self._refers = np.array([task.references > 0 for task in kinds])
        self._frames = np.array([1 + (task.condition is not None) for task in kinds])  # of each picture of a sample
        self._views = np.array(
            [views_of_sample(stream.task, stream.views, objective.views) for stream in self._streams], np.int64
        )
        self._dropouts = np.array([stream.condition_dropout for stream in self._streams])
        self._frame_tokens = np.array([(stream.size // SIZE_STEP) ** 2 for stream in self._streams], np.int64)
        self._steps: Recent[_Drawn] = Recent(2)

    def step(self, step: int) -> list[PlannedSample]:
        """The samples of a step, in their order."""
        return [planned for planned, _, _ in self.draw(step, range(self.batch))]

    def sample(self, index: int) -> PlannedSample:
        """The sample of that number in the run."""
        step, position = divmod(index, self.batch)
        return self.draw(step, [position])[0][0]

    def sizes(self, step: int) -> StepSizes:
        """What every worker has to know of a step."""
        drawn = self._steps.get(step, self._draw_step)
        tokens = drawn.frames * self._frame_tokens[drawn.streams]
        known = int(drawn.knows.sum())  # one frame of a pair
        for position in np.flatnonzero(drawn.knows & self._sets[drawn.streams]).tolist():
            known += int(self._set_levels(drawn, step, position)[1].sum()) - 1
        return StepSizes(tokens, int(drawn.frames.sum()) - known, drawn.lanes)

    def draw(self, step: int, positions: Sequence[int]) -> list[Leveled]:
        """The samples of a step at these positions, with noise levels."""
        drawn = self._steps.get(step, self._draw_step)
        chosen = np.array(positions, np.int64)
        streams, draws = drawn.streams[chosen], drawn.positions[chosen]
        locations = np.empty((4, len(chosen)), np.int64)  # shard, row group, row, views
        for stream in np.unique(streams).tolist():
            here = np.flatnonzero(streams == stream)
            locations[:, here] = self._rows[stream].at(draws[here])
        uniforms, words = drawn.uniforms[chosen], drawn.words[chosen]
        dropped = (uniforms[:, _CAPTION] < self.objective.caption_dropout).tolist()
        seeds = (words[:, [_DEGRADATION, _NOISE]] >> np.uint64(1)).tolist()
        sigmas, known = self._pair_levels(uniforms, drawn.knows[chosen])
        sigmas[drawn.drops[chosen], 1] = 1.0
        frames = drawn.frames[chosen].tolist()
        leveled = []
        for number, (position, stream, at) in enumerate(
            zip(positions, streams.tolist(), locations.T.tolist(), strict=True)
        ):
            views: tuple[int, ...] = ()
            levels, knows = sigmas[number, : frames[number]], known[number, : frames[number]]
            if self._sets[stream]:
                levels, knows = self._set_levels(drawn, step, position)
                views = self._draw_views(stream, step * self.batch + position, at[3], len(levels))
            index = step * self.batch + position
            planned = PlannedSample(
                index=index,
                stream=self._numbers[stream],
                task=self._streams[stream].task,
                shard=at[0],
                row_group=at[1],
                row=at[2],
                views=views,
                frames=frames[number],
                tokens=frames[number] * int(self._frame_tokens[stream]),
                drop_caption=dropped[number],
                degradation_seed=seeds[number][0],
                noise_seed=seeds[number][1],
            )
            leveled.append((planned, levels, ~knows))
        return leveled

    def _draw_step(self, step: int) -> _Drawn:
        first = step * self.batch
        streams, positions = self.tasks.draws(first, self.batch)
        words = indexed_words((self.seed, "samples"), first, self.batch, _WORDS)
        uniforms = as_uniforms(words)
        frames, lanes = self._frames[streams], np.empty(self.batch, np.int64)
        for stream in np.unique(streams).tolist():
            here = np.flatnonzero(streams == stream)
            lanes[here] = self._rows[stream].lane(positions[here])
            if self._sets[stream]:
                most = np.minimum(self._rows[stream].at(positions[here])[3], self._views[stream, 1])
                least = np.minimum(self._views[stream, 0], most)
                pictures = least + (uniforms[here, _VIEWS] * (most - least + 1)).astype(np.int64)
                frames[here] = self._frames[stream] * pictures
        drops = np.zeros(self.batch, bool)
        if self._dropouts.any():
            drawn = as_uniforms(indexed_words((self.seed, "conditions"), first, self.batch, _LEAST_WORDS))[:, 0]
            drops = (drawn < self._dropouts[streams]) & (frames > 1)
        knows = (uniforms[:, _KNOWS] < self.objective.known_frame_share) & (frames > 1) & ~drops
        return _Drawn(streams, positions, words, uniforms, lanes, frames, knows, drops)

    def _pair_levels(
        self, uniforms: NDArray[np.float64], knows: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """((n, 2) noise levels, (n, 2) which frames are known) of samples of one or two frames."""
        known = np.stack([uniforms[:, _KNOWN] < 0.5, uniforms[:, _KNOWN] >= 0.5], axis=1) & knows[:, None]
        return self._sigmas(uniforms[:, _LEVEL : _LEVEL + 2], known), known

    def _draw_views(self, stream: int, index: int, available: int, frames: int) -> tuple[int, ...]:
        """Which pictures of a set a sample shows, in order; the image that others are references of comes first."""
        generator = SeededGenerator(self.seed, "views", index)
        if self._streams[stream].task == EDITING:  # the set's first picture is the one that was edited
            return 1 + int(generator.permutation(available - 1)[0]), 0
        count, window = frames // int(self._frames[stream]), self._streams[stream].window
        first, within = 0, available
        if window is not None and window < available and not self._refers[stream]:
            within = max(window, count)
            first = generator.integer(0, available - within)
        return tuple((first + generator.permutation(within)[:count]).tolist())

    def _set_levels(self, drawn: _Drawn, step: int, position: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        frames, generator = int(drawn.frames[position]), SeededGenerator(self.seed, "set", step * self.batch + position)
        uniforms, known = generator.uniforms(frames), np.zeros(frames, bool)
        stream = int(drawn.streams[position])
        if drawn.knows[position] and self._refers[stream]:  # references are made of no image
            known[1:] = True
        while drawn.knows[position] and (not known.any() or known.all()):
            known = generator.uniforms(frames) < 0.5
        levels = self._sigmas(uniforms, known)
        if drawn.drops[position]:
            levels[1 :: self._frames[stream]] = 1.0  # of a set with cameras, the rays
        return levels, known

    def _sigmas(self, uniforms: NDArray[np.float64], known: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Noise levels, logit-normal and shifted as in `training.objective`; 0 of known frames."""
        normal = np.array([_NORMAL.inv_cdf(each) for each in uniforms.ravel().tolist()]).reshape(uniforms.shape)
        sigma, shift = 1 / (1 + np.exp(-normal)), self.objective.shift
        return np.where(known, 0, shift * sigma / (1 + (shift - 1) * sigma)).astype(np.float32)


def load_plan(manifest: Manifest, seed: int, batch: int, objective: ObjectiveConfig, window: int) -> Plan | FirstPlan:
    """The plan of a run, by the version of its manifest."""
    kind = Plan if manifest.lanes else FirstPlan
    return kind(manifest, seed, batch, objective, window)
