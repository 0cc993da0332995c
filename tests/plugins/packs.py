"""Packs of samples of several shapes and text lengths, at the size of the reference vectors."""

from __future__ import annotations

import random

import torch
from torch import Tensor

Pack = tuple[list[Tensor], list[Tensor], list[Tensor]]  # samples (F, 16, h, w), timesteps (F,), text (L, 32) of each

MIXED = [(2, 8, 12), (1, 16, 16), (2, 8, 12), (4, 8, 8), (2, 12, 8), (3, 8, 8)]


def mixed_samples() -> Pack:
    return pack_of(MIXED, [5, 9, 5, 1, 7, 3], seed=1)


def random_pack(seed: int, most: int = 7) -> Pack:
    """One to `most` samples of up to 4 frames, whose sides and texts no two packs share."""
    generator = random.Random(seed)
    shapes = [
        (generator.randint(1, 4), 2 * generator.randint(2, 12), 2 * generator.randint(2, 12))
        for _ in range(generator.randint(1, most))
    ]
    return pack_of(shapes, [generator.randint(1, 90) for _ in shapes], seed)


def pack_of(shapes: list[tuple[int, int, int]], lengths: list[int], seed: int) -> Pack:
    torch.manual_seed(seed)
    samples = [torch.randn(frames, 16, h, w) for frames, h, w in shapes]
    timesteps = [torch.rand(len(sample)) * 1000 for sample in samples]
    return samples, timesteps, [torch.randn(length, 32) for length in lengths]
