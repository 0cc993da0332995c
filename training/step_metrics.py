"""Losses and speed of the steps since the last logged one, summed on each worker and averaged over all of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from training.batch import Sample
from training.flops import FlopCounter, SampleSize, peak_flops


class StepMetrics:
    """Sums since the last logged step, on each worker."""

    def __init__(self, tasks: tuple[str, ...], device: torch.device, flops: FlopCounter | None = None) -> None:
        """flops: counts those of the model that is trained."""
        self.tasks, self.device, self.flops = tasks, device, flops
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        self.peak = peak_flops(name)
        self._reset()

    def _reset(self) -> None:
        self.steps, self.tokens, self.samples, self.flop = 0, 0, 0, 0.0
        self.wait_seconds, self.seconds = 0.0, 0.0
        self.packs: list[tuple[list[tuple[str, int]], Tensor, int]] = []

    def add_pack(self, pack: list[Sample], losses: Tensor, frames_in_loss: int) -> None:
        """losses: (samples,), each sample's part of the loss, on any device; frames_in_loss: of the whole step."""
        frames = [(sample.task, int(sample.in_loss.sum())) for sample in pack]
        self.packs.append((frames, losses, frames_in_loss))
        self.tokens += sum(sample.tokens for sample in pack)
        self.samples += len(pack)
        if self.flops:
            sizes = (SampleSize(sample.tokens, len(sample.text), len(sample.sigmas)) for sample in pack)
            self.flop += self.flops.step(sizes)

    def end_step(self, wait_seconds: float, seconds: float) -> None:
        """wait_seconds: the part of the step's seconds that passed while it waited for its batch."""
        self.steps += 1
        self.wait_seconds += wait_seconds
        self.seconds += seconds

    def reduce(self) -> dict[str, Any]:
        """Means over the steps and all workers; starts again from zero. Called by all workers together."""
        loss, by_task = 0.0, {task: [0.0, 0.0] for task in self.tasks}
        for frames_of, losses, frames_in_loss in self.packs:
            for (task, frames), part in zip(frames_of, losses.tolist(), strict=True):
                loss += part / frames_in_loss
                by_task[task][0] += part
                by_task[task][1] += frames
        local = [loss, self.tokens, self.samples, self.flop, self.wait_seconds, self.seconds, 1.0]
        local += [value for task in self.tasks for value in by_task[task]]
        total = torch.tensor(local, dtype=torch.float64, device=self.device)
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(total)
        loss, tokens, samples, flop, wait_seconds, seconds, workers, *rest = total.tolist()
        task_losses = {
            task: part / frames for task, part, frames in zip(self.tasks, rest[::2], rest[1::2], strict=True) if frames
        }
        values = {
            "loss": loss / self.steps,
            "losses": task_losses,
            "tokens_per_second": round(tokens * workers / seconds, 1),
            "samples_per_second": round(samples * workers / seconds, 3),
            "wait_share": round(wait_seconds / seconds, 4),
        }
        if flop:
            values["tflop_per_step"] = round(flop / self.steps / 1e12, 6)
            values["tflops_per_second"] = round(flop * workers / seconds / 1e12, 6)
            if self.peak:
                values["mfu"] = round(flop / seconds / self.peak, 4)
        self._reset()
        return values
