"""Steps that must not change the weights: found, named, skipped, and skipped again; and what pages show of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
import torch
from report_pages import read_page
from typer.testing import CliRunner

from labeling.dataset import Dataset, LocalStore, open_store, write_shard
from model.inputs import InputError
from pipelines.cli.app import app
from pipelines.jobs.running import RunningAttempt
from pipelines.jobs.specification import parse_specification
from pipelines.jobs.steps import run_job
from training.anomalies import SKIPPED, AnomalyWatch, Past, read_skipped
from training.checkpoint import load_training
from training.config import load_config
from training.metrics_logger import read_metrics
from training.monitor_config import AnomalyConfig
from training.sample_folders import drawn_steps

LOSSES = [1.0, 1.1, 0.9, 1.0, 1.2, 0.8, 1.0, 1.1, 0.9, 1.0]  # enough to know what a spike is


def _watch(folder: Path, past: Past | None = None, **values: Any) -> AnomalyWatch:
    def name(indices: Sequence[int]) -> list[dict[str, Any]]:
        facts = {"task": "edges", "id": "abc", "dataset": "data", "shard": "000000", "row": 3}
        return [{"index": index, **facts} for index in indices]

    return AnomalyWatch(AnomalyConfig(**values), LocalStore(str(folder)), torch.device("cpu"), past or Past(), name)


def _accepts(watch: AnomalyWatch, step: int, loss: float, norm: float = 1.0) -> bool:
    return watch.accepts(
        step, torch.tensor(loss, dtype=torch.float64), torch.tensor(norm), lambda: [(7, 0.5), (8, loss), (9, 0.6)]
    )


def test_spikes_are_skipped_by_the_losses_before_and_decided_alike_after_a_resume(tmp_path: Path) -> None:
    policy: dict[str, Any] = {"policy": "skip", "spike": 3.0}
    watch = _watch(tmp_path, **policy)
    assert watch.watches and not _watch(tmp_path).watches
    later = [1.0, 9.0, 1.1, float("nan"), 2.9, 3.5, 1.0]
    decided = [_accepts(watch, step, loss) for step, loss in enumerate([*LOSSES, *later], start=1)]
    assert decided == [True] * 10 + [True, False, True, False, True, False, True]
    records = read_skipped(LocalStore(str(tmp_path)))
    assert [record["step"] for record in records] == [12, 14, 16]
    assert records[0]["reason"] == "the loss of 9 is more than 3 times the median before it"
    assert [sample["index"] for sample in records[0]["samples"]] == [8, 9, 7], "the worst first"
    assert [sample["index"] for sample in records[1]["samples"]] == [8], "the one that is not finite"
    assert records[1]["loss"] == "nan"
    # Continued from the checkpoint of step 10, it decides the same, and does not even compute what it knows.
    again = _watch(tmp_path, Past(records, json.loads(json.dumps(LOSSES))), **policy)
    found = [not again.was_skipped(step) and _accepts(again, step, loss) for step, loss in enumerate(later, start=11)]
    assert found == decided[10:] and again.losses == watch.losses


def test_policy_to_stop_names_step_and_samples_and_too_many_skipped_steps_stop(tmp_path: Path) -> None:
    watch = _watch(tmp_path, Past(losses=LOSSES), spike=3)
    with pytest.raises(InputError, match=r"step 11: the loss of 9 is more .*: sample 8 \(edges, id abc, row 3 of data"):
        _accepts(watch, 11, 9.0)
    with pytest.raises(InputError, match=r"the gradient is not finite.*--replay-step 11.*anomalies.policy=skip"):
        _accepts(watch, 11, 1.0, float("inf"))
    assert not (tmp_path / SKIPPED).exists()
    watch = _watch(tmp_path, policy="skip", most=2)
    assert [_accepts(watch, step, float("inf")) for step in (1, 2)] == [False, False]
    with pytest.raises(InputError, match=r"3 of the last 100 steps were skipped, now step 3 \(the loss is not finite"):
        _accepts(watch, 3, float("inf"))
    with pytest.raises(InputError, match="losses are above their median half of the time"):
        load_config("debug", ["anomalies.spike=0.5"])


@pytest.fixture
def broken_latent(pictures_dataset: Path) -> Path:
    """The pictures, of which row 6 has a latent with numbers that are not finite."""
    dataset = Dataset.open(pictures_dataset)
    table = dataset.read("latents-64", "000000")
    rows = table["latent"].to_pylist()
    rows[6] = np.full(len(rows[6]), np.nan, np.float16)
    place = table.schema.get_field_index("latent")
    field = table.schema.field(place)
    table = table.set_column(place, field, pa.array(rows, field.type))
    write_shard(dataset.store, "latents-64", "000000", table, [4, 4], "recipe")
    return pictures_dataset


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.long
def test_run_skips_a_broken_row_on_all_workers_and_again_when_it_goes_back(
    broken_latent: Path, small_config: dict[str, Any], tmp_path: Path
) -> None:
    from training.run import run_training

    changes = {
        "steps": 10,
        "workers": {"count": 2, "threads": 1, "fsdp": True},
        "checkpoints": {"every": 2, "keep": 9},
        "anomalies": {"policy": "skip"},
        "validation": {"share": 0.0, "pictures": 1, "denoise_steps": 2, "guidance": 2.0},
    }
    config, run = load_config("debug", {**small_config, **changes}), tmp_path / "run"
    run_training(config, str(run))
    store = open_store(run)
    skipped = read_skipped(store)
    steps = [record["step"] for record in skipped]
    assert steps and set(steps) < set(range(1, 11)), "some steps have the row, some have not"
    for record in skipped:
        assert {(sample["id"], sample["row"]) for sample in record["samples"]} == {("6", 6)}
    metrics = {record["step"]: record for record in read_metrics(store)}
    assert [step for step, record in metrics.items() if "loss" not in record] == steps
    assert all(record["memory_gb"] > 0 and record.get("level_losses", True) for record in metrics.values())
    assert all(bool(value.isfinite().all()) for value in load_training(store, 10).values())

    alone = config.model_copy(update={"workers": config.workers.model_copy(update={"count": 1})})
    before = (run / SKIPPED).read_bytes()
    run_training(alone, str(run), from_checkpoint="step-000004")
    assert (run / SKIPPED).read_bytes() == before
    for record in read_metrics(store):
        earlier = metrics[record["step"]]
        assert ("loss" in record) == ("loss" in earlier)
        assert "loss" not in record or record["loss"] == pytest.approx(earlier["loss"], rel=1e-4)

    assert drawn_steps(store) == [2, 4, 6, 8, 10]
    drawn = json.loads((run / "samples/step-000010/samples.json").read_text())
    assert {(one["task"], one["direction"]) for one in drawn} >= {("text2image", "to_image"), ("edges", "from_image")}
    for name, value in (("with", str(run)), ("replay_step", steps[0])):
        result = CliRunner().invoke(app, ["report", str(run), f"--{name.replace('_', '-')}", str(value)])
        assert result.exit_code == 0, result.output
        written = result.output.strip().splitlines()[-1]
        page = read_page(written)
        assert "not finite" in page.text and page.all("img")
        Path(written).unlink()
        job = parse_specification({"kind": "report", "of": str(run), name: value}, "job")
        assert run_job(job, cast(RunningAttempt, None)) == {"page": written} and read_page(written).all("img")
    assert f"Step {steps[0]} of debug" in page.text
    assert page.text.count("shard 00000") == config.batch and "σ 0." in page.text
