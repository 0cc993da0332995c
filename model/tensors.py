"""What tensors that a caller gives must be, whatever they hold."""

from __future__ import annotations

import torch
from torch import Tensor

from model.inputs import InputError


def check_dense(name: str, tensor: Tensor) -> None:
    """Raise InputError for a tensor whose numbers are not all there: of the meta device, or sparse."""
    if tensor.is_meta or tensor.layout != torch.strided:
        kind = "has no numbers, only a shape" if tensor.is_meta else f"is of layout {tensor.layout}"
        raise InputError(f"{name}: the tensor {kind}; give a dense one on a device")
