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
from model.prompts import RAYS, find_task
from training.config import ObjectiveConfig
from training.plan.first_version import FirstPlan
from training.plan.lanes import LaneOrder
from training.plan.manifest import Manifest
from training.plan.planned_sample import Leveled, PlannedSample, StepSizes
from training.plan.task_order import TaskOrder
from training.recent import Recent
from training.seeded_generator import SeededGenerator, as_uniforms, indexed_words

# What each of a sample's random words decides. The levels of a set come from a generator of its own.
_CAPTION, _DEGRADATION, _NOISE, _VIEWS, _KNOWS, _KNOWN, _LEVEL = range(7)
_WORDS = 8
_NORMAL = NormalDist()


@dataclass(frozen=True, eq=False)
class _Drawn:
    """Of all samples of a step, (batch,) each. uniforms: (batch, _WORDS); frames_in_loss: of each."""

    streams: NDArray[np.int64]
    positions: NDArray[np.int64]
    words: NDArray[np.uint64]
    uniforms: NDArray[np.float64]
    lanes: NDArray[np.int64]
    frames: NDArray[np.int64]
    knows: NDArray[np.bool_]


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
        conditions = [find_task(stream.task).condition for stream in self._streams]
        self._sets = np.array([condition == RAYS for condition in conditions])
        self._frames = np.array([1 + (condition is not None) for condition in conditions])
        self._frame_tokens = np.array([(stream.size // SIZE_STEP) ** 2 for stream in self._streams], np.int64)
        self._steps: Recent[_Drawn] = Recent(2)

    def step(self, step: int) -> list[PlannedSample]:
        """The samples of a step, in their order."""
        return [planned for planned, _, _ in self.draw(step, range(self.batch))]

    def sample(self, index: int) -> PlannedSample:
        """The sample of that number in the run."""
        step, place = divmod(index, self.batch)
        return self.draw(step, [place])[0][0]

    def sizes(self, step: int) -> StepSizes:
        """What every worker has to know of a step."""
        drawn = self._steps.get(step, self._draw_step)
        tokens = drawn.frames * self._frame_tokens[drawn.streams]
        known = int(drawn.knows.sum())  # one frame of a pair
        for place in np.flatnonzero(drawn.knows & self._sets[drawn.streams]).tolist():
            known += int(self._set_levels(drawn, step, place)[1].sum()) - 1
        return StepSizes(tokens, int(drawn.frames.sum()) - known, drawn.lanes)

    def draw(self, step: int, places: Sequence[int]) -> list[Leveled]:
        """The samples of a step at these places, with noise levels."""
        drawn = self._steps.get(step, self._draw_step)
        chosen = np.array(places, np.int64)
        streams, positions = drawn.streams[chosen], drawn.positions[chosen]
        found = np.empty((4, len(chosen)), np.int64)  # shard, row group, row, views
        for stream in np.unique(streams).tolist():
            here = np.flatnonzero(streams == stream)
            found[:, here] = self._rows[stream].at(positions[here])
        uniforms, words = drawn.uniforms[chosen], drawn.words[chosen]
        dropped = (uniforms[:, _CAPTION] < self.objective.caption_dropout).tolist()
        seeds = (words[:, [_DEGRADATION, _NOISE]] >> np.uint64(1)).tolist()
        sigmas, known = self._pair_levels(uniforms, drawn.knows[chosen])
        frames = drawn.frames[chosen].tolist()
        leveled = []
        for number, (place, stream, at) in enumerate(zip(places, streams.tolist(), found.T.tolist(), strict=True)):
            views: tuple[int, ...] = ()
            levels, knows = sigmas[number, : frames[number]], known[number, : frames[number]]
            if self._sets[stream]:
                levels, knows, views = self._draw_set(drawn, step, place, at[3])
            index = step * self.batch + place
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
                most = np.minimum(self._rows[stream].at(positions[here])[3], self.objective.max_views)
                least = np.minimum(self.objective.min_views, most)
                frames[here] = 2 * (least + (uniforms[here, _VIEWS] * (most - least + 1)).astype(np.int64))
        knows = (uniforms[:, _KNOWS] < self.objective.known_frame_share) & (frames > 1)
        return _Drawn(streams, positions, words, uniforms, lanes, frames, knows)

    def _pair_levels(
        self, uniforms: NDArray[np.float64], knows: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """((n, 2) noise levels, (n, 2) which frames are known) of samples of one or two frames."""
        known = np.stack([uniforms[:, _KNOWN] < 0.5, uniforms[:, _KNOWN] >= 0.5], axis=1) & knows[:, None]
        return self._sigmas(uniforms[:, _LEVEL : _LEVEL + 2], known), known

    def _draw_set(
        self, drawn: _Drawn, step: int, place: int, available: int
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_], tuple[int, ...]]:
        """((F,) noise levels, (F,) which frames are known, views) of a sample of a set with so many views."""
        levels, known = self._set_levels(drawn, step, place)
        order = SeededGenerator(self.seed, "views", step * self.batch + place).permutation(available)
        return levels, known, tuple(order[: len(known) // 2].tolist())

    def _set_levels(self, drawn: _Drawn, step: int, place: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        frames, generator = int(drawn.frames[place]), SeededGenerator(self.seed, "set", step * self.batch + place)
        uniforms, known = generator.uniforms(frames), np.zeros(frames, bool)
        while drawn.knows[place] and (not known.any() or known.all()):
            known = generator.uniforms(frames) < 0.5
        return self._sigmas(uniforms, known), known

    def _sigmas(self, uniforms: NDArray[np.float64], known: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Noise levels, logit-normal and shifted as in `training.objective`; 0 of known frames."""
        normal = np.array([_NORMAL.inv_cdf(each) for each in uniforms.ravel().tolist()]).reshape(uniforms.shape)
        sigma, shift = 1 / (1 + np.exp(-normal)), self.objective.shift
        return np.where(known, 0, shift * sigma / (1 + (shift - 1) * sigma)).astype(np.float32)


def load_plan(manifest: Manifest, seed: int, batch: int, objective: ObjectiveConfig, window: int) -> Plan | FirstPlan:
    """The plan of a run, by the version of its manifest."""
    kind = Plan if manifest.lanes else FirstPlan
    return kind(manifest, seed, batch, objective, window)
