"""LoRA adapters as tensors by name, checked against the transformer that they are for.

r rank of an adapter's matrices: lora_A (r, in), lora_B (out, r).
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from model.inputs import InputError, nearest, shown

PREFIX = "transformer."
_PARTS = (".lora_A.weight", ".lora_B.weight", ".lora_B.bias", ".lora_magnitude_vector", ".alpha")
# Ways in which peft begins an adapter that leave the weights below it as they are.
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
# Transformers that may hold adapters, to find whose the tensors are that a caller saves.
_transformers: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def remember(transformer: nn.Module) -> None:
    """Let `config_of` find the adapters of this transformer, as long as it lives."""
    _transformers.add(transformer)


def check_adapter(
    weights: Mapping[str, Any], transformer: nn.Module, metadata: Mapping[str, Any] | None = None
) -> dict[str, Tensor]:
    """The weights of an adapter, with `alpha` of each module multiplied in where no metadata say it.

    weights: "transformer.MODULE.lora_A.weight" and so on, as diffusers names them; metadata: its peft configuration.
    Raises InputError for keys of another model or of none of its modules, half a pair, other shapes, numbers that are
    not finite, and metadata of another adapter.
    """
    if not weights:
        raise InputError("LoRA without weights: it holds no tensor; save it again")
    linear = _base_layers(transformer)
    for key, value in weights.items():
        _check_key(key, value, linear)
    unprefixed = {key.removeprefix(PREFIX): value for key, value in weights.items()}
    modules = {key[: -len(part)] for key in unprefixed for part in _PARTS if key.endswith(part)}
    if metadata is not None:
        _check_metadata(metadata, unprefixed)
    result = dict(unprefixed)
    for module in sorted(modules):
        first, second = (unprefixed.get(f"{module}.lora_{which}.weight") for which in "AB")
        if first is None or second is None:
            lacks = "lora_A" if first is None else "lora_B"
            raise InputError(f"LoRA of {module}: it has no {lacks}.weight, and both are needed; save it again")
        _check_shapes(module, first, second, linear[module])
        for part in (".lora_B.bias", ".lora_magnitude_vector"):
            vector = unprefixed.get(f"{module}{part}")
            if vector is not None and vector.shape != second.shape[:1]:
                raise InputError(f"LoRA of {module}: {part[1:]} {tuple(vector.shape)}, not {tuple(second.shape[:1])}")
        alpha = result.pop(f"{module}.alpha", None)
        if metadata is not None:
            _compare_metadata(metadata, module, first.shape[0], alpha)
        elif alpha is not None:
            result[f"{module}.lora_B.weight"] = second * (float(alpha) / first.shape[0])
    return {f"{PREFIX}{key}": value for key, value in result.items()}


def _check_metadata(metadata: Mapping[str, Any], weights: Mapping[str, Any]) -> None:
    """Raise InputError for a configuration with values of no adapter, or of one with other tensors."""
    for name in ("r", "lora_alpha"):
        _check_number(name, metadata.get(name))
    for name in ("rank_pattern", "alpha_pattern"):
        pattern = metadata.get(name) or {}
        if not isinstance(pattern, Mapping):
            raise InputError(f"LoRA: {name} {shown(pattern)} in its metadata; it gives numbers by layer")
        for value in pattern.values():
            _check_number(name, value)
    for name, part in (("use_dora", "lora_magnitude_vector"), ("lora_bias", "lora_B.bias")):
        holds = any(key.endswith(part) for key in weights)
        if bool(metadata.get(name)) != holds:
            has, lacks = ("weights", "metadata") if holds else ("metadata", "weights")
            raise InputError(
                f"LoRA: its {has} have {part if holds else name}, its {lacks} have no "
                f"{name if holds else part}; save it again, both of one adapter"
            )
    start = metadata.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        raise InputError(
            f"LoRA: it was begun with init_lora_weights {shown(start)}, which changes the weights below it; save it as "
            "a plain one, with path_initial_model_for_weight_conversion of peft"
        )


def _check_number(name: str, value: Any) -> None:
    if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value) or (name[0] == "r") > value:
        raise InputError(f"LoRA: {name} {shown(value)} in its metadata; give a number, and a rank of 1 or more")


def _compare_metadata(metadata: Mapping[str, Any], module: str, rank: int, alpha: Any) -> None:
    """Raise InputError where the metadata say another rank or alpha of a module than its tensors do."""
    said = {
        name: _of_module(metadata.get(pattern) or {}, module, metadata[name])
        for name, pattern in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern"))
    }
    if said["r"] != rank:
        raise InputError(f"LoRA of {module}: rank {said['r']} in its metadata, {rank} in its weights; save it again")
    if alpha is not None and not math.isclose(float(alpha), said["lora_alpha"], rel_tol=1e-3):
        raise InputError(
            f"LoRA of {module}: alpha {said['lora_alpha']} in its metadata, {float(alpha):g} in its weights; leave one "
            "of both out"
        )


def _of_module(pattern: Mapping[str, Any], module: str, default: Any) -> Any:
    from peft.utils.other import get_pattern_key

    return pattern.get(get_pattern_key(list(pattern), module), default)


def layers_of(layers: Any) -> dict[str, Tensor]:
    """The tensors of an adapter by name, as a caller gives them to be saved: by name, or a transformer that has one.

    Raises InputError for anything else, and for weights that belong to no adapter.
    """
    if isinstance(layers, nn.Module):
        adapters = list(getattr(layers, "peft_config", {}))
        if len(adapters) != 1:
            has = f"has adapters {', '.join(adapters)}" if adapters else "has no adapter"
            raise InputError(
                f"transformer_lora_layers: this {type(layers).__name__} {has}; give those of one, as "
                "peft.get_peft_model_state_dict(transformer, adapter_name=…)"
            )
        from peft import get_peft_model_state_dict

        layers = get_peft_model_state_dict(layers, adapter_name=adapters[0])
    if not layers:
        raise InputError("nothing to save: give transformer_lora_layers")
    if not isinstance(layers, Mapping):
        raise InputError(f"transformer_lora_layers: {type(layers).__name__}; give tensors by name, or a transformer")
    for key, value in layers.items():
        if not str(key).endswith(_PARTS) or not isinstance(value, Tensor):
            raise InputError(f"transformer_lora_layers: {shown(key)} is no tensor of an adapter, as ….lora_A.weight is")
        if not bool(torch.isfinite(value).all()):
            raise InputError(f"transformer_lora_layers: {key}: not all numbers are finite")
    return dict(layers)


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
    if isinstance(value, Tensor) and value.is_meta:
        raise InputError(f"{name}: it has no numbers, only a shape; load it from its file")
    if part == ".alpha":
        if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex() and math.isfinite(float(value)):
            return
        raise InputError(f"{name}: an alpha is one finite number; save the adapter again")
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
