"""`onediffusion export`: a checkpoint as a folder that diffusers reads, with all parts a pipeline has."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Literal

from labeling.dataset import Store, open_store
from model.inputs import InputError

_INDEX = "model_index.json"  # without it a folder is no pipeline, so it is uploaded last


def export(
    checkpoint: str,
    out: str,
    weights: Literal["averaged", "live"] = "averaged",
    dtype: Literal["fp32", "bf16"] = "fp32",
) -> str:
    """Write a pipeline in the released layout: transformer, image codec, text encoder, tokenizer, scheduler.

    checkpoint: a run (its newest checkpoint) or one of its checkpoints; out: a folder or s3:// prefix that has nothing
    in it yet. weights: the moving average, as `sample` takes them, or those that the optimizer moved last. dtype: of
    the transformer. The folder is there whole, or not at all. Returns its address.
    Raises InputError for a checkpoint that is not there, and for an address with something at it.
    """
    import torch

    from pipelines.sampler import load_pipeline

    target = open_store(out)
    if target.walk() or _is_taken(target):
        raise InputError(f"{target.uri}: there is something already; name another folder, or remove it")
    pipeline = load_pipeline(checkpoint, "cpu", weights, torch.bfloat16 if dtype == "bf16" else None)
    with _scratch_beside(target) as scratch:
        folder = Path(scratch, "pipeline")
        # Each file is in memory once more while it is written.
        pipeline.save_pretrained(folder, safe_serialization=True, max_shard_size="2GB")
        _move(folder, target)
    return target.uri


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
