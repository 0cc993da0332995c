"""One update of the weights from a worker's packs of a step: forward, backward, clipping, AdamW, moving average."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from training.batch import Sample, StepBatch
from training.config import TrainingConfig
from training.lora import seed_dropout
from training.objective import flow_matching_loss
from training.optimizer import MovingAverage, build_optimizer, learning_rate
from training.parallel import accumulating, clip_gradients

OnPack = Callable[[list[Sample], Tensor, int], None]  # a pack, its frames' parts of the loss, frames in the step's loss


class Updates:
    """The optimizer and the moving average of a model that is distributed already.

    workers: processes of the run; autocast: makes the context that the forward pass runs in.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainingConfig,
        device: torch.device,
        workers: int,
        autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.model, self.config, self.device, self.workers, self.autocast = model, config, device, workers, autocast
        self.optimizer = build_optimizer(model, config.optimizer)
        self.average = MovingAverage(model, config.optimizer.ema)

    def update(
        self,
        batch: StepBatch,
        on_pack: OnPack | None = None,
        before_change: Callable[[], None] | None = None,
        accepts: Callable[[Tensor], bool] | None = None,
    ) -> Tensor:
        """Update the weights once. Returns the norm of the gradient before clipping, a scalar on the device.

        Nothing here waits for a GPU. on_pack: called with each pack after its backward pass; before_change: called
        when weights, averages and optimizer are about to change. accepts: asked with the norm; where it refuses nothing
        changes.
        """
        rate = learning_rate(batch.step, self.config.steps, self.config.optimizer)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        for number, pack in enumerate(batch.packs):
            with accumulating(self.model, last=number == len(batch.packs) - 1):
                if self.config.lora and self.config.lora.dropout:
                    seed_dropout(pack[0].noise_seed)
                with self.autocast():
                    loss, sample_losses = flow_matching_loss(self.model, pack, self.device)
                # Gradients are averaged over workers, the loss is a sum over them: hence × workers.
                (loss * (self.workers / batch.frames_in_loss)).backward()
            if on_pack:
                on_pack(pack, sample_losses, batch.frames_in_loss)
        norm = clip_gradients(self.model, self.config.optimizer.clip)
        if accepts and not accepts(norm.detach()):
            return norm.detach()
        if before_change:
            before_change()
        self.optimizer.step()
        self.average.update(batch.step)
        return norm.detach()
