"""Flow matching with a noise level per frame (docs/paper.md, Objective; docs/model.md, Convention of time).

σ in [0, 1] is the noise share: x_σ = (1 − σ)·x + σ·ε, the timestep is 1000·σ, and the network predicts v = ε − x.
F frames, C channels, h × w latent height and width, L prompt tokens, Y text width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from training.batch import Sample
from training.config import ObjectiveConfig
from training.seeded_generator import SeededGenerator

if TYPE_CHECKING:
    import torch

TIMESTEPS = 1000.0


def draw_levels(
    noise_seed: int, frames: int, objective: ObjectiveConfig
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """((F,) noise levels, (F,) frames that the loss counts) of a sample.

    Every frame draws its own level: logit-normal(0, 1), shifted toward noise. With probability known_frame_share a
    sample of several frames has known ones instead, clean and out of the loss: of two frames either, evenly; of more
    a random subset, neither none nor all.
    """
    generator = SeededGenerator(noise_seed, "levels")
    sigmas = np.array([_logit_normal(generator, objective.shift) for _ in range(frames)], np.float32)
    known = np.zeros(frames, bool)
    if frames > 1 and generator.uniform() < objective.known_frame_share:
        while not known.any() or known.all():
            known = np.array([generator.uniform() < 0.5 for _ in range(frames)])
    sigmas[known] = 0.0
    return sigmas, ~known


def _logit_normal(generator: SeededGenerator, shift: float) -> float:
    sigma = 1 / (1 + np.exp(-generator.normal()))
    return float(shift * sigma / (1 + (shift - 1) * sigma))


def draw_noise(noise_seed: int, shape: Sequence[int]) -> torch.Tensor:
    """Standard normal noise of a sample, (F, C, h, w) float32; drawn on the CPU, so that it is the same everywhere."""
    import torch

    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(noise_seed))


def flow_matching_loss(
    model: torch.nn.Module, samples: Sequence[Sample], device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of a pack: Σ over counted frames of the mean squared error of the velocity.

    model: called as model(noisy, timesteps, text), lists over the samples, like NextDiT.forward_packed.
    Returns the sum as a scalar to differentiate, float32, and each frame's part of it, (frames of all samples,), 0
    where it does not count, detached. Dividing by the number of counted frames of the whole step makes the loss of the
    step, whoever shared a pack or a worker.
    """
    import torch

    noisy, timesteps, text, targets, counted = [], [], [], [], []
    for sample in samples:
        clean = torch.as_tensor(sample.latents).to(device).float()
        noise = draw_noise(sample.noise_seed, clean.shape).to(device)
        sigmas = torch.from_numpy(sample.sigmas).to(device)
        sigma = sigmas.view(-1, 1, 1, 1)
        noisy.append((1 - sigma) * clean + sigma * noise)
        timesteps.append(TIMESTEPS * sigmas)
        text.append(torch.as_tensor(sample.text).to(device).float())
        targets.append(noise - clean)
        counted.append(torch.from_numpy(sample.in_loss).to(device))
    velocities = model(noisy, timesteps, text)
    losses = [
        (velocity.float() - target).square().mean(dim=(1, 2, 3)) * frames
        for velocity, target, frames in zip(velocities, targets, counted, strict=True)
    ]
    joined = torch.cat(losses)
    return joined.sum(), joined.detach()
