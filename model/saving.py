"""Saving models in the layout of diffusers, over older folders too: nothing stale stays, other variants do."""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from model.inputs import InputError, shown

_log = logging.getLogger(__name__)


def save_whole(
    save: Callable[..., None],
    save_directory: str | os.PathLike[str],
    safe_serialization: bool,
    variant: str | None,
    **kwargs: Any,
) -> None:
    """Let a save_pretrained of diffusers write beside a folder, and then move its files into it.

    Older weights of the same variant go, with their index and all of their shards: a loader would take them for the
    new ones. Those of other variants stay, of which diffusers deletes some. Weights are safetensors, whatever
    safe_serialization says. Raises InputError for a path that is a file.
    """
    warn_of_pickles(safe_serialization)
    if variant is not None and not (isinstance(variant, str) and re.fullmatch(r"[\w-]+", variant)):
        raise InputError(f"variant {shown(variant)}: give a short name, as fp16")
    target = Path(save_directory)
    if target.exists() and not target.is_dir():
        raise InputError(f"{target}: a file is there; name a folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    if kwargs.get("push_to_hub"):
        kwargs.setdefault("repo_id", target.absolute().name)
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=target.parent) as scratch:
        fresh = Path(scratch, target.name or "model")
        save(fresh, safe_serialization=True, variant=variant, **kwargs)
        target.mkdir(exist_ok=True)
        # The files at the top last: without model_index.json a folder is no pipeline.
        for path in sorted(fresh.iterdir(), key=lambda path: path.is_file()):
            if path.is_dir():
                _replace_folder(path, target / path.name, variant)
        _replace_folder(fresh, target, variant)


def warn_of_pickles(safe_serialization: bool) -> None:
    """Log that pickles are asked for and safetensors written, which every version of diffusers reads as well."""
    if not safe_serialization:
        _log.warning("safe_serialization=False: weights are written as safetensors all the same; pickles can run code")


def refuse_adapters(model: Any) -> None:
    """Raise InputError for a model with LoRA adapters: its weights would be saved under names that nothing loads."""
    if getattr(model, "peft_config", None):
        raise InputError(
            f"adapters {', '.join(model.peft_config)} are loaded: save_lora_weights saves them; then call "
            "unload_lora_weights, or before it fuse_lora to keep what they do"
        )


def _replace_folder(fresh: Path, target: Path, variant: str | None) -> None:
    """Move the files of a folder into another, and remove those there that were of the same weights."""
    target.mkdir(exist_ok=True)
    files = [path for path in fresh.iterdir() if path.is_file()]
    stems = {path.name.partition(".")[0].partition("-")[0] for path in files if path.suffix == ".safetensors"}
    stale = [
        path
        for path in target.iterdir()
        if any(_is_of(path.name, stem, variant) for stem in stems) and not (fresh / path.name).exists()
    ]
    # An index goes first, and comes last: at no time does one name files that are not there.
    for path in sorted(stale, key=lambda path: ".index" not in path.name):
        path.unlink()
    for path in sorted(files, key=lambda path: ".index" in path.name):
        shutil.move(path, target / path.name)


def _is_of(name: str, stem: str, variant: str | None) -> bool:
    """Whether a file holds, or lists, weights of this name and variant."""
    infix = f".{re.escape(variant)}" if variant else ""
    number = r"-\d+-of-\d+"
    forms = (
        rf"{infix}({number})?\.safetensors",
        rf"{number}{infix}\.safetensors",
        rf"\.safetensors\.index{infix}\.json",
    )
    return any(re.fullmatch(re.escape(stem) + form, name) for form in forms)
