"""The folders of a run's checkpoints, on disk or S3: which there are, which stay, and whether one is damaged.

RUN/checkpoints/step-000500/
    shard-00000-of-00008.safetensors    a process's part of the weights, their averages and the optimizer's state
    index.json                          which part of which tensor lies where; sizes and checksums of the shards
    state.json                          step, configuration, codec, text encoder; written last: it marks the
                                        checkpoint whole
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from labeling.dataset import Store, open_store
from model.inputs import InputError, nearest
from training.checkpoint.index import (
    INDEX,
    OLD_TRAINING,
    TRANSFORMER,
    CheckpointIndex,
    DamagedFile,
    read_blocks,
    read_index,
)
from training.pretrained import pretrained_folder, pretrained_names

FOLDER, STATE = "checkpoints", "state.json"
SAVED = "saved"  # in state.json: when it was written, in ISO 8601
_NAME = re.compile(r"step-(\d{6,})")
_HUB_NAME = re.compile(r"\w[\w-]*/[\w.-]+")  # of an owner, who has no dot, and a model
_VERIFIED_BYTES = 16 << 20  # read at a time, rounded down to whole blocks


def checkpoint_name(step: int) -> str:
    """Folder of the checkpoint after that many steps, within the run."""
    return f"{FOLDER}/step-{step:06d}"


def whole_checkpoints(store: Store) -> list[int]:
    """Steps of a run's whole checkpoints, ascending."""
    return [step for step in _folder_steps(store) if store.exists(f"{checkpoint_name(step)}/{STATE}")]


def _folder_steps(store: Store) -> list[int]:
    """Steps of the folders of checkpoints, whole or not, ascending."""
    return sorted(int(match[1]) for name in store.folders(FOLDER) if (match := _NAME.fullmatch(name)))


def load_state(store: Store, step: int) -> dict[str, Any]:
    """state.json of a checkpoint. Raises InputError where it is damaged."""
    return read_state(store.subfolder(checkpoint_name(step)))


def read_state(folder: Store) -> dict[str, Any]:
    """state.json in a checkpoint's own folder. Raises InputError where it is damaged."""
    try:
        return dict(json.loads(folder.read(STATE)))
    except ValueError:
        raise damaged(folder, f"{STATE} is not what was written") from None


def find_checkpoint(uri: str) -> tuple[Store, dict[str, Any]]:
    """(its folder, its state) of the checkpoint that an address means: a run, its checkpoint, or a diffusers folder.

    A folder in diffusers layout has transformer/, or is that; it may be named as on the hub, OWNER/MODEL. Its state is
    {}. Checkpoints that come with the program have a name. Raises InputError.
    """
    if _is_hub_name(uri):
        return _download(uri), {}
    store = open_store(str(pretrained_folder(uri) or uri))
    if store.exists(STATE):
        return store, read_state(store)
    if _NAME.fullmatch(store.uri.rsplit("/", 1)[-1]) and store.walk():
        raise InputError(f"{uri}: this checkpoint is not whole (no {STATE}); take an earlier one")
    if store.exists(f"{TRANSFORMER}/config.json"):
        return store, {}
    if store.uri.endswith(f"/{TRANSFORMER}") and store.exists("config.json"):
        return open_store(store.uri.removesuffix(f"/{TRANSFORMER}")), {}
    steps = whole_checkpoints(store)
    if not steps:
        raise InputError(
            f"{uri}: no checkpoint there{nearest(uri, pretrained_names())}; give a run, one of its checkpoints, or "
            f"make one with `train`; {', '.join(pretrained_names())} comes with the program"
        )
    folder = store.subfolder(checkpoint_name(steps[-1]))
    return folder, read_state(folder)


def is_model_name(uri: str) -> bool:
    """Whether an address is the name of a model, of the hub or of those that come with the program, and no place."""
    return _is_hub_name(uri) or pretrained_folder(uri) is not None


def _is_hub_name(uri: str) -> bool:
    """Whether an address is a name of the hub: OWNER/MODEL, where nothing here has the name OWNER."""
    return bool(_HUB_NAME.fullmatch(uri)) and not Path(uri.partition("/")[0]).exists()


def _download(name: str) -> Store:
    """The folder of a model of the hub, downloaded once. Raises InputError."""
    from model.weights import model_folder

    folder = model_folder(name, TRANSFORMER)
    if folder.name != TRANSFORMER:
        raise InputError(f"{name}: it has no {TRANSFORMER}/, so it is no OneDiffusion in diffusers layout")
    return open_store(folder.parent)


def find_step(store: Store, name: str) -> int:
    """The step of a run's whole checkpoint by its name, as in step-000500 or 500. Raises InputError."""
    steps = whole_checkpoints(store)
    names = {f"step-{step:06d}": step for step in steps}
    wanted = f"step-{int(name):06d}" if name.isdecimal() else name.rstrip("/").rsplit("/", 1)[-1]
    if wanted not in names:
        there = ", ".join(names) or "none"
        raise InputError(f"{store.uri}: no whole checkpoint {name!r}{nearest(wanted, list(names))}; there are: {there}")
    return names[wanted]


def remove_checkpoint(store: Store, step: int) -> None:
    """Remove a checkpoint, which is not whole from the first moment on."""
    store.delete(f"{checkpoint_name(step)}/{STATE}")
    store.delete_tree(checkpoint_name(step))


def prune_checkpoints(store: Store, step: int, keep: int, keep_hours: float) -> None:
    """Remove the checkpoints before that of `step` but the newest (`keep`, with it) and that of step 0.

    What a process that was killed left of one, while it wrote or removed it, goes too.
    keep_hours: one stays for every so many hours besides, by the times in state.json; 0 keeps none for its age.
    """
    whole = whole_checkpoints(store)
    for before in _folder_steps(store):
        if before < step and before not in whole:
            remove_checkpoint(store, before)
    older = [before for before in whole if 0 < before < step]
    stay = set(older[-(keep - 1) :]) if keep > 1 else set()
    if keep_hours and len(older) > len(stay):
        kept_at: datetime | None = None
        for before in older:
            saved = load_state(store, before).get(SAVED)
            at = datetime.fromisoformat(saved) if saved else None
            if at and (kept_at is None or at - kept_at >= timedelta(hours=keep_hours)):
                kept_at = at
                stay.add(before)
    for before in older:
        if before not in stay:
            remove_checkpoint(store, before)


def damaged(folder: Store, what: str) -> InputError:
    """What to tell a person of a checkpoint that is not as it was written. what: names the file."""
    run, _, name = folder.uri.rpartition(f"/{FOLDER}/")
    match = _NAME.fullmatch(name)
    before = [step for step in whole_checkpoints(open_store(run)) if step < int(match[1])] if match and run else []
    remedy = (
        f"to go on from the one before it: `train` with --from-checkpoint step-{before[-1]:06d}"
        if before
        else "there is none before it"
    )
    return InputError(f"{folder.uri}: this checkpoint is damaged, {what}; {remedy}")


def checked_index(folder: Store) -> CheckpointIndex:
    """The index in a checkpoint's folder, whose files are all there and of their sizes. Raises InputError."""
    try:
        index = read_index(folder)
    except FileNotFoundError as error:
        raise damaged(folder, f"{error} is not there") from None
    except (ValueError, KeyError, struct.error):
        name = INDEX if folder.exists(INDEX) else f"{TRANSFORMER}/ or {OLD_TRAINING}"
        raise damaged(folder, f"{name} is not what was written") from None
    found = folder.walk()
    for file in index.files:
        if file.name not in found:
            raise damaged(folder, f"{file.name} is not there")
        if found[file.name].size != file.size:
            raise damaged(folder, f"{file.name} has {found[file.name].size} bytes, not {file.size}")
    return index


def check_checkpoint(store: Store, step: int, content: bool = False) -> None:
    """Raise InputError, naming the file, where a run's checkpoint is damaged.

    content: read every byte and compare checksums; otherwise files are looked for, and their sizes.
    """
    folder = store.subfolder(checkpoint_name(step))
    read_state(folder)
    index = checked_index(folder)
    if not content:
        return
    ranges = [(file, begin, end) for file in index.files for begin, end in file.ranges(_VERIFIED_BYTES)]
    with explained_damage(folder), ThreadPoolExecutor(min(8, folder.parallel)) as threads:
        for _ in threads.map(lambda part: len(read_blocks(folder, *part)), ranges):
            pass


@contextmanager
def explained_damage(folder: Store) -> Iterator[None]:
    """Name the checkpoint, and what can be done, where a file of it turns out damaged."""
    try:
        yield
    except DamagedFile as error:
        raise damaged(folder, str(error)) from None
