"""How a job's workers are laid out on pods: a pod is a machine of a pool, or the part of one that the job needs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from cluster.kubernetes_target import KubernetesTarget, Pool
from cluster.target_fields import MemoryQuantity, quantity_bytes
from cluster.work import MachineNeeds, ResourceRequest, Work
from model.inputs import InputError, nearest

GIB = 1 << 30
LEAST_MEMORY, MEMORY_OF_CPU = 16 * GIB, 4 * GIB  # of a pod, where neither the target nor the run says more
DISK = 10 * GIB
SHARED = 0.4  # of a pod's memory may be /dev/shm: Ray's objects take 30 % of it


@dataclass(frozen=True)
class PodShape:
    """The pods of a job's workers.

    pool_key: of the target. min_pods, max_pods: of them; workers: on each. cpus, gpus, memory, shared_memory: of each;
    disk: bytes asked for, 0 for none. is_machine: it has all GPUs of a machine, and so its other devices.
    needs: what is known of the workers on one, None where nothing is. named: the job itself names their memory.
    """

    pool_key: str
    pool: Pool
    min_pods: int
    max_pods: int
    workers: int
    cpus: float
    gpus: int
    memory: MemoryQuantity
    shared_memory: MemoryQuantity
    disk: int
    is_machine: bool
    needs: MachineNeeds | None = None
    named: bool = False


def pod_shape(target: KubernetesTarget, work: Work) -> PodShape:
    """The pods of a piece of work. Raises InputError, with the figure that would do, for a pool that is too small."""
    key, pool = pool_of(target, work.resources)
    request = work.resources
    # A part of a GPU comes from one GPU; what is left of that one may be too little for another worker.
    gpus = 1 / math.floor(1 / request.gpus + 1e-9) if 0 < request.gpus < 1 else request.gpus
    fits = 1 if _names_machines(work) else _fitting(key, pool, work, gpus)
    max_pods = math.ceil(request.max_workers / fits)
    workers = math.ceil(request.max_workers / max_pods)
    gpus_of_pod = math.ceil(workers * gpus - 1e-9)
    share = min(1.0, gpus_of_pod / pool.gpus) if pool.gpus > 1 else 1.0
    cpus = max(share * pool.cpus, workers * request.cpus)
    needs = work.needs(workers) if work.needs else None
    if target.cluster:  # its pods are there already, however large they are
        pool = pool.model_copy(update={"memory": pool.memory or default_memory(pool.cpus)})
    memory, named = _memory(key, pool, work, workers, share, cpus, needs)
    needed = sum(needs.disk.values()) if needs else DISK
    if pool.disk and needs and quantity_bytes(pool.disk) < needed:
        raise InputError(
            f"{key}.disk {pool.disk} of the target is too little: a pod needs {_parts(needs.disk)}; "
            f"{_gib(needed)} would do"
        )
    return PodShape(
        pool_key=key,
        pool=pool,
        min_pods=math.ceil(request.min_workers / workers),
        max_pods=max_pods,
        workers=workers,
        cpus=cpus,
        gpus=gpus_of_pod,
        memory=memory,
        shared_memory=_shared_memory(key, pool, memory, needs),
        # Kueue admits no pod that asks for what its queue has no quota of, so there the target has to say it.
        disk=0 if target.queue else math.ceil(needed),
        is_machine=gpus_of_pod >= pool.gpus,
        needs=needs,
        named=named,
    )


def _names_machines(work: Work) -> bool:
    """Whether workers are machines: those of all but trainings are, where the job does not say what is on each."""
    request = work.resources
    return work.kind != "train" and not request.gpus and not request.memory_gb and request.cpus <= 1


def machine_shape(key: str, pool: Pool, pods: tuple[int, int], queue: str | None) -> PodShape:
    """Whole machines of a pool, for whatever jobs come: from so many to so many."""
    memory = pool.memory or default_memory(pool.cpus)
    return PodShape(
        pool_key=key,
        pool=pool,
        min_pods=pods[0],
        max_pods=pods[1],
        workers=0,
        cpus=pool.cpus,
        gpus=pool.gpus,
        memory=memory,
        shared_memory=pool.shared_memory or default_shared_memory(memory),
        disk=0 if queue else DISK,
        is_machine=True,
    )


def pool_of(target: KubernetesTarget, request: ResourceRequest) -> tuple[str, Pool]:
    """(key in the target, pool) for workers that ask for this. Raises InputError for a type that no pool has."""
    if request.gpu_type:
        if request.gpu_type not in target.gpu_pools:
            names = list(target.gpu_pools)
            known = nearest(request.gpu_type, names) or ("; there are " + ", ".join(names) if names else "")
            raise InputError(
                f"workers.gpu_type {request.gpu_type}: the target has no such pool in `gpu_pools`{known}; leave it out "
                "for `gpu_pool`"
            )
        if not request.gpus:
            raise InputError(f"workers.gpu_type {request.gpu_type}: names GPUs, and workers.gpus asks for none")
        return f"gpu_pools.{request.gpu_type}", target.gpu_pools[request.gpu_type]
    key = "gpu_pool" if request.gpus else "cpu_pool"
    return key, target.pools[key]


def default_memory(cpus: float) -> MemoryQuantity:
    """Of a pod with so many CPUs, where nobody says."""
    return _gib(max(LEAST_MEMORY, MEMORY_OF_CPU * cpus))


def default_shared_memory(memory: MemoryQuantity) -> MemoryQuantity:
    """Shared memory of a pod, where nobody says."""
    return f"{int(quantity_bytes(memory) * SHARED) >> 20}Mi"


def memory_lines(shape: PodShape) -> list[str]:
    """The sum of a pod's memory by part, for people; nothing where it is not known."""
    if not shape.needs:
        return []
    rows = [(part, f"{size / GIB:.1f} GiB") for part, size in shape.needs.memory.items()]
    rows.append(("together", f"{sum(shape.needs.memory.values()) / GIB:.1f} GiB"))
    says = "the job's" if shape.named else f"{shape.pool_key}.memory" if shape.pool.memory else "by this sum"
    rows.append(("asked for", f"{shape.memory} ({says})"))
    width = max(len(part) for part, _ in rows)
    return [f"{part:<{width}}  {size}" for part, size in rows]


def remarks(target: KubernetesTarget, shape: PodShape) -> list[str]:
    """What may go wrong with a job's pods though nothing refuses them."""
    lines = []
    needs, key = shape.needs, shape.pool_key
    if needs and shape.named and sum(needs.memory.values()) > quantity_bytes(shape.memory):
        lines.append(
            f"the job names {shape.memory} for a pod of {shape.workers} workers, which need "
            f"{_gib(sum(needs.memory.values()))} by arithmetic; leave out workers.memory_gb, or expect them to be ended"
        )
    if needs and shape.pool.spot and needs.checkpoint_seconds > target.grace_seconds - 10:
        lines.append(
            f"{key} is of spot nodes, and a checkpoint takes about {needs.checkpoint_seconds:.0f} s (where each "
            f"machine writes 1 GB/s), more than grace_seconds {target.grace_seconds} leave: when a node is taken away, "
            "the steps since the last checkpoint are done again; lower checkpoints.every"
        )
    for image in target.images:
        if re.search(r"(^|/)[^:@/]+(:latest)?$", image):
            lines.append(f"image {image}: what is newest may move under a job; name a tag, or NAME@sha256:…")
    return lines


def _fitting(key: str, pool: Pool, work: Work, gpus: float) -> int:
    """How many workers fit a machine of the pool. Raises InputError for one worker that is larger."""
    request = work.resources
    stated = quantity_bytes(pool.memory) / 1e9 if pool.memory else math.inf
    limits = (
        ("GPUs", "gpus", gpus, float(pool.gpus)),
        ("CPUs", "cpus", request.cpus, pool.cpus),
        ("GB", "memory", request.memory_gb, stated),
    )
    capacities = {}
    for unit, name, demand, offer in limits:
        if demand > offer and pool.gpus > 1:
            raise InputError(
                f"a worker needs {demand:g} {unit}, and the machines of {key} have {offer:g} ({key}.{name}); "
                "let the job ask for less, or correct the target"
            )
        if demand and offer < math.inf:
            capacities[unit] = max(1, int(offer / demand + 1e-9))
    fits = min(capacities.values(), default=request.max_workers)
    together = min(capacities.get("GPUs", fits), request.max_workers)
    if work.kind == "train" and pool.gpus > 1 and fits < together:
        # Ranks on a part of the machines' GPUs would be as many hosts to NCCL.
        raise InputError(
            f"{key}.cpus {pool.cpus:g} of the target is too little: {together} workers on a machine need "
            f"{together * request.cpus:g}; let them ask for less (workers.cpus, reader.processes), or correct it"
            if capacities["CPUs"] == fits
            else f"{key}.memory {pool.memory} of the target is too little: {together} workers on a machine ask for "
            f"{together * request.memory_gb:g}G; let them ask for less (workers.memory_gb), or correct it"
        )
    return fits


def _memory(
    key: str, pool: Pool, work: Work, workers: int, share: float, cpus: float, needs: MachineNeeds | None
) -> tuple[MemoryQuantity, bool]:
    """(memory of a pod, whether the job names it). Raises InputError where the pool has less than is needed."""
    if work.resources.memory_gb:
        return f"{workers * work.resources.memory_gb:g}G", True
    needed = sum(needs.memory.values()) if needs else 0.0
    if not pool.memory:
        return (_gib(needed) if needs else default_memory(cpus)), False
    stated = quantity_bytes(pool.memory) * share
    if needs and needed > stated:
        of_it = f", {share:.0%} of a machine," if share < 1 else ""
        raise InputError(
            f"{key}.memory {pool.memory} of the target is too little: a pod with {workers} "
            f"worker{'s' * (workers > 1)}{of_it} needs {_parts(needs.memory)}; {_gib(needed / share)} would do, "
            f"or leave it out"
        )
    return (pool.memory if share == 1 else f"{int(stated) >> 20}Mi"), False


def _shared_memory(key: str, pool: Pool, memory: MemoryQuantity, needs: MachineNeeds | None) -> MemoryQuantity:
    needed = needs.shared_memory if needs else 0.0
    if pool.shared_memory:
        if quantity_bytes(pool.shared_memory) < needed:
            raise InputError(
                f"{key}.shared_memory {pool.shared_memory} of the target is too little for Ray's objects and NCCL; "
                f"{_gib(needed)} would do, or leave it out"
            )
        return pool.shared_memory
    default = default_shared_memory(memory)
    return default if quantity_bytes(default) >= needed else _gib(needed)


def _parts(parts: Mapping[str, float]) -> str:
    """Parts as "84 GiB (56 for weights while …, 20 for …)", the largest three by name."""
    largest = sorted(parts.items(), key=lambda item: -item[1])[:3]
    named = ", ".join(f"{size / GIB:.0f} for {part}" for part, size in largest if size >= GIB)
    return f"{sum(parts.values()) / GIB:.0f} GiB" + (f" ({named})" if named else "")


def _gib(size: float) -> MemoryQuantity:
    return f"{max(1, math.ceil(size / GIB))}Gi"
