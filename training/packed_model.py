"""The model that a worker trains: NextDiT called with packed samples.

F frames, C channels, h × w latent height and width, L prompt tokens, Y text width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from training.config import TrainingConfig
from training.lora import add_adapter

if TYPE_CHECKING:
    from model.transformer import NextDiT

PREFIX = "transformer."  # of the names of NextDiT's parameters within a PackedModel


class PackedModel(nn.Module):
    """NextDiT with the packed form as its `forward`, which is what wrappers for several processes call."""

    def __init__(self, transformer: NextDiT) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, samples: list[Tensor], timesteps: list[Tensor], text: list[Tensor]) -> list[Tensor]:
        """Samples (F, C, h, w), timesteps (F,), text (L, Y) of each → velocities (F, C, h, w)."""
        return list(self.transformer.forward_packed(samples, timesteps, text))


def build_model(config: TrainingConfig) -> PackedModel:
    """The model of a configuration, with weights drawn from its seed; with `lora`, frozen and with an adapter."""
    from model.transformer import NextDiT

    torch.manual_seed(config.seed)
    transformer = NextDiT(**config.model.model_dump())
    if config.lora:
        add_adapter(transformer, config.lora, half=config.workers.precision == "bf16")
    if config.workers.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    if config.workers.gpus:
        transformer.compile_blocks()
    return PackedModel(transformer)
