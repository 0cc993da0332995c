"""Sampling: known frames stay what they are, the others are integrated from noise (docs/model.md, Sampling)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from model.constants import PATCH_SIZE
from model.inputs import InputError, one_line, shown

LEVELS = 1000  # timestep of noise alone
ConditionTimestep = Literal["last", "zero"]


@torch.no_grad()
def sample_frames(
    transformer: Any,
    scheduler: Any,
    noise: Tensor,
    known: Tensor | None,
    denoise_mask: Sequence[int],
    prompt_embeds: Tensor,
    prompt_mask: Tensor,
    num_steps: int,
    guidance: float = 1.0,
    camera_rays: Tensor | None = None,
    condition_timestep: ConditionTimestep = "last",
    progress: Callable[[int, int], None] | None = None,
    after_step: Callable[[int, Tensor, Tensor], Tensor | None] | None = None,
    guidance_now: Callable[[], float] | None = None,
) -> Tensor:
    """Final latents (B, F, 16, h, w) of all frames.

    noise (B, F, 16, h, w); known (B, K, 16, h, w): clean latents of the known image frames in frame order;
    denoise_mask: 1 for each frame to generate. camera_rays (B, V, 16, h, w): latents of all cameras of a view set,
    whose frames alternate image, rays; written where the mask says known. prompt_embeds (B or 2B, L, Y), the negative
    half first when guidance > 1. condition_timestep: the timestep of known frames, the last one of the
    schedule (as the released code) or 0 (as the paper). progress(step, steps) and after_step(index, timestep, latents)
    are called after each step: the latents that after_step returns replace the current ones, None ends the sampling.
    guidance_now: is asked for the guidance of each step, where after_step may change it.
    Raises InputError when mask and frames disagree, and where latents are not finite any more.
    """
    B, F, _, h, w = noise.shape
    generated = [bool(value) for value in denoise_mask]
    if len(generated) != F:
        raise InputError(f"denoise_mask has {len(generated)} values for {F} frames")
    clean = _clean_frames(noise, known, generated, camera_rays)
    is_generated = torch.tensor(generated, device=noise.device)
    tokens = sum(generated) * (h // PATCH_SIZE) * (w // PATCH_SIZE)
    timesteps = set_timesteps(scheduler, num_steps, tokens, noise.device)
    known_timestep = timesteps[-1] if condition_timestep == "last" else torch.zeros_like(timesteps[-1])
    where_generated = is_generated[None, :, None, None, None]
    latents = torch.where(where_generated, noise, clean)
    guided = guidance > 1
    for index, t in enumerate(timesteps):
        levels = torch.where(is_generated, t, known_timestep).expand(B, F)
        scale = (guidance_now() if guidance_now else guidance) if guided else None
        velocity = _velocity(transformer, latents, levels, prompt_embeds, prompt_mask, scale)
        latents = scheduler.step(velocity, t, latents, return_dict=False)[0]
        latents = torch.where(where_generated, latents, clean)
        _check_finite(latents, index + 1, len(timesteps))
        if progress:
            progress(index + 1, len(timesteps))
        if after_step:
            replaced = after_step(index, t, latents)
            if replaced is None:
                break
            latents = replaced
    return latents


def set_timesteps(scheduler: Any, num_steps: int, tokens: int, device: torch.device) -> Tensor:
    """Set the scheduler's sigmas for so many denoised tokens, and give its timesteps, which fall from 1000.

    Raises InputError for a scheduler whose configuration gives none, or others.
    """
    config = scheduler.config
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    mu = config.base_shift + slope * (tokens - config.base_image_seq_len)
    sigmas = np.linspace(1.0, 1 / num_steps, num_steps)
    try:
        scheduler.set_timesteps(sigmas=sigmas, device=device, mu=mu)
    except (ArithmeticError, AttributeError, ImportError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"scheduler: its configuration gives no steps ({one_line(error, 160)}); correct it") from None
    levels = scheduler.timesteps
    falls = levels.shape == (num_steps,) and bool((levels[1:] < levels[:-1]).all())  # which NaN does not
    if not falls or not math.isclose(float(levels[0]), LEVELS, rel_tol=1e-3) or float(levels[-1]) < 0:
        raise InputError(
            f"scheduler: its configuration gives {shown(levels.tolist())} as timesteps, which are to fall from "
            f"{LEVELS} toward 0; correct it"
        )
    return levels


def _velocity(
    transformer: Any, latents: Tensor, levels: Tensor, prompt_embeds: Tensor, prompt_mask: Tensor, scale: float | None
) -> Tensor:
    """(B, F, 16, h, w) as the transformer predicts it, led away from the negative prompts by a scale of guidance.

    levels (B, F): timesteps. Without a scale prompts are (B, L, Y), else (2B, L, Y), negative ones first.
    """
    if scale is None:
        return transformer(latents, levels, prompt_embeds, prompt_mask)
    both = transformer(torch.cat([latents, latents]), torch.cat([levels, levels]), prompt_embeds, prompt_mask)
    negative, positive = both.chunk(2)
    return negative + scale * (positive - negative)


def _check_finite(latents: Tensor, step: int, steps: int) -> None:
    if not bool(torch.isfinite(latents).all()):
        raise InputError(
            f"sampling: numbers that are not finite at step {step} of {steps}; weights, inputs or their precision are "
            "at fault: try float32, or another checkpoint"
        )


def _clean_frames(noise: Tensor, known: Tensor | None, generated: Sequence[bool], rays: Tensor | None) -> Tensor:
    """(B, F, 16, h, w) with the known frames' latents in their places, zeros elsewhere."""
    clean = torch.zeros_like(noise)
    images = list(range(len(generated))) if rays is None else list(range(0, len(generated), 2))
    known_frames = [frame for frame in images if not generated[frame]]
    given = 0 if known is None else known.shape[1]
    if given != len(known_frames):
        raise InputError(
            f"{given} known latents for {len(known_frames)} known image frames in the mask {list(generated)}"
        )
    if known is not None and given:
        clean[:, known_frames] = known.to(clean)
    if rays is not None:
        cameras = [frame for frame in range(1, len(generated), 2) if not generated[frame]]
        if cameras:
            clean[:, cameras] = rays[:, [frame // 2 for frame in cameras]].to(clean)
    return clean
