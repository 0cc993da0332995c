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

from model.inputs import InputError, as_path, one_line, shown
from model.weights import check_variant, refuse_unknown

_log = logging.getLogger(__name__)
# What save_pretrained of diffusers' pipelines and models takes, also for a hub.
_OPTIONS = (
    "max_shard_size",
    "is_main_process",
    "save_function",
    "push_to_hub",
    "repo_id",
    "commit_message",
    "private",
    "create_pr",
    "token",
)


def save_whole(
    save: Callable[..., None],
    save_directory: str | os.PathLike[str],
    safe_serialization: bool,
    variant: str | None,
    **kwargs: Any,
) -> None:
    """Let a save_pretrained of diffusers write into a new folder within another, and then move its files up there.

    Older weights of the same variant go, with their index and all of their shards: a loader would take them for the
    new ones. Those of other variants stay, of which diffusers deletes some. Weights are safetensors, whatever
    safe_serialization says. Raises InputError for a path where no folder can be, and arguments of another meaning.
    """
    refuse_unknown("save_pretrained", kwargs, _OPTIONS)
    warn_of_pickles(safe_serialization)
    check_variant(variant)
    _check_shard_size(kwargs.get("max_shard_size"))
    target = folder_to_write(save_directory)
    if kwargs.get("push_to_hub"):
        kwargs.setdefault("repo_id", target.name)
    try:
        scratch = tempfile.TemporaryDirectory(prefix=".saving-", dir=target)
    except OSError as error:
        raise InputError(f"{target}: nothing can be written there ({one_line(error, 120)})") from None
    with scratch:
        fresh = Path(scratch.name, "model")
        save(fresh, safe_serialization=True, variant=variant, **kwargs)
        _check_places(fresh, target)
        _replace_folder(fresh, target, variant)


def folder_to_write(path: Any) -> Path:
    """A folder by its absolute path, made if it is not there. Raises InputError for what cannot be one."""
    if path in ("", b""):
        raise InputError(f"save_directory {shown(path)}: name a folder")
    target = as_path("save_directory", path).absolute()
    if target.exists() and not target.is_dir():
        raise InputError(f"{target}: a file is there; name a folder")
    try:
        target.mkdir(parents=True, exist_ok=True)
        return target.resolve()
    except OSError as error:
        raise InputError(f"{target}: no folder can be made there ({one_line(error, 120)}); name another") from None


def _check_shard_size(size: Any) -> None:
    is_size = isinstance(size, int) and not isinstance(size, bool) and size > 0
    is_text = isinstance(size, str) and re.fullmatch(r"\d*[1-9]\d*(\.\d+)? ?[KMGT]B", size, re.IGNORECASE)
    if size is not None and not is_size and not is_text:
        raise InputError(f"max_shard_size {shown(size)}: give a number of bytes, or a text as 5GB")


def _check_places(fresh: Path, target: Path) -> None:
    """Raise InputError, before a file is moved, where a folder is to lie in the place of a file or the reverse."""
    for path in fresh.rglob("*"):
        place = target / path.relative_to(fresh)
        if place.exists() and place.is_dir() != path.is_dir():
            is_what = "folder" if place.is_dir() else "file"
            raise InputError(
                f"{place}: a {is_what} is there, and it is to be a {'folder' if path.is_dir() else 'file'}"
            )


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
    for path in fresh.iterdir():  # the files last: without its model_index.json a folder is no pipeline
        if path.is_dir():
            _replace_folder(path, target / path.name, variant)
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
