"""NextDiT against numbers of the published code, and packed samples against samples alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file
from torch import Tensor

from model import NextDiT, sample_frames
from model.cameras import camera_rays, orbit_cameras, rays_to_cameras, rays_to_latents

VECTORS = Path(__file__).parent / "vectors" / "onediffusion_reference"
DESCRIBED: dict[str, Any] = json.loads(VECTORS.with_suffix(".json").read_text())


@pytest.fixture(scope="module")
def vectors() -> dict[str, Tensor]:
    return load_file(VECTORS.with_suffix(".safetensors"))


@pytest.fixture(scope="module")
def transformer(vectors: dict[str, Tensor]) -> NextDiT:
    model = NextDiT(**DESCRIBED["transformer"])
    weights = {key.removeprefix("transformer."): value for key, value in vectors.items() if key.startswith("transf")}
    model.load_state_dict(weights, strict=True)
    return model.eval()


def cases(kind: str) -> list[str]:
    return [name for name, case in DESCRIBED["cases"].items() if case["kind"] == kind]


def relative(found: Tensor, expected: Tensor) -> float:
    return float(((found - expected).abs().max() / expected.abs().max()).detach())


@pytest.mark.parametrize("name", cases("forward"))
def test_forward_gives_the_published_numbers(name: str, vectors: dict[str, Tensor], transformer: NextDiT) -> None:
    keys = ("samples", "timesteps", "encoder_hidden_states", "encoder_attention_mask")
    case = {key: value for key, value in DESCRIBED["cases"][name].items() if key.startswith("scale_")}
    with torch.no_grad():
        output = transformer(*(vectors[f"{name}.{key}"] for key in keys), **case)
    assert relative(output, vectors[f"{name}.output"]) < 1e-4


@pytest.mark.parametrize("name", cases("sample"))
def test_sampling_gives_the_published_numbers(name: str, vectors: dict[str, Tensor], transformer: NextDiT) -> None:
    case = DESCRIBED["cases"][name]
    rays = None
    if "kw" in case:
        angles = [
            torch.tensor(case["kw"][f"multiview_{key}"]).float() for key in ("azimuths", "elevations", "distances")
        ]
        intrinsics = torch.tensor([[1.3887, 0, 0.5], [0, 1.3887, 0.5], [0, 0, 1]]).expand(len(angles[0]), 3, 3)
        rays = rays_to_latents(camera_rays(orbit_cameras(*angles), intrinsics, 8), 8, 8)[None]
    scheduler = FlowMatchEulerDiscreteScheduler(**DESCRIBED["scheduler"])
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


@pytest.mark.parametrize("name", cases("rays"))
def test_cameras_give_the_published_rays_and_come_back(name: str, vectors: dict[str, Tensor]) -> None:
    case = DESCRIBED["cases"][name]
    values = {key: vectors[f"{name}.{key}"] for key in ("azimuth", "elevation", "distance", "c2w", "K", "rays")}
    assert relative(orbit_cameras(values["azimuth"], values["elevation"], values["distance"]), values["c2w"]) < 1e-4
    rays = camera_rays(values["c2w"], values["K"], case["size"], case["normalize"], case["scale"])
    assert relative(rays, values["rays"]) < 1e-4
    R, T = rays_to_cameras(rays, values["K"], case["size"])
    assert relative(R, vectors[f"{name}.recovered_R"]) < 1e-4
    assert relative(T, vectors[f"{name}.recovered_T"]) < 1e-4


def mixed_samples() -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    torch.manual_seed(1)
    shapes = [(2, 8, 12), (1, 16, 16), (2, 8, 12), (4, 8, 8), (2, 12, 8), (3, 8, 8)]
    samples = [torch.randn(frames, 16, h, w) for frames, h, w in shapes]
    timesteps = [torch.rand(len(sample)) * 1000 for sample in samples]
    text = [torch.randn(length, 32) for length in (5, 9, 5, 1, 7, 3)]
    return samples, timesteps, text


@pytest.mark.parametrize("soft_capping", [False, True])
def test_packed_samples_equal_samples_alone_with_their_gradients(
    soft_capping: bool, transformer: NextDiT, vectors: dict[str, Tensor]
) -> None:
    model = NextDiT(**DESCRIBED["transformer"], soft_capping=soft_capping)
    model.load_state_dict(transformer.state_dict())
    samples, timesteps, text = mixed_samples()

    packed = model.forward_packed(samples, timesteps, text)
    sum(output.square().mean() for output in packed).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    alone = [
        model(x[None], t[None], y[None], torch.ones(1, len(y), dtype=torch.int64))[0]
        for x, t, y in zip(samples, timesteps, text, strict=True)
    ]
    sum(output.square().mean() for output in alone).backward()
    for one, other in zip(packed, alone, strict=True):
        assert relative(one, other) < 1e-5
    assert len(gradients) == len(list(model.parameters()))
    # Some gradients are nothing but rounding (a bias on all keys cancels in the softmax): one scale for all.
    scale = max(float(parameter.grad.abs().max()) for parameter in model.parameters())
    for name, parameter in model.named_parameters():
        assert float((gradients[name] - parameter.grad).abs().max()) < 1e-5 * scale, name


def test_per_token_timesteps_equal_per_frame_ones(transformer: NextDiT, vectors: dict[str, Tensor]) -> None:
    x, t = vectors["forward1.samples"], vectors["forward1.timesteps"]
    text = [vectors[f"forward1.encoder_{key}"] for key in ("hidden_states", "attention_mask")]
    full = t[:, :, None, None, None].expand_as(x)
    with torch.no_grad():
        assert relative(transformer(x, full, *text), transformer(x, t, *text)) < 1e-5
        assert transformer(x[:, 0], t[:, 0], *text).shape == x[:, 0].shape


def test_soft_capping_is_on_in_half_precision_and_off_in_float(transformer: NextDiT) -> None:
    samples, timesteps, text = mixed_samples()
    # Larger weights make logits large enough for the cap to show.
    sharp = {
        k: v * 12 if k.endswith(("q_norm.weight", "k_norm.weight")) else v for k, v in transformer.state_dict().items()
    }

    def run(capping: bool | None, dtype: torch.dtype) -> Tensor:
        model = NextDiT(**DESCRIBED["transformer"], soft_capping=capping)
        model.load_state_dict(sharp)
        model.to(dtype)
        with torch.no_grad():
            return model.forward_packed([samples[0].to(dtype)], timesteps[:1], [text[0].to(dtype)])[0].float()

    assert torch.equal(run(None, torch.float32), run(False, torch.float32))
    assert relative(run(True, torch.float32), run(False, torch.float32)) > 0.02
    assert torch.equal(run(None, torch.bfloat16), run(True, torch.bfloat16))


def test_checkpointed_blocks_give_the_same_gradients(transformer: NextDiT) -> None:
    samples, timesteps, text = mixed_samples()
    found = []
    for checkpointing in (False, True):
        model = NextDiT(**DESCRIBED["transformer"])
        model.load_state_dict(transformer.state_dict())
        model.train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        sum(output.square().mean() for output in model.forward_packed(samples, timesteps, text)).backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert relative(found[1], found[0]) < 1e-6


def test_saved_and_loaded_again_it_is_the_same(transformer: NextDiT, tmp_path: Path) -> None:
    transformer.save_pretrained(tmp_path)
    again = NextDiT.from_pretrained(tmp_path, use_safetensors=True)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in transformer.state_dict().items())


def test_the_released_size_has_its_parameters() -> None:
    with torch.device("meta"):
        model = NextDiT(hidden_size=3840, depth=16, num_heads=32, num_kv_heads=8, caption_channels=2048, qk_norm=True)
    in_blocks = sum(parameter.numel() for parameter in model.layers.parameters())
    assert round(in_blocks / 1e9, 2) == 2.79


def test_a_mask_that_does_not_fit_is_refused(transformer: NextDiT, vectors: dict[str, Tensor]) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(**DESCRIBED["scheduler"])
    arguments = [vectors[f"sample_depth2image.{key}"] for key in ("prompt_embeds", "prompt_mask")]
    noise, known = (vectors[f"sample_depth2image.{key}"] for key in ("noise", "cond"))
    with pytest.raises(ValueError, match="for 2 frames"):
        sample_frames(transformer, scheduler, noise, known, [1, 0, 0], *arguments, 2)
    with pytest.raises(ValueError, match="1 known latents for 2"):
        sample_frames(transformer, scheduler, noise, known, [0, 0], *arguments, 2)
