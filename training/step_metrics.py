"""Losses and speed of the steps since the last logged one, summed on each worker and averaged over all of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.batch import Sample
from training.flops import FlopCounter, SampleSize, peak_flops
from training.memory import peak_memory

LEVELS = tuple(f"{low / 5:.1f}-{(low + 1) / 5:.1f}" for low in range(5))  # of σ, of which losses are told apart


@dataclass(frozen=True)
class ComputedPack:
    """Of a pack that was computed: its samples' numbers, tasks and frames, and the losses of these, on the device."""

    step: int
    indices: list[int]
    tasks: list[str]
    sigmas: list[NDArray[np.float32]]
    in_loss: list[NDArray[np.bool_]]
    losses: Tensor
    frames_in_loss: int


class StepMetrics:
    """Sums since the last logged step, on each worker."""

    def __init__(self, tasks: tuple[str, ...], device: torch.device, flops: FlopCounter | None = None) -> None:
        """flops: counts those of the model that is trained."""
        self.tasks, self.device, self.flops = tasks, device, flops
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        self.peak = peak_flops(name)
        self.step = 0
        self._reset()

    def _reset(self) -> None:
        self.steps, self.skipped, self.tokens, self.samples, self.flop = 0, 0, 0, 0, 0.0
        self.wait_seconds, self.seconds = 0.0, 0.0
        self.packs: list[ComputedPack] = []

    def add_pack(self, pack: list[Sample], losses: Tensor, frames_in_loss: int) -> None:
        """losses: (frames of all samples,), each one's part of the loss, on any device; frames_in_loss: of the step."""
        parts = [(s.index, s.task, np.asarray(s.sigmas), np.asarray(s.in_loss)) for s in pack]
        indices, tasks, sigmas, in_loss = map(list, zip(*parts, strict=True))
        self.packs.append(ComputedPack(self.step, indices, tasks, sigmas, in_loss, losses, frames_in_loss))
        self.tokens += sum(sample.tokens for sample in pack)
        self.samples += len(pack)
        if self.flops:
            sizes = (SampleSize(sample.tokens, len(sample.text), len(sample.sigmas)) for sample in pack)
            self.flop += self.flops.step(sizes)

    def end_step(self, wait_seconds: float, seconds: float, skipped: bool = False) -> None:
        """wait_seconds: the part of the step's seconds that passed while it waited for its batch.

        skipped: whether it changed no weights; its losses are left out.
        """
        if skipped:
            self.packs = [pack for pack in self.packs if pack.step != self.step]
            self.skipped += 1
        else:
            self.steps += 1
        self.step += 1
        self.wait_seconds += wait_seconds
        self.seconds += seconds

    def step_loss(self) -> Tensor:
        """This worker's part of the loss of the step that is computed, a scalar on the device."""
        own = [pack.losses.sum() / pack.frames_in_loss for pack in self.packs if pack.step == self.step]
        return torch.stack(own).sum().double()

    def reduce(self) -> dict[str, Any]:
        """Means over the steps and all workers; starts again from zero. Called by all workers together.

        Losses are absent where all steps were skipped.
        """
        loss = 0.0
        by_task = {task: [0.0, 0.0] for task in self.tasks}
        by_level = np.zeros((len(LEVELS), 2))
        for pack in self.packs:
            losses = pack.losses.double().cpu().numpy()
            loss += losses.sum() / pack.frames_in_loss
            counted = np.concatenate(pack.in_loss)
            levels = np.minimum((np.concatenate(pack.sigmas) * len(LEVELS)).astype(int), len(LEVELS) - 1)[counted]
            np.add.at(by_level, levels, np.stack([losses[counted], np.ones(len(levels))], axis=1))
            ends = np.cumsum([len(each) for each in pack.in_loss])[:-1]
            for task, part, own in zip(pack.tasks, np.split(losses, ends), pack.in_loss, strict=True):
                by_task[task][0] += float(part.sum())
                by_task[task][1] += int(own.sum())
        local = [loss, self.tokens, self.samples, self.flop, self.wait_seconds, self.seconds, 1.0]
        local += [value for task in self.tasks for value in by_task[task]] + by_level.ravel().tolist()
        total = torch.tensor(local, dtype=torch.float64, device=self.device)
        memory = torch.tensor(peak_memory(self.device), dtype=torch.float64, device=self.device)
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(total)
            torch.distributed.all_reduce(memory, torch.distributed.ReduceOp.MAX)
        loss, tokens, samples, flop, wait_seconds, seconds, workers, *rest = total.tolist()
        values: dict[str, Any] = {}
        if self.steps:
            values["loss"] = loss / self.steps
            values["losses"] = _means(self.tasks, rest)
            values["level_losses"] = _means(LEVELS, rest[2 * len(self.tasks) :])
        values |= {
            "tokens_per_second": round(tokens * workers / seconds, 1),
            "samples_per_second": round(samples * workers / seconds, 3),
            "wait_share": round(wait_seconds / seconds, 4),
            "memory_gb": round(float(memory) / 1e9, 3),
        }
        if flop:
            values["tflop_per_step"] = round(flop / max(1, self.steps) / 1e12, 6)
            values["tflops_per_second"] = round(flop * workers / seconds / 1e12, 6)
            if self.peak:
                values["mfu"] = round(flop / seconds / self.peak, 4)
        if self.skipped:
            values["skipped"] = self.skipped
        self._reset()
        return values


def sample_losses(packs: Iterable[ComputedPack], step: int) -> list[tuple[int, float]]:
    """(number in the run, loss by frame) of the samples of a step among these packs."""
    found = []
    for pack in packs:
        if pack.step == step:
            ends = np.cumsum([len(each) for each in pack.in_loss])[:-1]
            parts = np.split(pack.losses.float().cpu().numpy(), ends)
            counts = [max(1, int(each.sum())) for each in pack.in_loss]
            means = (float(part.sum()) / count for part, count in zip(parts, counts, strict=True))
            found += list(zip(pack.indices, means, strict=True))
    return found


def _means(names: tuple[str, ...], sums: list[float]) -> dict[str, float]:
    """Name → mean, of pairs (sum, count) in the order of the names; without those that have none."""
    pairs = zip(names, sums[::2], sums[1::2], strict=False)
    return {name: total / count for name, total, count in pairs if count}
