"""FLOP counted by arithmetic, beside those that torch counts in the kernels it runs."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from model import NextDiT
from pipelines.train import speed_line
from training.batch import Sample
from training.flops import FlopCounter, SampleSize, peak_flops
from training.lora import LoraConfig, add_adapter
from training.step_metrics import StepMetrics


@pytest.mark.parametrize(("depth", "adapter"), [(2, False), (8, True)])
def test_flop_of_a_step_are_those_that_torch_counts(depth: int, adapter: bool) -> None:
    torch.manual_seed(0)
    model = NextDiT(hidden_size=192, depth=depth, num_heads=4, num_kv_heads=2, multiple_of=16, caption_channels=64)
    flops = FlopCounter(model, frozen=adapter)
    if adapter:
        add_adapter(model, LoraConfig(rank=1), half=False)
    frames, side, length = 2, 16, 12
    counter = FlopCounterMode(display=False)
    latents, times = torch.randn(frames, 16, side, side), torch.rand(frames) * 1000
    with counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        (velocity,) = model.forward_packed([latents], [times], [torch.randn(length, 64)])
        velocity.square().sum().backward()
    tokens = frames * (side // 2) ** 2
    counted = flops.step([SampleSize(tokens, length, frames)])
    # What is small is left out of the arithmetic: timesteps, text, adapters, and inputs without a gradient.
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_metrics_say_the_rate_and_known_devices_their_share() -> None:
    model = NextDiT(hidden_size=24, depth=1, num_heads=2, multiple_of=8, caption_channels=8)
    flops = FlopCounter(model)
    metrics = StepMetrics(("text2image",), torch.device("cpu"), flops)
    sample = Sample(
        "text2image",
        np.zeros((1, 16, 8, 8), np.float16),
        np.zeros((3, 8), np.float16),
        np.zeros(1, np.float32),
        np.ones(1, bool),
        0,
    )
    metrics.peak = 1e6
    metrics.add_pack([sample, sample], torch.ones(2), 2)
    metrics.end_step(0.0, 0.5)
    values = metrics.reduce()
    rate = 2 * flops.step([SampleSize(16, 3, 1)]) / 0.5
    assert values["tflops_per_second"] == pytest.approx(rate / 1e12, abs=1e-6)
    assert values["tflop_per_step"] == pytest.approx(rate / 2 / 1e12, abs=1e-6)
    assert values["mfu"] == pytest.approx(rate / 1e6, rel=0.01)
    line = speed_line({**values, "wait_share": 0.02, "mfu": 0.281})
    assert re.fullmatch(
        r"64 image tokens/s, \S+ TFLOP a step, \S+ TFLOP/s, 2% of the time waiting for data, MFU 28%", line
    )
    assert "MFU" not in speed_line({name: value for name, value in values.items() if name != "mfu"})
    assert speed_line({"loss": 1.0}) == "", "metrics of before have no FLOP of a step"
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12 and peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("") is None
