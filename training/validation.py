"""The loss on rows that the model is not trained on: it tells learning from memorizing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from training.batch import StepBatch
from training.dataloader import load_batches, prefetch
from training.device import DeviceBatches
from training.objective import flow_matching_loss
from training.optimizer import MovingAverage
from training.step_metrics import StepMetrics
from training.worker_settings import WorkerSettings


class Validation:
    """Measures the same samples with the same noise levels and noise at every checkpoint, so that losses compare.

    Reading begins with the constructor and happens once. Each worker keeps its share in memory: 32 kB of latents a
    frame at 256², and the texts.
    """

    def __init__(self, settings: WorkerSettings, rank: int, workers: int) -> None:
        config = settings.config
        steps = range(-(-config.validation.samples // config.batch))
        manifest = settings.validation_manifest
        self._tasks = settings.validation_tasks
        self._reading: Iterator[StepBatch] = prefetch(
            load_batches(manifest, config, rank, workers, settings.readers, steps)
        )
        self._batches: list[StepBatch] = []

    def read(self, device: DeviceBatches) -> None:
        """Wait until the samples are read. Raises InputError for a shard that changed."""
        self._batches += map(device.encoded, self._reading)

    @torch.no_grad()
    def measure(self, model: nn.Module, average: MovingAverage, device: torch.device) -> dict[str, Any]:
        """Mean loss of the averaged weights over all workers, by task and by noise level. Called by all workers."""
        metrics = StepMetrics(self._tasks, device)
        with average.applied():
            for batch in self._batches:
                for pack in batch.packs:
                    _, losses = flow_matching_loss(model, pack, device)
                    metrics.add_pack(pack, losses, batch.frames_in_loss)
                metrics.end_step(0.0, 1.0)
        values = metrics.reduce()
        return {f"validation_{name}": values[name] for name in ("loss", "losses", "level_losses")}
