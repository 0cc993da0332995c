"""The loss on rows that are kept from training, at every checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import tensorboard_steps

from labeling.dataset import open_store
from training.batch import StepBatch
from training.checkpoint import load_checkpoint
from training.config import load_config
from training.metrics_logger import read_metrics
from training.objective import flow_matching_loss
from training.packed_model import PackedModel
from training.plan.mixture import build_manifest
from training.reader import PlanReader
from training.run import run_training


@pytest.mark.usefixtures("ray_cluster")
def test_validation_loss_is_measured_at_every_checkpoint(shared_config: dict[str, Any], tmp_path: Path) -> None:
    values = {**shared_config, "steps": 4, "log_every": 3, "validation": {"share": 0.3, "samples": 12}}
    values["workers"] = {**shared_config["workers"], "count": 2, "pack_tokens": 100}
    config = load_config("debug", values)
    result = run_training(config, str(tmp_path / "run"))
    training, validation = build_manifest(config.mixture, config.size, config.lanes).split(0.3, config.seed)
    assert result.rows == training.counts()
    records = read_metrics(open_store(tmp_path / "run"))
    assert [(record["step"], "loss" in record) for record in records] == [(2, False), (3, True), (4, True)]
    assert tensorboard_steps(tmp_path / "run", "validation_loss") == [2, 4]
    # By hand, in one process: the averaged weights of the checkpoint on the samples that the plan gives.
    reader = PlanReader(validation, config, "dct")
    for record in (records[0], records[2]):
        transformer, _ = load_checkpoint(tmp_path / "run" / "checkpoints" / f"step-{record['step']:06d}")
        model, losses = PackedModel(transformer), []
        for step in range(2):
            batch = StepBatch.from_bytes(reader.read(step, 0, 1).to_bytes())
            with torch.no_grad():
                sums = [float(flow_matching_loss(model, pack)[0]) for pack in batch.packs]
            losses.append(sum(sums) / batch.frames_in_loss)
        assert record["validation_loss"] == pytest.approx(sum(losses) / 2, rel=1e-4)
        assert set(record["validation_losses"]) <= {task for task, count in validation.counts().items() if count}
    assert records[2]["validation_loss"] != records[0]["validation_loss"]
