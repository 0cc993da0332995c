"""LoRA adapters as tensors by name, checked against the transformer that they are for.

r rank of an adapter's matrices: lora_A (r, in), lora_B (out, r).
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from model.inputs import InputError, nearest

PREFIX = "transformer."
_PARTS = (".lora_A.weight", ".lora_B.weight", ".lora_B.bias", ".lora_magnitude_vector", ".alpha")
# Transformers that may hold adapters, to find whose the tensors are that a caller saves.
_transformers: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def remember(transformer: nn.Module) -> None:
    """Let `config_of` find the adapters of this transformer, as long as it lives."""
    _transformers.add(transformer)


def check_adapter(weights: Mapping[str, Any], transformer: nn.Module) -> dict[str, Tensor]:
    """The weights of an adapter, with `alpha` of each module multiplied in.

    weights: "transformer.MODULE.lora_A.weight" and so on, as diffusers names them. Raises InputError for keys of
    another model or of none of its modules, half a pair, other shapes, and numbers that are not finite.
    """
    if not weights:
        raise InputError("LoRA without weights: it holds no tensor; save it again")
    linear = _base_layers(transformer)
    for key, value in weights.items():
        _check_key(key, value, linear)
    unprefixed = {key.removeprefix(PREFIX): value for key, value in weights.items()}
    modules = {key[: -len(part)] for key in unprefixed for part in _PARTS if key.endswith(part)}
    result = dict(unprefixed)
    for module in sorted(modules):
        first, second = (unprefixed.get(f"{module}.lora_{which}.weight") for which in "AB")
        if first is None or second is None:
            lacks = "lora_A" if first is None else "lora_B"
            raise InputError(f"LoRA of {module}: it has no {lacks}.weight, and both are needed; save it again")
        _check_shapes(module, first, second, linear[module])
        alpha = result.pop(f"{module}.alpha", None)
        if alpha is not None:
            result[f"{module}.lora_B.weight"] = second * (float(alpha) / first.shape[0])
    return {f"{PREFIX}{key}": value for key, value in result.items()}


def config_of(layers: Mapping[str, Any]) -> dict[str, Any] | None:
    """The peft configuration of the adapter whose own tensors these are, in any transformer that lives; else None."""
    addresses = {value.data_ptr() for value in layers.values() if isinstance(value, Tensor) and value.numel()}
    for transformer in list(_transformers):
        for name, config in getattr(transformer, "peft_config", {}).items():
            own = {
                parameter.data_ptr()
                for key, parameter in transformer.named_parameters()
                if ".lora_" in key and f".{name}." in f"{key}."
            }
            if addresses & own:
                return dict(config.to_dict())
    return None


def _base_layers(transformer: nn.Module) -> dict[str, nn.Module]:
    """Linear layers by name, also where an adapter wraps them already."""
    layers: dict[str, nn.Module] = {}
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear) and ".lora_" not in name:
            layers[name.removesuffix(".base_layer")] = module
    return layers


def _check_key(key: Any, value: Any, linear: Mapping[str, nn.Module]) -> None:
    name = str(key)
    part = next((part for part in _PARTS if name.endswith(part)), None)
    if not name.startswith(PREFIX) or part is None:
        raise InputError(
            f"no LoRA of this transformer: it holds {name!r}, expected transformer.….lora_A.weight and lora_B.weight"
        )
    module = name.removeprefix(PREFIX)[: -len(part)]
    if module not in linear:
        raise InputError(f"LoRA of {module!r}: the transformer has no such layer{nearest(module, list(linear))}")
    if part == ".alpha" and isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        return
    if part == ".alpha":
        raise InputError(f"{name}: an alpha is one number; save the adapter again")
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise InputError(f"{name}: {getattr(value, 'dtype', type(value).__name__)} and no tensor of floats")
    if not bool(torch.isfinite(value).all()):
        raise InputError(f"{name}: not all numbers are finite; take another checkpoint of the adapter")


def _check_shapes(module: str, first: Tensor, second: Tensor, layer: nn.Module) -> None:
    wide, out = int(getattr(layer, "in_features", 0)), int(getattr(layer, "out_features", 0))
    if first.ndim != 2 or second.ndim != 2 or not first.shape[0] or first.shape[0] != second.shape[1]:
        raise InputError(
            f"LoRA of {module}: lora_A {tuple(first.shape)} and lora_B {tuple(second.shape)}; they must be (r, {wide}) "
            f"and ({out}, r)"
        )
    if first.shape[1] != wide or second.shape[0] != out:
        raise InputError(
            f"LoRA of {module}: lora_A {tuple(first.shape)} and lora_B {tuple(second.shape)} belong to a layer of "
            f"{first.shape[1]} → {second.shape[0]}, this transformer's is {wide} → {out}; it is of another model"
        )
