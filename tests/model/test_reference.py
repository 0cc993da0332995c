"""The plain transformer that benchmarks compare with gives the published numbers too."""

from __future__ import annotations

import pytest
import torch
from reference_transformer import Reference
from reference_vectors import DESCRIPTION, cases, relative
from torch import Tensor

from model import NextDiT


@pytest.mark.parametrize("name", [n for n in cases("forward") if DESCRIPTION["cases"][n].get("scale_factor", 1) == 1])
def test_reference_transformer_matches_published_numbers(name: str, vectors: dict[str, Tensor]) -> None:
    model = Reference(**DESCRIPTION["transformer"])
    weights = {key.removeprefix("transformer."): value for key, value in vectors.items() if key.startswith("transf")}
    model.load_state_dict(weights, strict=True)
    keys = ("samples", "timesteps", "encoder_hidden_states", "encoder_attention_mask")
    with torch.no_grad():
        output = model(*(vectors[f"{name}.{key}"] for key in keys))
    assert relative(output, vectors[f"{name}.output"]) < 1e-4


def test_gradients_match_the_reference(vectors: dict[str, Tensor], transformer: NextDiT) -> None:
    keys = ("samples", "timesteps", "encoder_hidden_states", "encoder_attention_mask")
    gradients = []
    for model in (NextDiT(**DESCRIPTION["transformer"]), Reference(**DESCRIPTION["transformer"])):
        model.load_state_dict(transformer.state_dict())
        model(*(vectors[f"forward1.{key}"] for key in keys)).square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    ours, plain = gradients
    scale = max(float(grad.abs().max()) for grad in plain.values())
    for name, grad in plain.items():
        assert float((ours[name] - grad).abs().max()) < 1e-5 * scale, name
