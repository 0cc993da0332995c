"""NextDiT against numbers of the published code, and packed samples against samples alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from packs import mixed_samples
from reference_vectors import DESCRIPTION, cases, relative
from torch import Tensor

from model import NextDiT


@pytest.mark.parametrize("name", cases("forward"))
def test_forward_matches_published_numbers(name: str, vectors: dict[str, Tensor], transformer: NextDiT) -> None:
    keys = ("samples", "timesteps", "encoder_hidden_states", "encoder_attention_mask")
    case = {key: value for key, value in DESCRIPTION["cases"][name].items() if key.startswith("scale_")}
    with torch.no_grad():
        output = transformer(*(vectors[f"{name}.{key}"] for key in keys), **case)
    assert relative(output, vectors[f"{name}.output"]) < 1e-4


@pytest.mark.parametrize("soft_capping", [False, True])
def test_packed_samples_equal_samples_alone_with_their_gradients(
    soft_capping: bool, transformer: NextDiT, vectors: dict[str, Tensor]
) -> None:
    model = NextDiT(**DESCRIPTION["transformer"], soft_capping=soft_capping)
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
        model = NextDiT(**DESCRIPTION["transformer"], soft_capping=capping)
        model.load_state_dict(sharp)
        model.to(dtype)
        with torch.no_grad():
            return model.forward_packed([samples[0].to(dtype)], timesteps[:1], [text[0].to(dtype)])[0].float()

    assert torch.equal(run(None, torch.float32), run(False, torch.float32))
    assert relative(run(True, torch.float32), run(False, torch.float32)) > 0.02
    assert torch.equal(run(None, torch.bfloat16), run(True, torch.bfloat16))


def test_checkpointed_blocks_give_the_same_gradients(transformer: NextDiT) -> None:
    samples, timesteps, text = mixed_samples()
    gradients = []
    for checkpointing in (False, True):
        model = NextDiT(**DESCRIPTION["transformer"])
        model.load_state_dict(transformer.state_dict())
        model.train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        sum(output.square().mean() for output in model.forward_packed(samples, timesteps, text)).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert relative(gradients[1], gradients[0]) < 1e-6


def test_save_and_load_preserve_output(transformer: NextDiT, tmp_path: Path) -> None:
    transformer.save_pretrained(tmp_path)
    again = NextDiT.from_pretrained(tmp_path, use_safetensors=True)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in transformer.state_dict().items())


def test_released_size_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = NextDiT(hidden_size=3840, depth=16, num_heads=32, num_kv_heads=8, caption_channels=2048, qk_norm=True)
    in_blocks = sum(parameter.numel() for parameter in model.layers.parameters())
    assert round(in_blocks / 1e9, 2) == 2.79


@pytest.mark.slow
def test_forward_compiles_to_one_graph(vectors: dict[str, Tensor]) -> None:
    arguments = [
        vectors[f"forward1.{key}"]
        for key in ("samples", "timesteps", "encoder_hidden_states", "encoder_attention_mask")
    ]
    model = NextDiT(**{**DESCRIPTION["transformer"], "depth": 1})
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert relative(compiled(*arguments), model(*arguments)) < 1e-5
    gradients = []
    for one in (compiled, model):
        model.zero_grad()
        one(*arguments).square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert relative(*gradients) < 1e-5


def test_autocast_trains_packs(transformer: NextDiT) -> None:
    samples, timesteps, text = mixed_samples()
    model = NextDiT(**DESCRIPTION["transformer"])
    model.load_state_dict(transformer.state_dict())
    expected = model.forward_packed(samples, timesteps, text)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model.forward_packed(samples, timesteps, text)
        sum(output.float().square().mean() for output in outputs).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    for one, other in zip(outputs, expected, strict=True):
        assert relative(one.float(), other) < 0.05


def test_training_follows_sampling_in_one_process(transformer: NextDiT) -> None:
    x, t, y = torch.randn(1, 16, 20, 4), torch.tensor([500.0]), torch.randn(2, 32)
    with torch.inference_mode():
        transformer.forward_packed([x], [t], [y])
    transformer.forward_packed([x], [t], [y])[0].sum().backward()
    transformer.zero_grad()


def test_initial_weights_are_drawn_as_published() -> None:
    model = NextDiT(**DESCRIPTION["transformer"])
    for layer in model.layers:
        assert not layer.feed_forward.w2.weight.any() and not layer.attention.gate.any()
        bound = (6 / sum(layer.feed_forward.w1.weight.shape)) ** 0.5  # Xavier
        assert 0.95 * bound < float(layer.feed_forward.w1.weight.abs().max().detach()) <= bound


def test_importing_the_package_does_not_import_torch() -> None:
    subprocess.run([sys.executable, "-c", "import model, sys; assert 'torch' not in sys.modules"], check=True)
