"""What the sections of `make bench-gpu` share: sizes, packs, models, clocks and counts of FLOP."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from model import NextDiT
from model import transformer as transformer_module
from training.batch import Sample

# Dense bf16 FLOP/s of the tensor cores, by a part of the device's name; the first that fits is taken.
PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
    "A10": 125e12,
    "L40": 181e12,
    "L4": 121e12,
}
PUBLISHED = {"hidden_size": 3840, "depth": 16, "num_heads": 32, "num_kv_heads": 8, "caption_channels": 2048}
TINY = {"hidden_size": 96, "depth": 2, "num_heads": 4, "num_kv_heads": 2, "caption_channels": 32, "multiple_of": 16}
# Latents (F, h, w) of pairs at 512² and 256² and at the aspects next to them, and how many of each make about 16,000
# tokens.
SHAPES = [(2, 64, 64), (2, 56, 72), (2, 72, 56), (2, 32, 32), (2, 28, 36), (2, 36, 28), (2, 24, 42), (1, 32, 32)]


class Missed(Exception):
    """Figures that are not as they must be, which are shown all the same."""

    def __init__(self, why: str, figures: dict[str, Any]) -> None:
        super().__init__(why)
        self.figures = figures


def require(holds: bool, why: str, figures: dict[str, Any]) -> None:
    """Raise Missed unless it holds."""
    if not holds:
        raise Missed(why, figures)


@dataclass(frozen=True)
class Setting:
    """device: "cuda" or, for small sizes only, "cpu"."""

    device: str
    small: bool

    @property
    def cuda(self) -> bool:
        return self.device == "cuda"

    @property
    def config(self) -> dict[str, Any]:
        return {**(TINY if self.small else PUBLISHED), "qk_norm": True}

    @property
    def tokens(self) -> int:
        """Of a pack, about."""
        return 2048 if self.small else 16384


class Packed(nn.Module):
    """NextDiT with the packed form as its `forward`, as the training worker wraps it."""

    def __init__(self, transformer: NextDiT) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, samples: list[Tensor], timesteps: list[Tensor], text: list[Tensor]) -> list[Tensor]:
        return list(self.transformer.forward_packed(samples, timesteps, text))


def build(setting: Setting, depth: int | None = None, **arguments: Any) -> NextDiT:
    """A random model on the device, with nothing left at zero that would hide a part of it."""
    torch.manual_seed(0)
    with torch.device(setting.device):
        model = NextDiT(**{**setting.config, **({"depth": depth} if depth else {}), **arguments})
        for parameter in model.parameters():
            if not parameter.any():
                parameter.data.normal_(std=0.02)
    return model


def samples_of(setting: Setting, seed: int, tokens: int | None = None) -> list[Sample]:
    """A mixed pack of about so many tokens, in shapes and text lengths that only this seed has."""
    draws = np.random.default_rng(seed)
    left, found = tokens or setting.tokens, []
    while left > 0:
        frames, h, w = SHAPES[draws.integers(len(SHAPES))] if left >= 2048 else (2, 32, 32)
        length = int(draws.integers(8, 300))
        found.append(
            Sample(
                "text2image",
                draws.standard_normal((frames, 16, h, w)).astype(np.float16),
                draws.standard_normal((length, setting.config["caption_channels"])).astype(np.float16),
                draws.random(frames).astype(np.float32),
                np.ones(frames, bool),
                int(draws.integers(1 << 30)),
            )
        )
        left -= found[-1].tokens
    return found


def inputs_of(samples: list[Sample], device: str) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """As forward_packed takes them."""
    return (
        [torch.from_numpy(s.latents).to(device).float() for s in samples],
        [1000 * torch.from_numpy(s.sigmas).to(device) for s in samples],
        [torch.from_numpy(s.text).to(device).float() for s in samples],
    )


@contextmanager
def by_groups(yes: bool = True) -> Iterator[None]:
    """Dense attention by groups of one shape, as on a CPU, or (False) the one kernel for a whole pack."""
    with mock.patch.object(transformer_module, "_in_one_kernel", return_value=not yes):
        yield


def step_flops(model: NextDiT, samples: list[Sample], recomputed: bool = False) -> float:
    """FLOP of forward and backward: 2 for each weight and token in products, 4·D for each pair of tokens that meet.

    Backward counts twice the forward; recomputed: the forward of the blocks once more, as checkpointing does.
    """
    block, width, depth = model.layers[0], model.config.hidden_size, len(model.layers)
    attention, ff = block.attention, block.feed_forward
    by_image = sum(z.weight.numel() for z in (attention.wq, attention.wk, attention.wv, attention.wo))
    by_image += sum(z.weight.numel() for z in (ff.w1, ff.w2, ff.w3))
    by_text = attention.wk_y.weight.numel() + attention.wv_y.weight.numel()
    by_frame = block.adaLN_modulation[1].weight.numel()
    ends = model.x_embedder.weight.numel() + model.final_layer.linear.weight.numel()
    blocks = outside = 0.0
    for sample in samples:
        n, L = sample.tokens, len(sample.text)
        blocks += depth * (2 * (by_image * n + by_text * L + by_frame * len(sample.sigmas)) + 4 * n * (n + L) * width)
        outside += 2 * n * ends
    return (4 if recomputed else 3) * blocks + 3 * outside


def peak_flops() -> float | None:
    """Of this device in dense bf16, None where its name says nothing."""
    name = torch.cuda.get_device_name()
    return next((peak for part, peak in PEAKS.items() if part in name), None)


def synchronize(setting: Setting) -> None:
    if setting.cuda:
        torch.cuda.synchronize()


def timed(setting: Setting, work: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds, result) of one call, the device's work included."""
    synchronize(setting)
    began = time.perf_counter()
    result = work()
    synchronize(setting)
    return time.perf_counter() - began, result


def median_seconds(setting: Setting, work: Callable[[], Any], rounds: int = 5) -> float:
    """Median of some calls after one that warms up."""
    return float(np.median([timed(setting, work)[0] for _ in range(rounds + 1)][1:]))


def relative_norm(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ / ‖expected‖ in float32; nan stays nan."""
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def gigabytes(size: float) -> float:
    return size / 2**30
