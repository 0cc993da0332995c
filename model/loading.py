"""Weights in sharded safetensors into a model, in little more memory than the model itself takes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from model.inputs import InputError
from model.weights import model_folder

_AT_ONCE = 16 << 20  # bytes of a file mapped at a time: pages that are mapped count as memory used
_NAMED = 3  # wrong keys that an error names


def load_model(
    cls: Any,
    of_diffusers: Callable[..., Any],
    name: Any,
    subfolder: str | None = None,
    torch_dtype: torch.dtype | None = None,
    variant: str | None = None,
    **kwargs: Any,
) -> Any:
    """A model of diffusers from a folder or hub name, with its weights as stored unless torch_dtype says otherwise.

    cls: a ModelMixin; of_diffusers: its own from_pretrained, which serves what is not about plain loading
    (device_map, quantization_config). Peak memory is that of the weights and one tensor or 16 MB.
    Raises InputError for a name that is no model, and for weights that do not fit, naming the keys.
    """
    if kwargs.get("device_map") is not None or kwargs.get("quantization_config") is not None:
        return of_diffusers(name, subfolder=subfolder, torch_dtype=torch_dtype, variant=variant, **kwargs)
    folder = model_folder(str(name), subfolder or "transformer")
    config = cls.load_config(folder)
    with torch.device("meta"):
        model = cls.from_config(config)
    load_weights(model, weight_files(folder, variant), torch_dtype)
    model.register_to_config(_name_or_path=str(name))
    return model.eval()


def weight_files(folder: Path, variant: str | None = None) -> list[Path]:
    """The safetensors of a model of diffusers: those its index names, or the one there is. Raises InputError."""
    stem = "diffusion_pytorch_model"
    infix = f".{variant}" if variant else ""
    index = folder / f"{stem}.safetensors.index{infix}.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        absent = [name for name in names if not (folder / name).is_file() or Path(name).name != name]
        if absent:
            raise InputError(f"{folder}: {index.name} names {absent[0]}, which is not there; download it again")
        return [folder / name for name in names]
    single = folder / f"{stem}{infix}.safetensors"
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
    _check(files[0].parent, model.state_dict(), {key: shape for held in shapes.values() for key, shape in held.items()})
    for path, held in shapes.items():
        for key, value in _values(path, list(held)):
            owner, _, name = key.rpartition(".")
            module = model.get_submodule(owner)
            filled = value.to(device, dtype if value.is_floating_point() else value.dtype, copy=True)
            if name in module._parameters:
                module._parameters[name] = nn.Parameter(filled)
            else:
                module._buffers[name] = filled


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(path, "pt") as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - no mapping


def _values(path: Path, keys: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """Tensors one by one; the file is mapped anew now and then, so that pages read do not add up."""
    rest = list(keys)
    while rest:
        read = 0
        with safe_open(path, "pt") as file:
            while rest and read < _AT_ONCE:
                value = file.get_tensor(rest[0])
                read += value.numel() * value.element_size()
                yield rest.pop(0), value
                del value


def _check(folder: Path, wanted: Mapping[str, Tensor], held: Mapping[str, tuple[int, ...]]) -> None:
    wrong = {
        "missing": [key for key in wanted if key not in held],
        "not of this model": [key for key in held if key not in wanted],
        "of another shape": [
            f"{key} {held[key]}, not {tuple(value.shape)}"
            for key, value in wanted.items()
            if key in held and held[key] != tuple(value.shape)
        ],
    }
    said = [
        f"{what}: {', '.join(keys[:_NAMED])}" + (f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else "")
        for what, keys in wrong.items()
        if keys
    ]
    if said:
        raise InputError(f"{folder}: weights that do not fit its config.json; {'; '.join(said)}")
