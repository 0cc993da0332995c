"""The DCT codec's arithmetic on tensors. B pictures, H × W pixels, h = H/8, w = W/8."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from model.codecs.dct import BLOCK, CHANNELS, MEAN, STD, kernels


def block_constants() -> dict[str, Tensor]:
    """analysis and synthesis (16, 3, 8, 8), mean and std (16, 1, 1), by name."""
    analysis, synthesis = kernels()
    return {
        "analysis": torch.from_numpy(analysis).float(),
        "synthesis": torch.from_numpy(synthesis).float(),
        "mean": torch.tensor(MEAN, dtype=torch.float32).view(CHANNELS, 1, 1),
        "std": torch.tensor(STD, dtype=torch.float32).view(CHANNELS, 1, 1),
    }


def analyze(pixels: Tensor, analysis: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(B, 3, H, W) in [-1, 1] → whitened coefficients (B, 16, h, w)."""
    return (functional.conv2d(pixels, analysis, stride=BLOCK) - mean) / std


def synthesize(latents: Tensor, synthesis: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(B, 16, h, w) → (B, 3, H, W), not clamped to [-1, 1]."""
    return functional.conv_transpose2d(latents * std + mean, synthesis, stride=BLOCK)
