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
from torch import Tensor

from model import NextDiT
from model import transformer as transformer_module
from training.batch import Sample
from training.config import TrainingConfig
from training.flops import SampleSize

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
        return 512 if self.small else 16384

    @property
    def training(self) -> TrainingConfig:
        """A run's configuration: how steps are done. The model is what `build` makes."""
        return TrainingConfig(
            name="bench-gpu",
            steps=1_000_000,
            batch=1,
            size=512,
            mixture={"a": {"dataset": "none", "tasks": ["text2image"]}},
            optimizer={"learning_rate": 1e-5, "warmup": 0},
            workers={"precision": "bf16", "fsdp": True},
        )

    def autocast(self) -> torch.autocast:
        """What a worker computes in, but for float32."""
        return torch.autocast(self.device, torch.bfloat16)


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


def sizes_of(samples: list[Sample]) -> list[SampleSize]:
    """As `FlopCounter` takes them."""
    return [SampleSize(sample.tokens, len(sample.text), len(sample.sigmas)) for sample in samples]


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
