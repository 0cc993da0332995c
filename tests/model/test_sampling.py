"""Sampling against latents of the published code, and what is asked of masks and known frames."""

from __future__ import annotations

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from reference_vectors import DESCRIPTION, cases, relative
from torch import Tensor

from model import NextDiT, sample_frames
from model.cameras import camera_rays, orbit_cameras, rays_to_latents


@pytest.mark.parametrize("name", cases("sample"))
def test_sampling_matches_published_numbers(name: str, vectors: dict[str, Tensor], transformer: NextDiT) -> None:
    case = DESCRIPTION["cases"][name]
    rays = None
    if "kw" in case:
        angles = [
            torch.tensor(case["kw"][f"multiview_{key}"]).float() for key in ("azimuths", "elevations", "distances")
        ]
        intrinsics = torch.tensor([[1.3887, 0, 0.5], [0, 1.3887, 0.5], [0, 0, 1]]).expand(len(angles[0]), 3, 3)
        rays = rays_to_latents(camera_rays(orbit_cameras(*angles), intrinsics, 8), 8, 8)[None]
    scheduler = FlowMatchEulerDiscreteScheduler(**DESCRIPTION["scheduler"])
    latents = sample_frames(
        transformer,
        scheduler,
        *(vectors[f"{name}.{key}"] for key in ("noise", "cond")),
        case["denoise_mask"],
        *(vectors[f"{name}.{key}"] for key in ("prompt_embeds", "prompt_mask")),
        case["steps"],
        guidance=case["guidance"],
        camera_rays=rays,
    )
    assert relative(latents, vectors[f"{name}.latents"]) < 1e-4
    assert relative(scheduler.timesteps, vectors[f"{name}.timesteps"]) < 1e-6


def test_known_frames_get_last_timestep_or_zero(
    transformer: NextDiT, vectors: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "sample_image2depth"
    arguments = [vectors[f"{name}.{key}"] for key in ("noise", "cond")]
    text = [vectors[f"{name}.{key}"] for key in ("prompt_embeds", "prompt_mask")]
    levels: list[Tensor] = []
    forward = transformer.forward

    def watched(samples: Tensor, timesteps: Tensor, *rest: Tensor) -> Tensor:
        levels.append(timesteps.clone())
        return forward(samples, timesteps, *rest)

    monkeypatch.setattr(transformer, "forward", watched)
    seen: list[tuple[int, int]] = []
    results = {}
    for choice in ("last", "zero"):
        levels.clear()
        scheduler = FlowMatchEulerDiscreteScheduler(**DESCRIPTION["scheduler"])
        results[choice] = sample_frames(
            transformer,
            scheduler,
            *arguments,
            [0, 1],
            *text,
            3,
            condition_timestep=choice,
            progress=lambda step, steps: seen.append((step, steps)),
        )
        timesteps = scheduler.timesteps
        expected = torch.stack([timesteps[-1:].expand(3) if choice == "last" else torch.zeros(3), timesteps], -1)
        assert torch.equal(torch.cat(levels), expected)
        assert torch.equal(results[choice][:, :1], vectors[f"{name}.cond"])
    assert seen == [(1, 3), (2, 3), (3, 3)] * 2
    assert relative(results["zero"], results["last"]) > 1e-4


def test_cameras_are_generated_for_known_images(transformer: NextDiT, vectors: dict[str, Tensor]) -> None:
    name = "sample_multiview"
    noise = vectors[f"{name}.noise"][:, :4]
    known = torch.randn(1, 2, 16, 8, 8)
    text = [vectors[f"{name}.{key}"][1:] for key in ("prompt_embeds", "prompt_mask")]
    scheduler = FlowMatchEulerDiscreteScheduler(**DESCRIPTION["scheduler"])
    rays = torch.full((1, 2, 16, 8, 8), torch.nan)  # not known: must not be looked at
    latents = sample_frames(transformer, scheduler, noise, known, [0, 1, 0, 1], *text, 2, camera_rays=rays)
    assert torch.equal(latents[:, ::2], known)
    assert latents.isfinite().all()


def test_mismatched_mask_is_refused(transformer: NextDiT, vectors: dict[str, Tensor]) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(**DESCRIPTION["scheduler"])
    arguments = [vectors[f"sample_depth2image.{key}"] for key in ("prompt_embeds", "prompt_mask")]
    noise, known = (vectors[f"sample_depth2image.{key}"] for key in ("noise", "cond"))
    with pytest.raises(ValueError, match="for 2 frames"):
        sample_frames(transformer, scheduler, noise, known, [1, 0, 0], *arguments, 2)
    with pytest.raises(ValueError, match="1 known latents for 2"):
        sample_frames(transformer, scheduler, noise, known, [0, 0], *arguments, 2)
