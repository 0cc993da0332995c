"""Inputs that are on their way to a device before the network asks for them, beside what it computes for others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

LEAST_BYTES = 4096  # of an array: smaller ones cost more to follow than to copy
_KINDS = "biuf"  # of arrays that a network computes with

# Copies an array, and gives its copy with what to call before the copy is used.
Copy = Callable[[NDArray[Any]], "tuple[Tensor, Callable[[], None]]"]


@dataclass(frozen=True)
class _Staged:
    array: NDArray[Any]  # kept, so that no other array gets its identity
    tensor: Tensor
    ready: Callable[[], None]


class Staging:
    """Copies of arrays by their identity. `batches.in_batches` takes them where it finds them; others see no change."""

    def __init__(self) -> None:
        self._staged: dict[int, _Staged] = {}

    def begin(self, inputs: Any, copy: Copy) -> None:
        """Begin to copy the arrays within the inputs of a batch."""
        for array in _arrays(inputs):
            if array.nbytes >= LEAST_BYTES and array.dtype.kind in _KINDS:
                self._staged[id(array)] = _Staged(array, *copy(array))

    def joined(self, arrays: Sequence[NDArray[Any]]) -> Tensor | None:
        """The arrays joined along their first axis on the device; None where not all are staged."""
        found = [self._staged.get(id(array)) for array in arrays]
        staged = [one for one in found if one is not None]
        if not staged or len(staged) < len(found):
            return None
        import torch

        for one in staged:
            one.ready()
        return torch.cat([one.tensor for one in staged])

    def forget(self, inputs: Any) -> None:
        """Let go of the copies of the arrays within inputs."""
        for array in _arrays(inputs):
            self._staged.pop(id(array), None)


staging = Staging()  # of this process, which has one network


def stage(inputs: Any, device: str) -> None:
    """Begin to copy the inputs of a batch to a device, where that can go on beside its work; nothing on CPUs."""
    if device.startswith("cuda"):
        staging.begin(inputs, lambda array: _copy_beside(array, device))


def _copy_beside(array: NDArray[Any], device: str) -> tuple[Tensor, Callable[[], None]]:
    """Copy through pinned memory, on a stream of its own."""
    import torch

    stream = _stream(device)
    pinned = torch.empty(array.shape, dtype=torch.from_numpy(np.empty(0, array.dtype)).dtype, pin_memory=True)
    np.copyto(pinned.numpy(), array)
    with torch.cuda.stream(stream):
        tensor = pinned.to(device, non_blocking=True)
        copied = stream.record_event()

    def ready() -> None:
        current = torch.cuda.current_stream(device)
        current.wait_event(copied)
        tensor.record_stream(current)  # its memory is not given to the next copy while the network reads it

    return tensor, ready


@cache
def _stream(device: str) -> Any:
    import torch

    return torch.cuda.Stream(device)


def _arrays(value: Any) -> Iterator[NDArray[Any]]:
    """The arrays within lists, tuples and mappings."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _arrays(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _arrays(one)
