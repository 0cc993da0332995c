"""What a machine needs for the workers of a run on it, by arithmetic: memory and disk by part, seconds to save itself.

GPUs have their own account in `training.cost`; here is the memory of the host, by which pods and jobs are sized.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from training.config import TrainingConfig
from training.cost import ClusterSpec, Cost, configured_sharding, meta_model, run_cost
from training.memory import COMPILERS

if TYPE_CHECKING:
    from model.transformer import NextDiT

_GB = 1e9
# Resident bytes. A worker's imports take 0.39 GB (measured); the rest of its process, and what CUDA, cuBLAS and NCCL
# bring into one that uses a GPU, are allowed for, not measured.
_PROCESS, _CUDA_PROCESS = 0.8 * _GB, 4.0 * _GB
_READER = 0.6 * _GB  # a process that reads: Ray, pyarrow, numpy
_COMPILER = 0.4 * _GB  # a process that compiles kernels
_RAY = 1.5 * _GB  # raylet and agents of a machine
_OBJECTS = 2.0 * _GB  # at least for Ray's objects: the run's manifest among them
_NCCL = 1.0 * _GB  # shared memory through which the workers of a machine talk
_LOGS = 5.0 * _GB  # on disk
_CACHES = 2.5  # caches of a reader, as multiples of reader.cache_mb (training.reader)
_SPARE = 0.1
_HOST_GBYTES = 25.0  # a second, from a GPU to pinned memory
_STEPS_TO_STOP = 3  # from a notice to the checkpoint (training.coordinator)
_SAVED = 4  # float32 tensors for each weight: itself, its average, two moments of AdamW


@dataclass(frozen=True)
class HostNeeds:
    """Of one machine.

    memory: part → bytes, at the moment when they are at their most. shared_memory: bytes of them in /dev/shm, of which
    object_store are for Ray's objects. disk: part → bytes. checkpoint_seconds: from a notice that the machine goes
    until a checkpoint is whole, where each machine writes 1 GB a second.
    """

    memory: dict[str, float]
    object_store: float
    shared_memory: float
    disk: dict[str, float]
    checkpoint_seconds: float


def host_needs(config: TrainingConfig, workers: int, together: int) -> HostNeeds:
    """What a machine needs for `together` of a run's `workers`. Raises InputError as `run_cost` does."""
    cluster = ClusterSpec(gpus=workers, per_node=together, sharding=configured_sharding(config))
    cost = run_cost(config, cluster)
    on_gpu = config.workers.gpus > 0
    reads = config.reader.processes if config.reader.beside else 0  # processes on the machine of each worker
    in_worker = config.reader.processes == 0
    batches = cost.read * (config.reader.prefetch + 2) * 2  # encoded, and decoded beside it
    objects = _OBJECTS
    if config.reader.processes:  # batches pass through the object store, a quarter of which they may fill
        objects = max(objects, 4 * together * batches)
    shared = objects + (_NCCL * together if on_gpu else 0.0)
    common = {
        "processes of the workers": together * (_CUDA_PROCESS if on_gpu else _PROCESS),
        "batches read ahead": together * batches,
        "caches of the readers": together * (reads + in_worker) * _CACHES * (config.reader.cache_mb << 20),
        "processes that read": together * reads * _READER,
        "Ray itself": _RAY,
        "shared memory (Ray's objects, NCCL)": shared,
    }
    copies = _copies(meta_model(config), cluster.shards, pinned=on_gpu)
    running = {"copies of a checkpoint": together * copies}
    starting = {"weights while the model is built": together * 4.0 * cost.parameters}
    if on_gpu:
        running["processes that compile kernels"] = together * COMPILERS * _COMPILER
        running["encoders while they are loaded"] = together * _encoders(cost)
    else:  # what would lie on a GPU lies here
        running |= {part: together * size for part, size in cost.memory.items()}
    peak = max((starting, running), key=lambda parts: sum(parts.values()))
    memory = {part: size for part, size in {**peak, **common}.items() if size}
    return HostNeeds(
        memory={**memory, f"spare, {_SPARE:.0%}": _SPARE * sum(memory.values())},
        object_store=objects,
        shared_memory=shared,
        disk={"Ray's logs": _LOGS, "objects that Ray spills": objects, "models that are fetched": 2 * _encoders(cost)},
        checkpoint_seconds=_STEPS_TO_STOP * cost.step
        + cost.checkpoint_bytes / cluster.shards / (_HOST_GBYTES * _GB)
        + cost.checkpoint,
    )


def _encoders(cost: Cost) -> float:
    """Bytes of the encoders that a worker loads, as it computes with them."""
    return cost.memory.get("text encoder", 0.0) + cost.memory.get("autoencoder", 0.0)


def _copies(model: NextDiT, shards: int, pinned: bool) -> float:
    """Bytes of a worker's copies of its shards, into which a checkpoint is written beside training.

    torch rounds pinned memory up to powers of two, each tensor by itself (ATen/core/CachingHostAllocator.h).
    """
    total = 0
    for parameter in model.parameters():
        rows = -(-parameter.shape[0] // shards) if parameter.ndim else 1
        size = 4 * rows * (parameter[0].numel() if parameter.ndim else 1)
        total += 1 << (size - 1).bit_length() if pinned else size
    return float(_SAVED * total)
