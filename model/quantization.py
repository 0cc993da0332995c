"""Weights of the transformer in 8 bits, and how far its velocities are from those of the weights as they were.

Symbols as in docs/model.md: F frames, C latent channels, h × w latents, L prompt tokens, Y their width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from model.inputs import require

Quantization = Literal["int8", "fp8"]
CONFIGURATION = "quantization_config"  # in a model's config.json: its weights are torchao's
# Parts that stay as they are: they are small, or scale all that follows.
KEPT = ("x_embedder", "t_embedder", "y_embedder", "final_layer", "adaLN_modulation")
_SAMPLES, _SIDE, _TOKENS = 8, 16, 20


def quantized(cls: Any, folder: Path, kind: Quantization) -> Any:
    """The transformer, a `cls`, in a folder of diffusers, with its blocks' linear weights as torchao's: 8 bits, and a
    scale for each row. What is computed stays in bf16.

    Raises InputError without torchao.
    """
    require("torchao")
    from diffusers import TorchAoConfig
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

    config: Any = Int8WeightOnlyConfig(version=2) if kind == "int8" else Float8WeightOnlyConfig()
    described = TorchAoConfig(config, modules_to_not_convert=list(KEPT))
    return cls.from_pretrained(folder, torch_dtype=torch.bfloat16, quantization_config=described)


def is_quantized_linear(name: str, module: nn.Module) -> bool:
    """Whether a module of the transformer is one of those whose weights are stored in 8 bits."""
    return isinstance(module, nn.Linear) and not any(f".{part}." in f".{name}." for part in KEPT)


@torch.no_grad()
def velocities(transformer: Any) -> Tensor:
    """(samples, C, h, w) float32: of the same random samples at noise levels from clean to noise, for any weights."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for number in range(_SAMPLES):
        x = torch.randn(1, transformer.in_channels, _SIDE, _SIDE, generator=generator)
        y = torch.randn(_TOKENS, transformer.config.caption_channels, generator=generator)
        t = torch.tensor([1000.0 * (number + 0.5) / _SAMPLES])
        dtype = transformer.x_embedder.weight.dtype
        found.append(transformer.forward_packed([x.to(dtype)], [t], [y.to(dtype)])[0])
    return torch.cat(found).float()


def distance(found: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference, relative to that of what is expected."""
    return float((found - expected).norm() / expected.norm())
