"""Metrics go to the trackers that a run names, with no server and no account."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from labeling.dataset import LocalStore
from model.inputs import InputError
from training.config import load_config
from training.metrics_logger import MetricsLogger
from training.trackers import start_trackers, trackers


@pytest.mark.parametrize("tracker", ["wandb", "mlflow"])
def test_metrics_and_configuration_are_tracked_offline(
    tracker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    for name in ("MLFLOW_TRACKING_URI", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = load_config("debug", {"trackers": ["tensorboard", tracker]})
    logger = MetricsLogger(LocalStore(str(tmp_path / "run")), 0)
    try:
        accelerator = Accelerator(cpu=True, log_with=trackers(config, logger, 0))
        start_trackers(accelerator, config)
        accelerator.log({"loss": 0.5, "loss/edges": 0.25}, step=3)
        accelerator.end_training()
    finally:
        AcceleratorState._reset_state(True)
        logger.close()
    run = tmp_path / "run"
    assert list(run.glob("tensorboard/events*"))
    if tracker == "wandb":
        assert len(list(run.glob("wandb/offline-run-*/*.wandb"))) == 1, "which a process of W&B's goes on filling"
    else:
        tracked = sqlite3.connect(run / "mlflow.db").execute
        assert tracked("SELECT key, value, step FROM metrics ORDER BY key").fetchall() == [
            ("loss", 0.5, 3),
            ("loss/edges", 0.25, 3),
        ]
        assert tracked("SELECT value FROM params WHERE key = 'optimizer.learning_rate'").fetchall() == [("0.003",)]


def test_unknown_tracker_is_named() -> None:
    with pytest.raises(InputError, match=r"trackers.*'tensorboard', 'wandb' or 'mlflow'"):
        load_config("debug", ["trackers=[wanb]"])
