"""DDP, FSDP2 over all and FSDP2 within nodes train what one process trains: real processes, joined by gloo."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from free_ports import free_ports

from model.inputs import InputError
from training.batch import Sample, StepBatch
from training.config import TrainingConfig, WorkersConfig
from training.packed_model import build_model
from training.parallel import distribute
from training.plan.packing import deal_to_one
from training.updates import Updates

pytestmark = [pytest.mark.slow, pytest.mark.long]
STEPS, SAMPLES, BUDGET = 20, 8, 48  # some steps have several packs for each of up to four processes
SHAPES = [(1, 8, 8), (2, 8, 8), (2, 6, 10), (1, 10, 6)]  # F, h, w of latents


class Result(NamedTuple):
    """Of a run: the loss, norm and gradient, (steps, P), of each step, the weights and averages at the end, local sizes
    of shards."""

    losses: list[float]
    norms: list[float]
    gradients: torch.Tensor
    weights: dict[str, torch.Tensor]
    averages: dict[str, torch.Tensor]
    local_share: float


def settings(**workers: Any) -> TrainingConfig:
    return TrainingConfig(
        name="parallel",
        steps=STEPS,
        batch=SAMPLES,
        size=64,
        mixture={"a": {"dataset": "none", "tasks": ["text2image"]}},
        model={"hidden_size": 48, "depth": 2, "num_heads": 4, "num_kv_heads": 2, "caption_channels": 16},
        optimizer={"warmup": 4, "learning_rate": 1e-3, "ema": 0.9},
        workers={"pack_tokens": BUDGET, **workers},
    )


def samples(step: int) -> list[Sample]:
    """Of a step: the same for everyone."""
    draws = np.random.default_rng(step)
    made = []
    for _ in range(SAMPLES):
        frames, h, w = SHAPES[draws.integers(len(SHAPES))]
        latents = draws.standard_normal((frames, 16, h, w)).astype(np.float16)
        text = draws.standard_normal((int(draws.integers(2, 7)), 16)).astype(np.float16)
        sigmas = draws.random(frames).astype(np.float32)
        seed = int(draws.integers(1 << 30))
        made.append(Sample("text2image", latents, text, sigmas, np.ones(frames, bool), seed))
    return made


def train_all(rank: int, count: int, port: int, ways: list[tuple[int, TrainingConfig]]) -> list[Result]:
    """What one process of `count` does: a run by each (processes on a node, configuration), one after the other."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=count)
    results = [train(rank, count, local, config) for local, config in ways]
    torch.distributed.destroy_process_group()
    return results


def train(rank: int, count: int, local: int, config: TrainingConfig) -> Result:
    """One run. What it returns is the same for every rank."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    device = torch.device("cpu")
    model = build_model(config)
    for parameter in model.parameters():  # what begins at zero would hide a part of the model
        if not parameter.any():
            parameter.data.normal_(std=0.05)
    whole = sum(parameter.numel() for parameter in model.parameters())
    model = distribute(model, config.workers, device, local)
    updates = Updates(model, config, device, count)
    losses, norms, gradients, passes = [], [], [], []
    for step in range(STEPS):
        of_step = samples(step)
        counted = sum(int(sample.in_loss.sum()) for sample in of_step)
        dealt = deal_to_one([sample.tokens for sample in of_step], BUDGET, count, rank)[0]
        packs = [[of_step[place] for place in pack] for pack in dealt]
        passes.append(len(packs))
        loss = torch.zeros(())

        def add(pack: list[Sample], parts: torch.Tensor, frames: int, loss: torch.Tensor = loss) -> None:
            loss += parts.sum() / frames

        norms.append(float(updates.update(StepBatch(step, packs, counted), add)))
        gradients.append(torch.cat([_whole(parameter.grad).flatten() for parameter in model.parameters()]))
        if count > 1:
            torch.distributed.all_reduce(loss)
        losses.append(float(loss))
    assert max(passes) > 1, "no gradients are added up"
    options = StateDictOptions(full_state_dict=True)
    weights = {name: value.clone() for name, value in get_model_state_dict(model, options=options).items()}
    with updates.average.applied():
        averages = {name: value.clone() for name, value in get_model_state_dict(model, options=options).items()}
    local_count = sum(
        (parameter.to_local() if hasattr(parameter, "to_local") else parameter).numel()
        for parameter in model.parameters()
    )
    return Result(losses, norms, torch.stack(gradients), weights, averages, local_count / whole)


def _whole(gradient: Any) -> torch.Tensor:
    return gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient


WAYS: dict[int, list[tuple[int, dict[str, Any], float]]] = {
    # processes: those that take themselves for one node, settings, share of the weights that each has
    2: [(2, {}, 1.0), (2, {"fsdp": True}, 1 / 2)],
    4: [
        (4, {}, 1.0),
        (4, {"fsdp": True, "gradient_checkpointing": True}, 1 / 4),
        (2, {"fsdp": True, "shard": "node"}, 1 / 2),
    ],
}
IMPORTED = [
    "model.transformer",
    "training.updates",
    "torch.distributed.fsdp",
    "torch.distributed.checkpoint.state_dict",
]


@pytest.fixture(scope="module")
def one() -> Result:
    torch.set_num_threads(1)
    return train(0, 1, 1, settings())


@pytest.fixture(scope="module")
def together() -> Callable[[int], list[Result]]:
    """The results of all ways of so many processes, in order."""

    @cache
    def run(count: int) -> list[Result]:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(IMPORTED)  # once, not by each of them
        (port,) = free_ports(1)
        ways = [(local, settings(**workers)) for local, workers, _ in WAYS[count]]
        arguments = [(rank, count, port, ways) for rank in range(count)]
        with context.Pool(count) as pool:
            return pool.starmap_async(train_all, arguments, chunksize=1).get(timeout=600)[0]

    return run


@pytest.mark.parametrize(("count", "way"), [(count, way) for count in WAYS for way in range(len(WAYS[count]))])
def test_processes_together_train_what_one_trains(
    one: Result, together: Callable[[int], list[Result]], count: int, way: int
) -> None:
    result = together(count)[way]
    assert result.losses == pytest.approx(one.losses, rel=1e-5)
    assert result.norms == pytest.approx(one.norms, rel=1e-5)
    apart = (result.gradients - one.gradients).norm(dim=1) / one.gradients.norm(dim=1)
    assert float(apart.max()) < 1e-5
    for found, expected in ((result.weights, one.weights), (result.averages, one.averages)):
        assert found.keys() == expected.keys()
        difference = sum(float((found[name] - expected[name]).square().sum()) for name in expected) ** 0.5
        assert difference < 1e-4 * sum(float(value.square().sum()) for value in expected.values()) ** 0.5
    assert result.local_share == pytest.approx(WAYS[count][way][2], rel=0.02)
    assert one.losses[-1] != pytest.approx(one.losses[0], rel=1e-3)


def test_nodes_of_different_sizes_cannot_have_a_copy_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    config = settings(fsdp=True, shard="node")
    with pytest.raises(InputError, match="3 workers are not the same number on every node"):
        distribute(build_model(config), WorkersConfig(fsdp=True, shard="node"), torch.device("cpu"), 2)


def test_timesteps_reach_their_embedding_unrounded_where_weights_are_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """FSDP2 casts what a module is given to the type of its weights unless it is told not to: 997.3 would be 996."""
    from torch.distributed import fsdp

    reductions = []

    def as_on_cuda(half: Any, reduction: torch.dtype, **options: Any) -> Any:
        reductions.append(reduction)
        return policy(torch.bfloat16, reduction, **options)

    policy = fsdp.MixedPrecisionPolicy
    monkeypatch.setattr(fsdp, "MixedPrecisionPolicy", as_on_cuda)
    config = settings(fsdp=True, precision="bf16")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model = distribute(build_model(config), config.workers, torch.device("cpu"), 1)
        embedded = []
        embedder = model.transformer.t_embedder
        embedder.register_forward_pre_hook(
            lambda module, inputs: embedded.append((inputs[0], next(module.parameters()).dtype))
        )
        with suppress(RuntimeError), torch.autocast("cpu", torch.bfloat16):  # norms need more on a CPU
            model([torch.zeros(1, 16, 8, 8)], [torch.tensor([997.3])], [torch.zeros(3, 16)])
    finally:
        torch.distributed.destroy_process_group()
    timesteps, weights = embedded[0]
    assert weights == torch.bfloat16 and reductions == [torch.float32]
    assert timesteps.dtype == torch.float32 and float(timesteps[0]) == pytest.approx(997.3)
