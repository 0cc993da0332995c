"""What a machine needs for a run's workers, by hand and beside what a worker was seen to take."""

from __future__ import annotations

import math
from typing import Any

import pytest

from training.config import TrainingConfig, load_config
from training.cost import ClusterSpec, meta_model, run_cost
from training.host_memory import HostNeeds, host_needs
from training.memory import COMPILERS

GIB = 1 << 30


def stage1(**workers: Any) -> TrainingConfig:
    return load_config("stage1-256", {"workers": workers})


def small(**more: Any) -> TrainingConfig:
    """A few thousand weights, on a CPU as configured."""
    model = {"hidden_size": 48, "depth": 2, "num_heads": 2, "num_kv_heads": 2, "multiple_of": 16}
    return load_config("debug", {"model": model, **more})


def test_first_checkpoint_of_the_published_model_is_counted() -> None:
    """Weights, averages and two moments in float32, of each worker its shard, each tensor rounded up for a GPU."""
    config = stage1()
    needs = host_needs(config, 64, 8)
    copies = 0
    for parameter in meta_model(config).parameters():
        rows = math.ceil(parameter.shape[0] / 8)
        size = rows * parameter[0].numel() * 4 if parameter.ndim > 1 else rows * 4
        copies += 4 * 2 ** math.ceil(math.log2(size))
    assert needs.memory["copies of a checkpoint"] == 8 * copies
    exact = run_cost(config, ClusterSpec(64, sharding="node")).checkpoint_host_bytes
    assert exact < needs.memory["copies of a checkpoint"] < 2 * exact
    assert needs.memory["processes that compile kernels"] == pytest.approx(8 * COMPILERS * 0.4e9)
    assert needs.memory["spare, 10%"] == pytest.approx(sum(needs.memory.values()) / 11)
    assert 120 * GIB < sum(needs.memory.values()) < 240 * GIB


def total(needs: HostNeeds) -> float:
    return sum(needs.memory.values())


def test_memory_follows_workers_shards_and_readers() -> None:
    node, everywhere = host_needs(stage1(), 64, 8), host_needs(stage1(shard="all"), 64, 8)
    assert everywhere.memory["weights while the model is built"] == pytest.approx(8 * 4 * 2.80e9, rel=0.01)
    assert total(everywhere) < total(node)  # the copies are of an eighth of the shards
    whole = host_needs(stage1(fsdp=False), 64, 8)
    assert total(whole) > 8 * 16 * 2.8e9  # every worker copies everything
    # Shards over the workers of a machine: whatever their number, a machine copies all of it.
    one = host_needs(stage1(), 64, 1)
    assert one.memory["copies of a checkpoint"] == pytest.approx(node.memory["copies of a checkpoint"], rel=0.1)
    assert total(one) < total(node)
    config = load_config("stage1-256", {"reader": {"processes": 4}})
    reads = host_needs(config, 64, 8)
    assert reads.memory["processes that read"] == pytest.approx(32 * 0.6e9)
    assert reads.memory["caches of the readers"] == 4 * node.memory["caches of the readers"]
    apart = host_needs(load_config("stage1-256", {"reader": {"processes": 4, "beside": False}}), 64, 8)
    assert not {"processes that read", "caches of the readers"} & apart.memory.keys()
    stored = load_config("stage1-256", {"mixture": {"pictures": {"text": "stored"}}})
    assert "encoders while they are loaded" not in host_needs(stored, 64, 8).memory
    assert host_needs(stored, 64, 8).disk["models that are fetched"] == 0


def test_run_on_cpus_has_on_the_machine_what_a_gpu_would_have() -> None:
    config = small()
    needs, cost = host_needs(config, 2, 2), run_cost(config, ClusterSpec(2, per_node=2, sharding="none"))
    for part in ("weights", "gradients", "optimizer", "average", "activations"):
        assert needs.memory[part] == pytest.approx(2 * cost.memory[part])
    assert not {"processes that compile kernels", "encoders while they are loaded"} & needs.memory.keys()
    exact = 4 * 4 * 2 * sum(parameter.numel() for parameter in meta_model(config).parameters())
    assert needs.memory["copies of a checkpoint"] == exact
    assert needs.shared_memory == needs.object_store


def test_shared_memory_is_a_part_of_the_memory_and_holds_rays_objects() -> None:
    needs = host_needs(stage1(), 64, 8)
    assert needs.memory["shared memory (Ray's objects, NCCL)"] == needs.shared_memory == needs.object_store + 8e9
    assert needs.disk["objects that Ray spills"] == needs.object_store


def test_checkpoint_takes_longer_on_fewer_machines() -> None:
    eight, two = (host_needs(stage1(count=8 * machines), 8 * machines, 8) for machines in (8, 2))
    state = 16 * 2.8e9
    assert two.checkpoint_seconds > state / 2e9
    assert state / 8e9 < eight.checkpoint_seconds < two.checkpoint_seconds
