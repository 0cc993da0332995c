"""Weights in sharded safetensors into a model, in little more memory than the model itself takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from model.inputs import InputError, one_line, require
from model.quantization import CONFIGURATION
from model.weights import (
    OF_DEVICE_MAPS,
    HubOptions,
    check_device_map,
    check_files,
    check_variant,
    damaged,
    indexed_files,
    model_folder,
    read_json,
    refuse_unknown,
)

_MAPPED_BYTES = 16 << 20  # of a file, mapped at a time: pages that are mapped count as memory used
STEM = "diffusion_pytorch_model"  # of the names of weights in diffusers' layout
_WITHOUT_EFFECT = ("low_cpu_mem_usage", "disable_mmap")
_OF_DIFFUSERS = ("device_map", *OF_DEVICE_MAPS, "quantization_config")
_ARGUMENTS = ("subfolder", "torch_dtype", "dtype", "variant", "use_safetensors")
_KEYS_SHOWN = 3  # wrong keys that an error names


def load_model(
    cls: Any,
    diffusers_loader: Callable[..., Any],
    name: Any,
    subfolder: str | None = None,
    torch_dtype: torch.dtype | None = None,
    variant: str | None = None,
    **kwargs: Any,
) -> Any:
    """A model of diffusers from a folder or hub name, with its weights as stored unless torch_dtype says otherwise.

    cls: a ModelMixin; diffusers_loader: the from_pretrained of diffusers, used when device_map or quantization_config
    is given; further arguments: those of HubOptions, and those that only such a loader takes.
    Peak memory is that of the weights and one tensor or 16 MB. Raises InputError for a name that is no model, for
    weights that do not fit, naming the keys, and for arguments that would have no effect.
    """
    hub = HubOptions.take(kwargs)
    torch_dtype = kwargs.pop("dtype", None) or torch_dtype
    torch_dtype = None if torch_dtype == "auto" else torch_dtype
    if torch_dtype is not None and not isinstance(torch_dtype, torch.dtype):
        raise InputError(f"torch_dtype {torch_dtype!r}: give a type of torch, as torch.bfloat16")
    check_variant(variant)
    for argument in _WITHOUT_EFFECT:  # a loader that takes little memory, and memory maps, are the only ways here
        kwargs.pop(argument, None)
    if kwargs.pop("use_safetensors", None) is False:
        raise InputError("use_safetensors=False: weights are read from safetensors alone; convert them first")
    kwargs = {argument: value for argument, value in kwargs.items() if value not in (None, False)}
    refuse_unknown(f"{cls.__name__}.from_pretrained", kwargs, [*_OF_DIFFUSERS, *_ARGUMENTS, *HubOptions.names()])
    check_device_map(f"{cls.__name__}.from_pretrained", kwargs)
    folder = model_folder(str(name), subfolder or "transformer", (), hub, variant)
    check_files(folder, variant)
    if CONFIGURATION in read_json(folder / "config.json"):
        require("torchao")
        kwargs["low_cpu_mem_usage"] = True
        torch_dtype = torch_dtype or torch.bfloat16  # of what is not in 8 bits: the only type torchao computes all in
    if kwargs:
        weight_files(folder, variant)
        more = {"dtype": torch_dtype, "variant": variant, "use_safetensors": True}
        try:
            return diffusers_loader(str(folder), **more, **kwargs)
        except Exception as error:  # of a device_map or a quantization that cannot be
            raise InputError(f"{folder}: nothing that can be loaded ({one_line(error, 200)})") from error
    model = _without_weights(cls, folder)
    load_weights(model, weight_files(folder, variant), torch_dtype)
    model.register_to_config(_name_or_path=str(name))
    return model.eval()


def _without_weights(cls: Any, folder: Path) -> Any:
    """The model that a folder's config.json describes, on the meta device."""
    try:
        with torch.device("meta"):
            return cls.from_config(cls.load_config(folder))
    except (AssertionError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise InputError(f"{folder}/config.json: no {cls.__name__} ({one_line(error, 120)})") from None


def weight_files(folder: Path, variant: str | None = None) -> list[Path]:
    """The safetensors of a model of diffusers: those its index names, or the one there is. Raises InputError."""
    infix = f".{variant}" if variant else ""
    index = folder / f"{STEM}.safetensors.index{infix}.json"
    if index.is_file():
        return indexed_files(index)
    single = folder / f"{STEM}{infix}.safetensors"
    if not single.is_file():
        raise InputError(f"{folder}: neither {index.name} nor {single.name} is there")
    return [single]


def load_weights(
    model: nn.Module, files: Sequence[Path], dtype: torch.dtype | None, device: str | torch.device = "cpu"
) -> None:
    """Fill a model that lies on the meta device from safetensors, as `dtype` or, for None, as stored.

    Raises InputError, naming keys, unless the files hold just the model's weights, in their shapes.
    """
    shapes = {path: _shapes(path) for path in files}
    stored = {key: shape for file_shapes in shapes.values() for key, shape in file_shapes.items()}
    _check(files[0].parent, {key: tuple(value.shape) for key, value in model.state_dict().items()}, stored)
    for path, file_shapes in shapes.items():
        for key, value in _values(path, list(file_shapes)):
            owner, _, name = key.rpartition(".")
            module = model.get_submodule(owner)
            # A copy, since `value` is mapped memory.
            weight = value.to(device, dtype if value.is_floating_point() else value.dtype, copy=True)
            if name in module._parameters:
                module._parameters[name] = nn.Parameter(weight)
            else:
                module._buffers[name] = weight


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    with _opened(path) as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - no mapping


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        raise damaged(path, error) from None


def _values(path: Path, keys: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """Tensors one by one; the file is mapped anew after every 16 MB, so that mapped pages do not add up."""
    rest = list(keys)
    while rest:
        read = 0
        with _opened(path) as file:
            while rest and read < _MAPPED_BYTES:
                value = file.get_tensor(rest[0])
                read += value.numel() * value.element_size()
                yield rest.pop(0), value
                del value


def _check(folder: Path, expected: Mapping[str, tuple[int, ...]], stored: Mapping[str, tuple[int, ...]]) -> None:
    """Raise InputError unless the stored shapes are the expected ones, by key."""
    problems = {
        "missing": [key for key in expected if key not in stored],
        "not of this model": [key for key in stored if key not in expected],
        "of another shape": [
            f"{key} {stored[key]}, not {shape}"
            for key, shape in expected.items()
            if key in stored and stored[key] != shape
        ],
    }
    messages = []
    for problem, keys in problems.items():
        if keys:
            more = f" and {len(keys) - _KEYS_SHOWN} more" if len(keys) > _KEYS_SHOWN else ""
            messages.append(f"{problem}: {', '.join(keys[:_KEYS_SHOWN])}{more}")
    if messages:
        raise InputError(f"{folder}: weights that do not fit its config.json; {'; '.join(messages)}")
