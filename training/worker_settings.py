"""What the driver gives every worker of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from training.config import TrainingConfig


@dataclass(frozen=True)
class WorkerSettings:
    """manifest: a Ray reference to the Manifest of what is trained on, and tasks: its tasks, in order.

    validation_manifest: a reference to the Manifest of the validation rows, None where there are none, and
    validation_tasks: its tasks. coordinator: the Coordinator's actor. readers: processes that read for each worker.
    """

    config: TrainingConfig
    run: str
    manifest: Any
    coordinator: Any
    codec: str
    text_encoder: str
    tasks: tuple[str, ...]
    readers: int
    validation_manifest: Any = None
    validation_tasks: tuple[str, ...] = ()
