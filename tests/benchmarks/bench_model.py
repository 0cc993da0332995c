"""`make bench-model`: the transformer against a plain one, and packs against padding, in forward and backward steps.

fp32 on the CPU, in this one process; every ratio but that with padding, which is large, is of medians of rounds that
alternate between what is compared.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from reference_transformer import Reference
from rich.console import Console
from rich.table import Table
from rounds import alternate
from torch import Tensor

from model import NextDiT
from training.flops import FlopCounter, SampleSize
from training.memory import keep_freed_memory

CONFIG = {
    "hidden_size": 768,
    "depth": 4,
    "num_heads": 8,
    "num_kv_heads": 2,
    "caption_channels": 768,
    "qk_norm": True,
    "rotary_max_length": 64,
    "rotary_max_length_t": 16,
}
BATCH, FRAMES, SIDE, TEXT = 2, 4, 32, 64
# (frames, h, w) of latents: text-to-image at 512², pairs at 256², four views with rays, pictures at other aspects.
MIXED = [(1, 64, 64), (2, 32, 32), (2, 32, 32), (2, 32, 32), (8, 32, 32), (1, 24, 42), (1, 40, 26), (1, 20, 50)]
TARGETS = {"step_ratio": 1.08, "matmul_attention_share": 0.93, "packed_vs_padded": 2.0, "packed_vs_single": 1.0}
_MATRIX = ("mm", "addmm", "bmm", "baddbmm", "mkldnn_linear", "linear", "matmul", "scaled_dot_product", "_flash_att")


def main(rounds: int = 7) -> None:
    torch.manual_seed(0)
    keep_freed_memory()  # as training does
    torch.set_num_threads(int(os.environ.get("THREADS", os.cpu_count() or 1)))
    model = NextDiT(**CONFIG)
    for parameter in model.parameters():  # gates that start at 0 would leave gradients out
        if not parameter.any():
            parameter.data.normal_(std=0.02)
    figures: dict[str, Any] = {}
    rate = matmul_rate()

    inputs = uniform_inputs()
    ours, plain = against_reference(model, inputs, rounds)
    figures["step_seconds"], figures["plain_step_seconds"] = ours, plain
    figures["step_ratio"] = plain / ours
    for _ in range(5):  # the steady state of a run, whose memory its first steps have touched
        step(model, inputs)
    figures["matmul_attention_share"] = matrix_share(lambda: step(model, inputs))
    tokens = FRAMES * (SIDE // 2) ** 2
    flops = FlopCounter(model).step(sizes_of([(FRAMES, SIDE, SIDE)] * BATCH))
    figures["tokens_per_second"] = BATCH * tokens / ours

    mixed = mixed_inputs(MIXED)
    largest = max(MIXED, key=count)
    padded = mixed_inputs([largest] * len(MIXED))
    single = [tuple([part] for part in one) for one in zip(*mixed, strict=True)]
    packed_time, single_time = alternate(
        [lambda: packed_step(model, [mixed]), lambda: packed_step(model, single)], rounds
    )
    # Less than padding costs: samples as large as the largest, without even a mask.
    (padded_time,) = alternate([lambda: packed_step(model, [padded])], 1)
    figures |= {
        "packed_seconds": packed_time,
        "packed_vs_padded": padded_time / packed_time,
        "packed_vs_single": single_time / packed_time,
        "padding_share": 1 - sum(map(count, MIXED)) / (len(MIXED) * count(largest)),
        "packed_tokens_per_second": sum(map(count, MIXED)) / packed_time,
        "flops_per_second": flops / ours,
        "packed_flops_per_second": FlopCounter(model).step(sizes_of(MIXED)) / packed_time,
        "matmul_flops_per_second": rate,
        "share_of_matmul_rate": flops / ours / rate,
        "packed_share_of_matmul_rate": FlopCounter(model).step(sizes_of(MIXED)) / packed_time / rate,
    }
    report(figures)


def against_reference(model: NextDiT, inputs: tuple[Tensor, ...], rounds: int) -> list[float]:
    """Seconds of our step and of the plain one, whose memory is given back here."""
    reference = Reference(**CONFIG)
    reference.load_state_dict(model.state_dict(), strict=True)
    assert_same(model, reference, inputs)
    return alternate([lambda: step(model, inputs), lambda: step(reference, inputs)], rounds)


def uniform_inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    samples = torch.randn(BATCH, FRAMES, 16, SIDE, SIDE)
    text = torch.randn(BATCH, TEXT, int(CONFIG["caption_channels"]))
    return samples, torch.rand(BATCH, FRAMES) * 1000, text, torch.ones(BATCH, TEXT, dtype=torch.int64)


def mixed_inputs(shapes: list[tuple[int, int, int]]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    samples = [torch.randn(frames, 16, h, w) for frames, h, w in shapes]
    text = [torch.randn(TEXT, int(CONFIG["caption_channels"])) for _ in shapes]
    return samples, [torch.rand(frames) * 1000 for frames, _, _ in shapes], text


def count(shape: tuple[int, int, int]) -> int:
    frames, h, w = shape
    return frames * (h // 2) * (w // 2)


def step(model: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
    model.zero_grad(set_to_none=True)
    model(*inputs).square().mean().backward()


def packed_step(model: NextDiT, packs: list[Any]) -> None:
    model.zero_grad(set_to_none=True)
    for pack in packs:
        sum(one.square().mean() for one in model.forward_packed(*pack)).backward()


def assert_same(model: NextDiT, reference: Reference, inputs: tuple[Tensor, ...]) -> None:
    """What is compared must compute the same, gradients too."""
    with torch.no_grad():
        torch.testing.assert_close(model(*inputs), reference(*inputs), atol=1e-4, rtol=1e-4)
    gradients = []
    for one in (model, reference):
        step(one, inputs)
        gradients.append(one.layers[0].attention.wq.weight.grad.clone())
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-3)


def matrix_share(work: Callable[[], None]) -> float:
    """Share of the profiled time of three steps inside matrix products and attention; the costliest go to stderr."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(3):
            work()
    events = [(event.key.removeprefix("aten::"), event.self_cpu_time_total) for event in profile.key_averages()]
    matrix = sum(own for name, own in events if name.startswith(_MATRIX) or "scaled_dot_product" in name)
    for name, own in sorted(events, key=lambda event: -event[1])[:14]:
        print(f"{own / sum(o for _, o in events):7.1%}  {name}", file=sys.stderr)
    return matrix / sum(own for _, own in events)


def matmul_rate(size: int = 2048, rounds: int = 5) -> float:
    """FLOP/s of a square product in fp32, the floor that a step is held against."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    (seconds,) = alternate([lambda: (a @ b, None)[1]], rounds)
    return float(2 * size**3 / seconds)


def sizes_of(shapes: list[tuple[int, int, int]]) -> list[SampleSize]:
    """Samples (F, h, w) as `FlopCounter` takes them."""
    return [SampleSize(count(shape), TEXT, shape[0]) for shape in shapes]


def report(figures: dict[str, Any]) -> None:
    table = Table("figure", "value", "target")
    for name, value in figures.items():
        table.add_row(name, f"{value:.3g}", f"≥ {TARGETS[name]}" if name in TARGETS else "")
    Console().print(table)
    out = Path("runs/bench/model.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    machine = {"cpu": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    out.write_text(json.dumps({**figures, "machine": machine, "torch": torch.__version__}, indent=1))
    missed = [name for name, target in TARGETS.items() if figures[name] < target]
    if missed:
        sys.exit(f"missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
