"""What a pipeline's folder holds and a caller may ask of it, before any part is loaded."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from model.arguments import check_default_size
from model.inputs import InputError, shown
from model.weights import (
    OF_DEVICE_MAPS,
    HubOptions,
    check_device_map,
    check_files,
    check_variant,
    pipeline_folder,
    read_object,
    refuse_unknown,
    safetensors_files,
)

# Arguments of diffusers that reach the loaders of the parts.
_OF_LOADERS = ("variant", "torch_dtype", "dtype", "device_map", *OF_DEVICE_MAPS,
               "low_cpu_mem_usage", "use_safetensors", "quantization_config", "disable_mmap")  # fmt: skip
_OF_TOKENIZERS = ("tokenizer.json", "spiece.model", "vocab.txt", "vocab.json")
_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
}  # fmt: skip


def resolve_pipeline(
    class_name: str, name: str, arguments: dict[str, Any], own: Sequence[str]
) -> tuple[Path, dict[str, Any]]:
    """The folder of a pipeline, by path or hub name, and the arguments to load it with.

    arguments: as from_pretrained is given them; own: names of those that the pipeline's constructor takes.
    Raises InputError for arguments that are not known, weights that are not safetensors, and damaged files.
    """
    arguments = dict(arguments)
    refuse_unknown(f"{class_name}.from_pretrained", arguments, [*_OF_LOADERS, *HubOptions.names(), *own])
    check_device_map(f"{class_name}.from_pretrained", arguments)
    hub = HubOptions.take(arguments)
    if arguments.pop("use_safetensors", None) is False:
        raise InputError("use_safetensors=False: weights are read from safetensors alone; convert them first")
    variant = arguments.get("variant")
    check_variant(variant)
    given = {part for part in own if part in arguments}
    folder = pipeline_folder(name, hub, variant, given)
    index = read_object(folder / "model_index.json")
    _check_index(folder / "model_index.json", index, [name for name in own if name not in given])
    for part, class_name in parts_of(folder).items():
        if part not in given:
            _check_part(folder / part, class_name, variant)
            check_files(folder / part, variant)
    if variant is not None and not list(folder.glob(f"*/*.{variant}*")):
        raise InputError(f"{name}: no weights of the variant {shown(variant)} are there; {_variants(folder)}")
    for part in own:  # a pipeline that was saved without it is loaded so
        if part not in given and index.get(part) == [None, None]:
            arguments[part] = None
    dtype, older = arguments.pop("dtype", None), arguments.pop("torch_dtype", None)
    if dtype is not None and older is not None and dtype != older:
        raise InputError(f"dtype {dtype} and torch_dtype {older}: both mean the same; give one")
    dtype = older if dtype is None else dtype
    arguments["dtype"] = _types(folder, dtype, variant, given)
    return folder, {"use_safetensors": True, **arguments}


def parts_of(folder: Path) -> dict[str, str]:
    """The class of each part that a pipeline's folder holds."""
    index = read_object(folder / "model_index.json")
    described = {part: value for part, value in index.items() if isinstance(value, list) and len(value) == 2}
    return {part: str(value[1]) for part, value in described.items() if value[1]}


def _check_index(path: Path, index: Mapping[str, Any], own: Sequence[str]) -> None:
    """Raise InputError, naming the entry, for an index in which a part is no pair of a library and a class.

    own: names of what is read of it.
    """
    for name, value in index.items():
        texts = value if isinstance(value, list) else [value]
        is_text = all(isinstance(one, str) for one in texts)
        if name == "_class_name" and not (is_text and not isinstance(value, list)):
            raise InputError(f"{path}: _class_name {shown(value)}; it is a text, as OneDiffusionPipeline")
        if name == "default_size" and name in own:
            check_default_size(value)
        elif name in own and not (len(texts) == 2 and (is_text or texts == [None, None])):
            raise InputError(
                f"{path}: {name} {shown(value)}; it names a library and a class, as in the folder's origin"
            )


def part_at_fault(folder: Path, index: Mapping[str, Any], given: Collection[str]) -> tuple[str, Exception] | None:
    """The part of a pipeline's folder that cannot be loaded alone, and what is raised; the small ones first.

    index: module and class of each part. For a message only: loaders do not say which part they were at.
    """
    for part in sorted(set(parts_of(folder)) - set(given), key=lambda part: part not in ("tokenizer", "scheduler")):
        library, name = index[part]
        try:
            loader = getattr(importlib.import_module(library), name)
            loader.from_pretrained(str(folder / part))
        except Exception as error:
            return part, error
    return None


def _check_part(folder: Path, class_name: str, variant: str | None) -> None:
    """Raise InputError for a part without the files that say what it is: without them loaders take defaults."""
    kinds = (("Tokenizer", _OF_TOKENIZERS), ("Scheduler", ("scheduler_config.json",)), ("", ("config.json",)))
    needed = next(names for kind, names in kinds if kind in class_name)
    if not any((folder / name).is_file() for name in needed):
        raise InputError(f"{folder}: no {' or '.join(needed)} of the {class_name}; copy or download the folder again")
    if needed == ("config.json",) and not safetensors_files(folder, variant):
        raise InputError(f"{folder}: no weights in safetensors; convert them first")
    if "Scheduler" in class_name and "_class_name" not in read_object(folder / "scheduler_config.json"):
        raise InputError(f"{folder / 'scheduler_config.json'}: it names no _class_name; copy or download it again")


def _types(folder: Path, asked: Any, variant: str | None, given: Collection[str]) -> Any:
    """The type of each part: as asked, or as its weights are stored; given: parts that are there already."""
    if isinstance(asked, torch.dtype):
        if asked not in _TYPES.values():
            raise InputError(f"torch_dtype {asked}: give one of {', '.join(map(str, _TYPES.values()))}")
        return asked
    if isinstance(asked, dict):
        parts = list(parts_of(folder))
        for name, value in asked.items():
            if name not in (*parts, "default") or not isinstance(value, torch.dtype):
                raise InputError(
                    f"torch_dtype {shown(name)}: {value}; give a type of torch for {', '.join(parts)} or default"
                )
        return asked
    if asked not in (None, "auto"):
        raise InputError(
            f"torch_dtype {shown(asked)}: give a type of torch, as torch.bfloat16, or one by part in a dict"
        )
    held = [part for part in parts_of(folder) if part not in given]
    stored = {part: kind for part in held if (kind := _stored_type(folder / part, variant))}
    return {**stored, "default": torch.float32}


def _stored_type(folder: Path, variant: str | None) -> torch.dtype | None:
    """The type of the largest tensor of a part's weights; None where it has no weights of floats."""
    from safetensors import safe_open

    sizes: dict[torch.dtype, int] = {}
    for path in safetensors_files(folder, variant):
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118 - no mapping
                part = file.get_slice(key)
                if kind := _TYPES.get(part.get_dtype()):
                    sizes[kind] = max(sizes.get(kind, 0), int(torch.Size(part.get_shape()).numel()))
    return max(sizes, key=lambda kind: sizes[kind]) if sizes else None


def _variants(folder: Path) -> str:
    names = {path.name.split(".")[1].partition("-")[0] for path in folder.glob("*/*.*.safetensors")}
    return f"there is {', '.join(sorted(names))}" if names else "there are none"
