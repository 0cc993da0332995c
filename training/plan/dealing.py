"""Dealing: which samples of a step a worker has, in which packs, with the noise levels drawn for them."""

from __future__ import annotations

from training.config import TrainingConfig
from training.plan.manifest import Manifest
from training.plan.packing import deal_lanes, deal_to_one
from training.plan.planned_sample import Leveled
from training.plan.step_plan import load_plan


class Dealer:
    """Deals the samples of the plan to workers; reads nothing."""

    def __init__(self, manifest: Manifest, config: TrainingConfig) -> None:
        self.config = config
        self.plan = load_plan(manifest, config.seed, config.batch, config.objective, config.reader.window)

    def deal(self, step: int, rank: int, workers: int) -> tuple[list[list[Leveled]], int, int]:
        """(packs of one worker for a step, most packs that any worker has, frames in the loss of the whole step).

        What is drawn for a sample is drawn by the worker that has it, where no other needs to know it.
        """
        sizes, budget = self.plan.sizes(step), self.config.workers.pack_tokens
        if sizes.lanes is None:
            dealt, most = deal_to_one(sizes.tokens.tolist(), budget, workers, rank)
        else:
            dealt, most = deal_lanes(sizes.tokens, sizes.lanes, budget, workers, rank)
        leveled = iter(self.plan.draw(step, [place for pack in dealt for place in pack]))
        return [[next(leveled) for _ in pack] for pack in dealt], most, sizes.frames_in_loss
