"""Where a run's metrics go besides metrics.jsonl: TensorBoard, Weights & Biases, MLflow, by accelerate's trackers."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from model.inputs import InputError, one_line
from training.config import TrainingConfig
from training.metrics_logger import TENSORBOARD, MetricsLogger

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.tracking import GeneralTracker

_MLFLOW_FILE = "mlflow.db"  # of a run, where no server is named


def trackers(config: TrainingConfig, logger: MetricsLogger, start: int) -> list[GeneralTracker]:
    """The trackers of a run, not yet started. start: the step that it continues from."""
    from accelerate.tracking import MLflowTracker, TensorBoardTracker, WandBTracker

    folder, project = str(logger.folder), "onediffusion"
    identity = hashlib.blake2b(logger.store.uri.encode(), digest_size=6).hexdigest()
    made: dict[str, Any] = {
        # Records after the step it continues from come again.
        "tensorboard": lambda: TensorBoardTracker(TENSORBOARD, folder, purge_step=start + 1),
        "wandb": lambda: WandBTracker(project, name=config.name, id=identity, resume="allow", dir=folder),
        "mlflow": lambda: MLflowTracker(project, run_name=config.name),
    }
    if "mlflow" in config.trackers and not os.environ.get("MLFLOW_TRACKING_URI"):
        # A database: in files a metric `loss` cannot be beside `loss/edges`.
        if logger.remote and logger.store.exists(_MLFLOW_FILE):  # what was tracked before the run continues
            logger.folder.joinpath(_MLFLOW_FILE).write_bytes(logger.store.read(_MLFLOW_FILE))
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/{_MLFLOW_FILE}"
    return [made[name]() for name in dict.fromkeys(config.trackers)]


def start_trackers(accelerator: Accelerator, config: TrainingConfig) -> None:
    """Start an accelerator's trackers, telling those that show it the configuration.

    Raises InputError for what a tracker asks for, and OSError for what a disk refuses.
    """
    try:
        accelerator.init_trackers(config.name)
    except (PermissionError, NotADirectoryError, FileExistsError):
        raise
    except Exception as error:  # an account, a server, a package that is not there
        names = ", ".join(config.trackers)
        raise InputError(
            f"trackers {names}: one cannot start ({one_line(error, 200)}); WANDB_MODE=offline keeps W&B's records in "
            "the run, MLFLOW_TRACKING_URI names MLflow's server"
        ) from error
    for tracker in accelerator.trackers:
        if tracker.name != "tensorboard":  # which would begin a run of its own for it
            tracker.store_init_configuration(dict(_flat(config.model_dump(mode="json"))))


def _flat(values: Mapping[str, Any], place: str = "") -> list[tuple[str, Any]]:
    """(key, value) of nested values, keys joined by dots."""
    pairs: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{place}.{key}".strip(".")
        pairs += _flat(value, name) if isinstance(value, Mapping) else [(name, value)]
    return pairs
