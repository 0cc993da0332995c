"""The loss on rows that nothing is learned from: what tells learning from learning by heart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from training.batch import StepBatch
from training.objective import flow_matching_loss
from training.optimizer import MovingAverage
from training.step_metrics import Window
from training.stream import stream_steps

if TYPE_CHECKING:
    from training.worker import Job


class HeldOut:
    """The same samples with the same noise levels and noise at every checkpoint, so that the figures compare.

    They are read once, and each worker keeps its share: at 256² 32 kB of latents a frame, and the texts.
    """

    def __init__(self, job: Job, rank: int, workers: int, device: torch.device) -> None:
        """Read the share of worker `rank`. Raises InputError for a shard that changed."""
        self.device = device
        self._window = Window(job.held_out_tasks, device)
        steps = -(-job.config.held_out.samples // job.config.batch)
        self._batches: list[StepBatch] = list(
            stream_steps(job.held_out, job.config, job.codec, rank, workers, job.readers, range(steps))
        )

    @torch.no_grad()
    def measure(self, model: nn.Module, average: MovingAverage) -> dict[str, Any]:
        """Mean loss of the averaged weights over all workers, and by task. Called by all workers together."""
        with average.applied():
            for batch in self._batches:
                for pack in batch.packs:
                    _, parts = flow_matching_loss(model, pack, self.device)
                    self._window.add(pack, parts, batch.frames_in_loss)
                self._window.took(0.0, 1.0)
        values = self._window.close()
        return {"held_out_loss": values["loss"], "held_out_losses": values["losses"]}
