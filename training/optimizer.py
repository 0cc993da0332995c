"""AdamW, its learning-rate schedule, and the moving average of the weights that is sampled from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from training.adamw8bit import AdamW8bit
from training.config import OptimizerConfig


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that are not frozen, in order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW over the parameters that are trained; norms, gates and biases (less than two axes) are not decayed."""
    matrices = [parameter for parameter in trained(model) if parameter.ndim >= 2]
    vectors = [parameter for parameter in trained(model) if parameter.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    if config.kind == "adamw8bit":
        return AdamW8bit(groups, config.learning_rate, config.betas, config.eps)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=True)


def learning_rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """The rate of a step counted from 0: a linear warm-up, then the schedule, which ends at 0 after `steps`."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    left = (steps - step) / max(1, steps - config.warmup)
    if config.schedule == "linear":
        return config.learning_rate * left
    if config.schedule == "cosine":
        return config.learning_rate * (1 + math.cos(math.pi * (1 - left))) / 2
    return config.learning_rate


class MovingAverage:
    """Exponential moving average of the parameters that are trained, in float32, on their device, in their sharding."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.parameters = trained(model)
        self._gathers = [module for module in model.modules() if isinstance(module, FSDPModule)]
        self.decay = decay
        self.average = [parameter.detach().float().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move toward the weights as they are after this step, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current: list[Tensor] = [parameter.detach().float() for parameter in self.parameters]
        torch._foreach_lerp_(self.average, current, 1 - decay)

    @torch.no_grad()
    def reset(self) -> None:
        """Set the average to the weights as they are."""
        for average, parameter in zip(self.average, self.parameters, strict=True):
            average.copy_(parameter)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the model has the averaged weights; afterwards its own again."""
        with torch.no_grad():
            saved = [parameter.detach().clone() for parameter in self.parameters]
            for parameter, average in zip(self.parameters, self.average, strict=True):
                parameter.copy_(average)
        self._forget_gathered()
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, weight in zip(self.parameters, saved, strict=True):
                    parameter.copy_(weight)
            self._forget_gathered()

    def _forget_gathered(self) -> None:
        """Let FSDP2 gather weights anew: without a backward pass, its root keeps those of the last forward pass."""
        for module in self._gathers:
            module.reshard()
