"""Runs on a real local Ray: the same numbers for any number of workers, after a kill, on disk and on S3."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import recorded_training
import torch
from click.testing import Result
from process_tree import training_workers
from tiny_training import tensorboard_steps
from typer.testing import CliRunner

from labeling.dataset import open_store
from model.inputs import InputError
from model.inputs.yaml_files import to_yaml
from pipelines.cli.app import app
from pipelines.jobs.log import log_lines
from pipelines.jobs.status import find_attempt
from training.checkpoint import load_checkpoint, load_training, whole_checkpoints
from training.config import load_config
from training.metrics_logger import read_metrics
from training.plan.dealing import Dealer
from training.plan.manifest import Manifest
from training.run import TrainingResult, run_training

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.long]


def _merged(settings: dict[str, Any], **changes: Any) -> dict[str, Any]:
    merged = dict(settings)
    for name, value in changes.items():
        merged[name] = {**merged.get(name, {}), **value} if isinstance(value, dict) else value
    return merged


def _run(settings: dict[str, Any], run: Path | str, events: list[Any] | None = None, **changes: Any) -> TrainingResult:
    config = load_config("debug", _merged(settings, **changes))
    return run_training(config, str(run), None if events is None else events.append)


def _training(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_training(open_store(run), step)


def _losses(run: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(open_store(run))]


@pytest.fixture(scope="module")
def whole(
    shared_config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, ray_cluster: None
) -> tuple[Path, TrainingResult, list[Any]]:
    """An undisturbed run with one worker: its folder, its result and its events."""
    run, events = tmp_path_factory.mktemp("runs") / "whole", []
    return run, _run(shared_config, run, events), events


def test_run_writes_checkpoints_metrics_and_events(whole: tuple[Path, TrainingResult, list[Any]]) -> None:
    run, result, events = whole
    assert (result.step, result.resumed_from, result.already_finished) == (30, 0, False)
    assert result.checkpoint == f"{run}/checkpoints/step-000030"
    assert result.rows == {"text2image": 11, "edges": 10, "segmentation": 10, "deblurring": 11, "views": 3}
    assert whole_checkpoints(open_store(run)) == [0, *range(4, 31, 2)], "the newest fourteen, and the first"
    records = read_metrics(open_store(run))
    assert [record["step"] for record in records] == list(range(1, 31))
    assert set().union(*(record["losses"] for record in records)) == set(result.rows)
    assert all(record["tokens_per_second"] > 0 and record["tflops_per_second"] > 0 for record in records)
    assert records[-1] == result.metrics
    assert events[0]["event"] == "mixture"
    assert [event["step"] for event in events if event["event"] == "checkpoint"] == list(range(0, 31, 2))
    assert all(event["checkpoint"].endswith(f"step-{event['step']:06d}") for event in events if "checkpoint" in event)
    assert [event["step"] for event in events if event["event"] == "step"] == list(range(1, 31))
    assert tensorboard_steps(run, "loss") == list(range(1, 31))
    transformer, state = load_checkpoint(run)
    assert not transformer.training
    assert (state["step"], state["codec"], state["text_encoder"]) == (30, "dct", "minilm")
    assert state["config"]["model"]["hidden_size"] == 48
    # The average is neither the first weights nor the last.
    first, _ = load_checkpoint(run / "checkpoints" / "step-000000")
    name = "x_embedder.weight"
    average = transformer.state_dict()[name]
    assert not torch.equal(average, first.state_dict()[name])
    assert not torch.equal(average, _training(run, 30)[f"model.{name}"])
    assert {path.name for path in (run / "checkpoints" / "step-000030").iterdir()} == {
        "shard-00000-of-00001.safetensors",
        "index.json",
        "state.json",
    }


def test_loss_falls(whole: tuple[Path, TrainingResult, list[Any]]) -> None:
    losses = _losses(whole[0])
    assert sum(losses[-8:]) < 0.9 * sum(losses[:8])


def test_worker_that_is_killed_costs_no_sample_and_number_of_workers_and_packs_do_not_change_a_run(
    whole: tuple[Path, TrainingResult, list[Any]],
    shared_config: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SIGKILL to one of two workers after the third step, before the fourth; they continue from a checkpoint."""
    run, events = tmp_path / "two", []
    monkeypatch.setattr("training.run._train_worker", recorded_training.worker_recorded_beside)
    folder = recorded_training.folder_beside(str(run))
    (folder / "samples").mkdir(parents=True)
    (folder / "gate").write_text("2")  # the last step that may be read, from 0

    def kill_one(event: dict[str, Any]) -> None:
        events.append(event)
        if (event["event"], event.get("step")) == ("step", 3) and not _failures(events):
            workers = training_workers()
            assert len(workers) == 2
            workers[-1].send_signal(signal.SIGKILL)
            (folder / "gate").write_text("4")

    workers = {"count": 2, "pack_tokens": 100, "max_failures": 1}
    config = load_config("debug", _merged(shared_config, steps=4, workers=workers))
    run_training(config, str(run), kill_one)
    [failure] = _failures(events)
    assert failure["times"] == 1 and failure["step"] in (3, 4)  # the fourth has begun where its message came
    _compare(whole[0], run)
    dealer = Dealer(Manifest.read(open_store(whole[0])), config)
    dealt = {step + 1: set(recorded_training.marks_of(dealer.deal(step, 0, 1)[0]).items()) for step in range(4)}
    assert recorded_training.recorded_samples(folder) == dealt


def test_shards_do_not_change_a_run(
    whole: tuple[Path, TrainingResult, list[Any]], shared_config: dict[str, Any], tmp_path: Path
) -> None:
    """FSDP2 also continues from a checkpoint that it wrote."""
    workers = {"count": 2, "pack_tokens": 100, "fsdp": True}
    for steps in (2, 4):
        _run(shared_config, tmp_path / "two", steps=steps, workers=workers)
    _compare(whole[0], tmp_path / "two")


def _failures(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] == "failure"]


def _compare(whole: Path, other: Path) -> None:
    """A run of four steps is the beginning of the whole one, up to rounding."""
    assert _losses(other) == pytest.approx(_losses(whole)[:4], rel=1e-5)
    one, two = _training(whole, 4), _training(other, 4)
    assert one.keys() == two.keys()
    compared = 0
    for name, value in one.items():
        if name.endswith("/exp_avg"):
            torch.testing.assert_close(value, two[name], rtol=1e-3, atol=1e-6)
        if name.startswith("model."):
            # Cross-attention starts behind a gate of 0 and a key's bias moves all logits alike: their gradients are
            # rounding, which Adam makes whole steps of.
            if float(one[f"optimizer.{name.removeprefix('model.')}/exp_avg_sq"].max()) < 1e-11:
                continue
            torch.testing.assert_close(value, two[name], rtol=1e-3, atol=1e-4)
            compared += 1
    assert compared > 20


def test_killed_run_resumes_to_the_same_weights(
    whole: tuple[Path, TrainingResult, list[Any]], shared_config: dict[str, Any], tmp_path: Path
) -> None:
    import ray  # not before ray_cluster has set how it authenticates

    killed = tmp_path / "killed"
    command = [sys.executable, "-c", _DRIVER, str(_settings(tmp_path, [shared_config])), str(killed)]
    address = ray.get_runtime_context().gcs_address
    driver = subprocess.Popen(command, start_new_session=True, env={**os.environ, "RAY_ADDRESS": address})
    deadline = time.monotonic() + 400
    while not any(whole_checkpoints(open_store(killed))) and time.monotonic() < deadline:
        assert driver.poll() is None, "the run ended before it could be killed"
        time.sleep(0.02)
    workers = training_workers()
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    psutil.wait_procs(workers, timeout=120)  # the workers end after their driver
    assert not training_workers()
    resumed_at = whole_checkpoints(open_store(killed))[-1]
    assert 0 < resumed_at < 30
    # What a writer that dies leaves: a checkpoint without its last file, and half a line of metrics.
    (killed / "checkpoints" / "step-000099").mkdir()
    (killed / "checkpoints" / "step-000099" / "shard-00000-of-00001.safetensors").write_bytes(b"half")
    with (killed / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 11, "lo')
    events: list[Any] = []
    result = _run(shared_config, killed, events)
    assert result.resumed_from == resumed_at
    assert {"event": "resume", "step": resumed_at} in events
    first, second = _training(whole[0], 30), _training(killed, 30)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    averaged = load_checkpoint(killed)[0].state_dict()
    for name, value in load_checkpoint(whole[0])[0].state_dict().items():
        assert torch.equal(value, averaged[name]), name
    assert _losses(killed) == _losses(whole[0])
    assert tensorboard_steps(killed, "loss") == list(range(1, 31))


def test_damaged_checkpoint_is_named_and_failed_save_ends_run(
    whole: tuple[Path, TrainingResult, list[Any]], shared_config: dict[str, Any], tmp_path: Path
) -> None:
    """From the command line. A cut file is noticed before workers start, other bytes by the worker that reads them."""
    run, config = tmp_path / "run", tmp_path / "run.yaml"
    shutil.copytree(whole[0], run)
    config.write_text(to_yaml({**shared_config, "base": "debug", "steps": 32}))

    def train(*more: str) -> Result:
        return CliRunner().invoke(app, ["train", str(config), "--run", str(run), *more])

    shards = {step: run / "checkpoints" / f"step-{step:06d}" / "shard-00000-of-00001.safetensors" for step in (28, 30)}
    content = bytearray(shards[30].read_bytes())
    content[-5] ^= 1
    shards[30].write_bytes(content)
    for said in ("holds other bytes than were written", "has 1000 bytes"):
        result = train()
        assert isinstance(result.exception, InputError), result.output
        assert f"step-000030: this checkpoint is damaged, {shards[30].name} {said}" in str(result.exception)
        assert "--from-checkpoint step-000028" in str(result.exception)
        os.truncate(shards[30], 1000)
    assert isinstance(train("--from-checkpoint", "step-000030").exception, InputError)
    assert whole_checkpoints(open_store(run))[-1] == 30, "nothing was removed"
    (run / "checkpoints" / "step-000032").write_text("in the way")
    result = train("--from-checkpoint", "step-000028")
    assert isinstance(result.exception, InputError), result.output
    assert (
        str(result.exception)
        == f"{run}/checkpoints/step-000032: cannot write there (File exists); choose another folder"
    )
    assert "back to step 28; removed step-000030" in result.output and "continuing from step 28" in result.output
    assert whole_checkpoints(open_store(run))[-2:] == [28, 30], "the good one stays"
    first, second = _training(whole[0], 30), _training(run, 30)
    assert first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def test_refused_start_leaves_nothing(
    whole: tuple[Path, TrainingResult, list[Any]], shared_config: dict[str, Any], tmp_path: Path
) -> None:
    """From the command line: no folder of the run, and none of those that it lies in."""
    config, run = tmp_path / "run.yaml", tmp_path / "runs" / "mine"
    for words, changes, options in (
        ("no whole checkpoint 'step-000500'", {}, ["--from-checkpoint", "step-000500"]),
        ("leaves none for validation", {"validation": {"share": 1e-6}}, []),
        ("a model with hidden_size 48", {"model": {"hidden_size": 96}, "initialize": str(whole[0])}, []),
    ):
        config.write_text(to_yaml({**_merged(shared_config, **changes), "base": "debug"}))
        result = CliRunner().invoke(app, ["train", str(config), "--run", str(run), *options])
        assert isinstance(result.exception, InputError) and words in str(result.exception), result.output
        assert not (tmp_path / "runs").exists()


def test_job_file_goes_back_to_a_checkpoint_once(
    whole: tuple[Path, TrainingResult, list[Any]],
    shared_config: dict[str, Any],
    tmp_path: Path,
    shared_ray: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From `submit`: the steps after it are done again, and not once more by the next attempt."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    run, job = tmp_path / "run", tmp_path / "job.yaml"
    shutil.copytree(whole[0], run)
    values = {"kind": "train", "config": "debug", "run": str(run), "overrides": shared_config}
    job.write_text(to_yaml({**values, "from_checkpoint": "step-000028"}))
    logs = []
    for _ in range(2):
        sent = CliRunner().invoke(app, ["submit", str(job)], catch_exceptions=False)
        logs.append(list(log_lines(find_attempt(sent.stdout.split()[-1]), follow=True)))
    assert "train: back to step 28; removed step-000030" in logs[0]
    assert any(line.startswith("train: 2 steps in") for line in logs[0]), logs[0]
    assert "train: finished already, at step 30" in logs[1][len(logs[0]) :]
    assert not any("back to step" in line for line in logs[1][len(logs[0]) :])
    first, second = _training(whole[0], 30), _training(run, 30)
    assert first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def test_finished_run_does_nothing_and_other_configuration_is_refused(
    whole: tuple[Path, TrainingResult, list[Any]], shared_config: dict[str, Any]
) -> None:
    run = whole[0]
    before = {path: path.stat().st_mtime_ns for path in (run / "checkpoints").rglob("*")}
    result = _run(shared_config, run)
    assert result.already_finished
    assert result.step == result.resumed_from == 30
    assert {path: path.stat().st_mtime_ns for path in (run / "checkpoints").rglob("*")} == before
    remedy = r"keep to it \(--set 'model.hidden_size=48'\)"
    with pytest.raises(
        InputError, match=f"was begun with model.hidden_size 48, the configuration now says 96; {remedy}"
    ):
        _run(shared_config, run, model={"hidden_size": 96})


def test_values_that_are_not_finite_are_never_saved_and_the_remedy_works(
    shared_config: dict[str, Any], tmp_path: Path
) -> None:
    """Logged more rarely than saved, as the steps that diverge once were."""
    run = tmp_path / "diverging"
    rate = {"learning_rate": 1e30, "warmup": 0, "schedule": "constant"}
    with pytest.raises(InputError, match=r"not finite at step \d+ or just before") as error:
        _run(shared_config, run, optimizer=rate, log_every=1000, checkpoints={"every": 2, "keep": 1, "first": True})
    steps = whole_checkpoints(open_store(run))
    for step in steps:
        assert all(value.isfinite().all() for value in _training(run, step).values())
    sound = f"{run}/checkpoints/step-{steps[-1]:06d}"
    assert f"--set initialize={sound}" in str(error.value)
    again = _run(shared_config, tmp_path / "again", steps=1, initialize=sound)
    assert again.step == 1


def test_missing_shard_stops_the_run_and_is_named(
    whole: tuple[Path, TrainingResult, list[Any]],
    shared_config: dict[str, Any],
    pictures_dataset: Path,
    tmp_path: Path,
) -> None:
    run = Path(shutil.copytree(whole[0], tmp_path / "run"))
    for shard in ("000000", "000001"):
        (pictures_dataset / "text" / f"{shard}.parquet").unlink()
    mixture = {**shared_config["mixture"]}
    mixture["pictures"] = {**mixture["pictures"], "dataset": str(pictures_dataset)}  # a moved dataset may go on
    with pytest.raises(InputError, match=r"text/00000\d.parquet: gone since the run began"):
        _run(shared_config, run, steps=34, mixture=mixture, workers={"max_failures": 1})
    assert whole_checkpoints(open_store(run))[-1] == 30


def test_run_on_s3_resumes_and_equals_a_local_run(
    whole: tuple[Path, TrainingResult, list[Any]],
    shared_config: dict[str, Any],
    tmp_path: Path,
    s3: str,
    s3_server: dict[str, str],
) -> None:
    """In a process of its own, whose Ray processes get the credentials."""
    import ray

    settings = _settings(tmp_path, [{**shared_config, "steps": steps} for steps in (2, 4)])
    command = [sys.executable, "-c", _DRIVER, str(settings), f"{s3}/run"]
    environment = {**os.environ, **s3_server, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    environment["WORKERS_ENVIRONMENT"] = json.dumps(s3_server)
    subprocess.run(command, check=True, timeout=600, env=environment)
    store = open_store(f"{s3}/run")
    assert whole_checkpoints(store) == [0, 2, 4]
    assert [record["loss"] for record in read_metrics(store)] == _losses(whole[0])[:4]
    assert any("events.out" in name for name in store.files("tensorboard"))
    transformer, state = load_checkpoint(f"{s3}/run")
    assert state["step"] == 4
    local, _ = load_checkpoint(whole[0] / "checkpoints" / "step-000004")
    for name, value in local.state_dict().items():
        assert torch.equal(value, transformer.state_dict()[name]), name


_DRIVER = """
import json, os, sys
from cluster.session import prepare_ray, ray_session
prepare_ray()
import ray
ray.init(runtime_env={"env_vars": json.loads(os.environ.get("WORKERS_ENVIRONMENT", "{}"))}, log_to_driver=False)
from training.config import load_config
from training.run import run_training
with ray_session():
    for settings in json.load(open(sys.argv[1])):
        run_training(load_config("debug", settings), sys.argv[2])
"""


def _settings(folder: Path, runs: list[dict[str, Any]]) -> Path:
    """A file of settings for _DRIVER."""
    path = folder / "settings.json"
    path.write_text(json.dumps(runs))
    return path
