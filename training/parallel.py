"""The model over the processes of a run: whole in each (DDP), or sharded over all or over those of a node (FSDP2).

Whatever is chosen, the same function is trained: gradients are added up in float32, and inputs are not cast, or
timesteps would reach their embedding rounded to bf16.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from model.inputs import InputError
from training.config import WorkersConfig
from training.packed_model import PackedModel


def distribute(model: PackedModel, workers: WorkersConfig, device: torch.device, local: int) -> nn.Module:
    """The model on its device, as the process group of this run shares it; for one process without FSDP as it is.

    local: processes on this node, the same number on every node. Call it before the optimizer is made.
    Raises InputError for `shard: node` where nodes have different numbers of processes.
    """
    count = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    if workers.fsdp and torch.distributed.is_initialized():
        return _shard(model, workers, device, local, count)
    model = model.to(device)
    if count == 1:
        return model
    from torch.nn.parallel import DistributedDataParallel

    ids = [device] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)


@contextmanager
def accumulating(model: nn.Module, last: bool) -> Iterator[None]:
    """A forward and backward pass, the last of a step or not: gradients travel no more often than memory asks for.

    DDP sends them in the last pass. FSDP scatters them in each, since whole ones would need the memory that sharding
    saves, and adds up the copies of a shard in the last.
    """
    from torch.distributed.fsdp import FSDPModule
    from torch.nn.parallel import DistributedDataParallel

    if isinstance(model, FSDPModule):
        model.set_requires_all_reduce(last)
    unsent = isinstance(model, DistributedDataParallel) and not last
    with model.no_sync() if unsent else nullcontext():
        yield


def clip_gradients(model: nn.Module, most: float) -> torch.Tensor:
    """Scale the gradients so that their norm, over all shards, is at most `most`. Returns the norm before, a scalar."""
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), most)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def _shard(model: PackedModel, workers: WorkersConfig, device: torch.device, local: int, count: int) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    if workers.shard == "node" and count % local:
        raise InputError(f"workers.shard node: {count} workers are not the same number on every node; take shard all")
    if workers.shard == "node" and local < count:
        mesh = init_device_mesh(device.type, (count // local, local), mesh_dim_names=("replicate", "shard"))
    else:
        mesh = init_device_mesh(device.type, (count,), mesh_dim_names=("shard",))
    # On a CPU a norm takes weights and inputs of one type only; there, autocast alone computes in bf16.
    half = torch.bfloat16 if workers.precision == "bf16" and device.type == "cuda" else None
    policy = MixedPrecisionPolicy(half, torch.float32, cast_forward_inputs=False)
    for block in model.transformer.layers:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    return model
