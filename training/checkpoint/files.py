"""The files of a run's checkpoints, on disk or S3: safetensors and JSON only.

RUN/checkpoints/step-000500/
    transformer/            averaged weights in diffusers layout: what is sampled from
    training.safetensors    live weights and optimizer state: what training continues from
    state.json              step, configuration, codec, text encoder; written last, so it marks the checkpoint whole
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labeling.dataset import Store, open_store
from model.inputs import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from model.transformer import NextDiT

FOLDER = "checkpoints"
_NAME = re.compile(r"step-(\d{6,})")
MODEL, OPTIMIZER = "model.", "optimizer."  # of names in training.safetensors: model.NAME, optimizer.NAME/KEY
STATE, _TRAINING, _TRANSFORMER = "state.json", "training.safetensors", "transformer"


def checkpoint_name(step: int) -> str:
    """Folder of the checkpoint after that many steps, within the run."""
    return f"{FOLDER}/step-{step:06d}"


def whole_checkpoints(store: Store) -> list[int]:
    """Steps of a run's whole checkpoints, ascending."""
    folders = [(int(match[1]), name) for name in store.folders(FOLDER) if (match := _NAME.fullmatch(name))]
    return [step for step, name in sorted(folders) if store.exists(f"{FOLDER}/{name}/{STATE}")]


def save_checkpoint(
    store: Store,
    transformer: NextDiT,
    training: Mapping[str, Tensor],
    state: Mapping[str, Any],
    keep: int,
) -> str:
    """Write the checkpoint of state["step"] and drop older ones but the newest `keep` (and that of step 0).

    transformer: with the averaged weights; training: tensors by name. Returns the checkpoint's address.
    """
    from safetensors.torch import save_file

    name = checkpoint_name(state["step"])
    store.delete_tree(name)  # what a killed writer left
    with tempfile.TemporaryDirectory(prefix="onediffusion-") as scratch:
        transformer.save_pretrained(Path(scratch, _TRANSFORMER))
        for path in sorted(Path(scratch, _TRANSFORMER).iterdir()):
            store.put_file(f"{name}/{_TRANSFORMER}/{path.name}", path)
    target = store.scratch(f"{name}/{_TRAINING}")
    save_file(dict(training), target)
    store.put_file(f"{name}/{_TRAINING}", target)
    store.put(f"{name}/{STATE}", json.dumps(state, indent=1, sort_keys=True).encode() + b"\n")
    older = [step for step in whole_checkpoints(store) if 0 < step < state["step"]]
    for step in older[: max(0, len(older) - (keep - 1))]:
        store.delete(f"{checkpoint_name(step)}/{STATE}")  # no longer whole from here on
        store.delete_tree(checkpoint_name(step))
    return f"{store.uri}/{name}"


def load_state(store: Store, step: int) -> dict[str, Any]:
    """state.json of a checkpoint."""
    return dict(json.loads(store.read(f"{checkpoint_name(step)}/{STATE}")))


def load_training(store: Store, step: int) -> dict[str, Tensor]:
    """The tensors that training continues from."""
    from safetensors.torch import load_file

    with _LocalPath(store, f"{checkpoint_name(step)}/{_TRAINING}") as path:
        return load_file(path)


def live_weights(uri: str | Path) -> dict[str, Tensor]:
    """The weights that training continues from, named as NextDiT names them.

    uri: RUN, or RUN/checkpoints/step-…. Raises InputError where there is no whole checkpoint of a run.
    """
    from safetensors.torch import load_file

    store, state = _find(str(uri))
    if not state:
        raise InputError(f"{uri}: no checkpoint of a run, so it has no live weights; export the averaged ones")
    with _LocalPath(store, _TRAINING) as path:
        tensors = load_file(path)
    return {name.removeprefix(MODEL): value for name, value in tensors.items() if name.startswith(MODEL)}


def load_checkpoint(uri: str | Path) -> tuple[NextDiT, dict[str, Any]]:
    """(transformer in eval mode with the averaged weights, state) of a checkpoint, or of a run's newest one.

    uri: RUN, RUN/checkpoints/step-…, or any folder with transformer/ in diffusers layout (its state is then {}).
    Raises InputError when there is no whole checkpoint.
    """
    from model.transformer import NextDiT

    store, state = _find(str(uri))
    with _LocalPath(store, _TRANSFORMER) as path:
        transformer = NextDiT.from_pretrained(path, use_safetensors=True)
    return transformer.eval(), state


def _find(uri: str) -> tuple[Store, dict[str, Any]]:
    """(store with transformer/, state) of the checkpoint that an address means. Raises InputError."""
    store = open_store(uri)
    if store.exists(f"{_TRANSFORMER}/config.json"):
        if store.exists(STATE):
            return store, dict(json.loads(store.read(STATE)))
        if _NAME.fullmatch(store.uri.rsplit("/", 1)[-1]):
            raise InputError(f"{uri}: this checkpoint is not whole (no {STATE}); take an earlier one")
        return store, {}
    steps = whole_checkpoints(store)
    if not steps:
        raise InputError(f"{uri}: no checkpoint there; give a run, one of its checkpoints, or make one with `train`")
    return open_store(f"{store.uri}/{checkpoint_name(steps[-1])}"), load_state(store, steps[-1])


class _LocalPath:
    """A local path of a file or folder of a store; what came from S3 is removed on leaving."""

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name = store, name
        self._scratch: str | None = None

    def __enter__(self) -> Path:
        if not self._store.uri.startswith("s3://"):
            return Path(self._store.uri, self._name)
        self._scratch = tempfile.mkdtemp(prefix="onediffusion-")
        target = Path(self._scratch, Path(self._name).name)
        files = self._store.walk(self._name)
        if not files:
            target.write_bytes(self._store.read(self._name))
        for name in files:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(self._store.read(f"{self._name}/{name}"))
        return target

    def __exit__(self, *failure: object) -> None:
        if self._scratch:
            shutil.rmtree(self._scratch, ignore_errors=True)
