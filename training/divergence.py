"""Numbers that are not finite: looked for before anything is saved, and what a person can do about them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def all_finite(tensors: Iterable[Tensor], device: torch.device, group: Any = None) -> bool:
    """Whether every number of the tensors is finite, on every worker. Called by all workers together.

    tensors: whole ones, or the shards (DTensor) that a worker has. group: of the workers; None is the default one.
    """
    import torch

    finite = torch.ones((), dtype=torch.int32, device=device)
    for tensor in tensors:
        local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        finite &= torch.isfinite(local).all().to(device, torch.int32)
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(finite, torch.distributed.ReduceOp.MIN, group=group)
    return bool(finite)


def diverged(run: str, step: int, rate: float, sound: str | None, first: str = "") -> str:
    """What to tell a person whose run met numbers that are not finite, at that step or not long before it.

    run: its address; rate: the learning rate; sound: address of the newest checkpoint, None where there is none yet;
    first: what is known of the first bad step.
    """
    what = f"{run}: gradient or weights are not finite at step {step} or just before{first}; nothing of it was saved"
    if sound is None:
        return f"{what}. Run again with optimizer.learning_rate lower than {rate:g}"
    return (
        f"{what}. The newest checkpoint is finite: begin another run (--run) with --set initialize={sound} (or an "
        f"earlier one) and optimizer.learning_rate lower than {rate:g}"
    )


def unusable_checkpoint(checkpoint: str, before: str | None) -> str:
    """What to tell a person whose newest checkpoint, at that address, holds numbers that are not finite.

    before: the name of the checkpoint before it, None where there is none.
    """
    remedy = (
        f"to go on from the one before it: `train` with --from-checkpoint {before}" if before else "begin another run"
    )
    return f"{checkpoint}: its weights are not all finite; {remedy}"
