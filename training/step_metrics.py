"""Losses and speed over a window of steps, summed on each worker and averaged over all of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from training.batch import Sample


class Window:
    """Sums since the last logged step, on each worker."""

    def __init__(self, tasks: tuple[str, ...], device: torch.device) -> None:
        self.tasks, self.device = tasks, device
        self._reset()

    def _reset(self) -> None:
        self.steps, self.tokens, self.samples = 0, 0, 0
        self.waited, self.seconds = 0.0, 0.0
        self.packs: list[tuple[list[tuple[str, int]], Tensor, int]] = []

    def add(self, pack: list[Sample], parts: Tensor, frames_in_loss: int) -> None:
        """parts: of each sample of the pack; frames_in_loss: of the step."""
        counted = [(sample.task, int(sample.in_loss.sum())) for sample in pack]
        self.packs.append((counted, parts, frames_in_loss))
        self.tokens += sum(sample.tokens for sample in pack)
        self.samples += len(pack)

    def took(self, waited: float, seconds: float) -> None:
        """waited: seconds of the step's that went by without a batch."""
        self.steps += 1
        self.waited += waited
        self.seconds += seconds

    def close(self) -> dict[str, Any]:
        """Means over the window and all workers; begins the next window."""
        loss, by_task = 0.0, {task: [0.0, 0.0] for task in self.tasks}
        for counted, parts, frames_in_loss in self.packs:
            for (task, frames), part in zip(counted, parts.tolist(), strict=True):
                loss += part / frames_in_loss
                by_task[task][0] += part
                by_task[task][1] += frames
        local = [loss, self.tokens, self.samples, self.waited, self.seconds, 1.0]
        local += [value for task in self.tasks for value in by_task[task]]
        total = torch.tensor(local, dtype=torch.float64, device=self.device)
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(total)
        loss, tokens, samples, waited, seconds, workers, *rest = total.tolist()
        losses = {
            task: part / frames for task, part, frames in zip(self.tasks, rest[::2], rest[1::2], strict=True) if frames
        }
        values = {
            "loss": loss / self.steps,
            "losses": losses,
            "tokens_per_second": round(tokens * workers / seconds, 1),
            "samples_per_second": round(samples * workers / seconds, 3),
            "wait_share": round(waited / seconds, 4),
        }
        self._reset()
        return values
