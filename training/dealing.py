"""Dealing: which samples of a step a worker has, in which packs, with the noise levels drawn for them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from training.config import TrainingConfig
from training.mixture import Manifest
from training.objective import draw_levels
from training.packing import deal_to_one
from training.plan import Plan, PlannedSample

# A planned sample, its noise levels (F,), and which frames the loss counts (F,).
Leveled = tuple[PlannedSample, NDArray[np.float32], NDArray[np.bool_]]


class Dealer:
    """Deals the samples of the plan to workers; reads nothing."""

    def __init__(self, manifest: Manifest, config: TrainingConfig) -> None:
        self.config = config
        self.plan = Plan(manifest, config.seed, config.batch, config.objective, config.reader.window)

    def deal(self, step: int, rank: int, workers: int) -> tuple[list[list[Leveled]], int, int]:
        """(packs of one worker for a step, most packs that any worker has, frames in the loss of the whole step).

        What is drawn for a sample is drawn by the worker that has it, where no other needs to know it.
        """
        objective, first = self.config.objective, step * self.config.batch
        tokens, frames = self.plan.step_sizes(step)
        dealt, most = deal_to_one(tokens.tolist(), self.config.workers.pack_tokens, workers, rank)

        def draw(place: int) -> Leveled:
            planned = self.plan.sample(first + place)
            return planned, *draw_levels(planned.noise_seed, planned.frames, objective)

        if objective.known_frame_share:  # how many frames are in the loss is drawn for each sample
            everyone = [draw(place) for place in range(len(tokens))]
            counted = sum(int(in_loss.sum()) for _, _, in_loss in everyone)
            own = [[everyone[place] for place in pack] for pack in dealt]
        else:
            counted = int(frames.sum())
            own = [[draw(place) for place in pack] for pack in dealt]
        return own, most, counted
