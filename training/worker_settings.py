"""What the driver gives every worker of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.config import TrainingConfig

_BUILT_IN = ("dct", "minilm")


@dataclass(frozen=True)
class WorkerSettings:
    """folder: where the run was started, below which the names of local folders are.

    manifest: a Ray reference to the Manifest of what is trained on, and tasks: its tasks, in order.

    validation_manifest: a reference to the Manifest of the validation rows, None where there are none, and
    validation_tasks: its tasks. coordinator: the Coordinator's actor. readers: processes that read for each worker.
    """

    config: TrainingConfig
    run: str
    folder: str
    manifest: Any
    coordinator: Any
    codec: str
    text_encoder: str
    tasks: tuple[str, ...]
    readers: int
    validation_manifest: Any = None
    validation_tasks: tuple[str, ...] = ()

    def resolve_path(self, name: str) -> str:
        """The folder of a model from the root, where there is one, since Ray's workers run elsewhere; else the name."""
        path = Path(self.folder, name)
        return str(path) if path.is_dir() and name not in _BUILT_IN else name
