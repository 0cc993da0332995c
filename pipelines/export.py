"""`onediffusion export`: a checkpoint as a folder that diffusers reads, as one file, or its adapter alone."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from labeling.dataset import Store, open_store
from model.inputs import InputError, require
from training.lora import LORA_FILE

if TYPE_CHECKING:
    from torch import Tensor

    from model.quantization import Quantization

Weights = Literal["averaged", "live"]
Dtype = Literal["fp32", "bf16"]
Format = Literal["diffusers", "comfyui", "lora"]
_INDEX = "model_index.json"  # without it a folder is no pipeline, so it is uploaded last
_FILE = ".safetensors"


def export(
    checkpoint: str,
    out: str,
    weights: Weights = "averaged",
    dtype: Dtype = "fp32",
    form: Format = "diffusers",
    quantize: Quantization | None = None,
    say: Callable[[str], None] = print,
) -> str:
    """Write a checkpoint for other programs, whole or not at all. Returns the address of what was written.

    checkpoint: a run (its newest checkpoint), one of its checkpoints, or a pipeline of diffusers. An adapter is merged
    into the model that it is of, except as `lora`.
    out, form: `diffusers`, a pipeline in the released layout: transformer, image codec, text encoder, tokenizer,
    scheduler; `out` is a folder or s3:// prefix that has nothing in it yet. `comfyui`, the transformer as one file
    (model/single_file.py), `out`. `lora`, the adapter of a run that trained one, as the file `out` or in that folder.
    weights: the moving average, as `sample` takes them, or those that the optimizer moved last. dtype: of the
    transformer. quantize: store its linear weights in 8 bits, the others in bf16; it is said how far its velocities
    are then from those of bf16 weights.
    Raises InputError for a checkpoint that is not there, an address with something at it, and what does not go
    together.
    """
    target, file = _target(out, form)
    if quantize and form == "lora":
        raise InputError("--quantize is for the whole transformer; an adapter is small, and exported as it is")
    if quantize == "int8" and form == "comfyui":
        raise InputError("--quantize int8: ComfyUI reads no such file; take fp8, or --format diffusers")
    if form == "lora":
        from training.checkpoint.loading import packed_adapter

        target.put(file, packed_adapter(checkpoint, weights))
        return f"{target.uri}/{file}"
    if quantize and form == "diffusers":
        require("torchao")
    with _scratch_beside(target.subfolder(file) if file else target) as scratch:
        if form == "comfyui":
            _write_file(checkpoint, Path(scratch, file), weights, dtype, quantize, say)
            target.put_file(file, Path(scratch, file))
            return f"{target.uri}/{file}"
        folder = Path(scratch, "pipeline")
        _write_pipeline(checkpoint, folder, weights, dtype, quantize, say)
        _move(folder, target)
    return target.uri


def _write_pipeline(
    checkpoint: str,
    folder: Path,
    weights: Weights,
    dtype: Dtype,
    quantize: Quantization | None,
    say: Callable[[str], None],
) -> None:
    import torch

    from model import NextDiT
    from model.quantization import quantized, velocities
    from pipelines.sampler import load_pipeline

    pipeline = load_pipeline(checkpoint, "cpu", weights, torch.bfloat16 if dtype == "bf16" or quantize else None)
    # Each file is in memory once more while it is written.
    pipeline.save_pretrained(folder, safe_serialization=True, max_shard_size="2GB")
    if quantize is None:
        return
    before, exact = _size(folder / "transformer"), velocities(pipeline.transformer)
    del pipeline
    transformer = quantized(NextDiT, folder / "transformer", quantize)
    shutil.rmtree(folder / "transformer")
    transformer.save_pretrained(folder / "transformer", max_shard_size="2GB")
    _say_distance(say, quantize, (before, _size(folder / "transformer")), velocities(transformer), exact)


def _write_file(
    checkpoint: str,
    path: Path,
    weights: Weights,
    dtype: Dtype,
    quantize: Quantization | None,
    say: Callable[[str], None],
) -> None:
    import torch

    from model import NextDiT
    from model.quantization import velocities
    from model.single_file import write_single_file
    from training.checkpoint import load_checkpoint

    half = dtype == "bf16" or quantize is not None
    transformer, _ = load_checkpoint(checkpoint, weights, torch.bfloat16 if half else torch.float32)
    write_single_file(transformer, path, transformer.dtype, fp8=quantize == "fp8")
    if quantize:
        before = sum(weight.nbytes for weight in transformer.state_dict().values())
        exact = velocities(transformer)
        del transformer
        found = velocities(NextDiT.from_single_file(path))
        _say_distance(say, quantize, (before, path.stat().st_size), found, exact)


def _say_distance(say: Callable[[str], None], kind: str, sizes: tuple[int, int], found: Tensor, exact: Tensor) -> None:
    from model.quantization import distance

    before, after = (size / 1e9 for size in sizes)
    say(
        f"{kind}: {after:.3g} GB in place of {before:.3g} GB; velocities are {distance(found, exact):.1%} from those "
        "of bf16 weights (root mean square, random samples of all noise levels)"
    )


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _target(out: str, form: Format) -> tuple[Store, str]:
    """(folder, name of the file in it) that `out` means, "" for a whole folder. Raises InputError where it is taken."""
    name = out.rstrip("/").rpartition("/")[2]
    if form == "diffusers" or (form == "lora" and not name.endswith(_FILE)):
        target = open_store(out)
        if target.walk() or _is_taken(target):
            raise InputError(f"{target.uri}: there is something already; name another folder, or remove it")
        return target, "" if form == "diffusers" else LORA_FILE
    if not name.endswith(_FILE) or name == _FILE:
        raise InputError(f"{out}: --format comfyui writes one file; name it, as models/mine{_FILE}")
    target = open_store(out.rstrip("/").removesuffix(name).rstrip("/") or ("/" if out.startswith("/") else "."))
    if target.exists(name):
        raise InputError(f"{target.uri}/{name}: there is something already; name another file, or remove it")
    return target, name


def _is_taken(target: Store) -> bool:
    """Whether there is a local file, or a folder with anything in it, hidden files too."""
    path = Path(target.uri)
    return not target.uri.startswith("s3://") and path.exists() and not (path.is_dir() and not any(path.iterdir()))


def _scratch_beside(target: Store) -> tempfile.TemporaryDirectory[str]:
    """A temporary folder, for a local target on its own disk, so that moving is a rename."""
    if target.uri.startswith("s3://"):
        return tempfile.TemporaryDirectory(prefix="onediffusion-")
    parent = Path(target.uri).parent
    parent.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix=".onediffusion-", dir=parent)


def _move(folder: Path, target: Store) -> None:
    if not target.uri.startswith("s3://"):
        if Path(target.uri).is_dir():
            os.rmdir(target.uri)  # an empty one, or it raises
        os.replace(folder, target.uri)
        return
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    for name in sorted(names, key=lambda name: name == _INDEX):
        target.put_file(name, folder / name)
