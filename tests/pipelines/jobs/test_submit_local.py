"""Jobs on this machine: submitted, followed, stopped, scaled, killed; each a real process that outlives its sender."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml

from cluster.local import work_processes
from labeling.dataset import Dataset, open_store
from model.inputs import InputError
from pipelines.jobs.attempt import Attempt
from pipelines.jobs.control import scale_job, stop_job
from pipelines.jobs.folder import JobFolder
from pipelines.jobs.log import log_lines
from pipelines.jobs.resolved import resolve_job
from pipelines.jobs.specification import WorkersSpec, parse_specification
from pipelines.jobs.status import find_attempt, job_status, list_jobs
from pipelines.jobs.submit import plan_job, submit_job
from pipelines.train import refuse_impossible
from training.checkpoint import load_training, whole_checkpoints
from training.config import load_config
from training.coordinator import ControlRequest
from training.metrics_logger import read_metrics
from training.run import run_training

pytestmark = [pytest.mark.slow, pytest.mark.long]
LABELS = ["edges", "boxes"]


@pytest.fixture(autouse=True)
def own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A data folder of the test's own; processes that it leaves running are killed."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    yield
    for attempt, _ in list_jobs():
        for process in work_processes(attempt.name):
            process.kill()


def label_job(pictures: Path, dataset: str, **more: Any) -> Any:
    values = {"kind": "label", "source": str(pictures), "dataset": dataset, "groups": LABELS, **more}
    return resolve_job(parse_specification(values, "job"))


def train_job(config: dict[str, Any], run: str, **more: Any) -> Any:
    return resolve_job(
        parse_specification({"kind": "train", "config": "debug", "overrides": config, "run": run, **more}, "job")
    )


def until(moment: Callable[[], Any], attempt: Attempt, seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not moment():
        state = job_status(attempt)
        assert state.alive, (state, *log_lines(attempt))
        assert time.monotonic() < deadline, list(log_lines(attempt))
        time.sleep(0.2)


def until_ended(moment: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 120
    while not moment():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def finished(attempt: Attempt) -> list[str]:
    """Follow a job to its end and return its log."""
    lines = list(log_lines(attempt, follow=True))
    state = job_status(attempt)
    assert state.phase == "succeeded", (state, lines)
    return lines


def test_label_job_from_command_line_gives_same_shards(pictures: Path, tmp_path: Path, shared_ray: None) -> None:
    """It is sent, sent again, listed and followed; its shards are those of the command itself."""

    def onediffusion(*arguments: str) -> str:
        command = [sys.executable, "-m", "pipelines", *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=240).stdout

    values = {"kind": "label", "source": str(pictures), "dataset": "submitted", "groups": LABELS}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(values))
    would = onediffusion("submit", "job.yaml", "--dry-run")
    assert not (tmp_path / "submitted").exists()
    identity = onediffusion("submit", "job.yaml").strip()
    assert f"{identity} --attempt 1" in would
    again = onediffusion("submit", "job.yaml")
    assert "nothing was sent" in again
    assert again.splitlines()[-1] == identity
    assert identity in onediffusion("jobs")
    assert "edges: 1 shards labeled" in onediffusion("logs", "-f", identity)
    assert "succeeded" in onediffusion("jobs", "submitted")
    assert f"{identity} --attempt 2" in onediffusion("submit", "job.yaml", "--dry-run")
    onediffusion("ingest", str(pictures), "direct")
    onediffusion("label", "direct", *LABELS)
    for group in ("images", *LABELS):
        shards = [tmp_path / place / group / "000000.parquet" for place in ("submitted", "direct")]
        assert shards[0].read_bytes() == shards[1].read_bytes(), group
    result = JobFolder(find_attempt(identity).address).state().result
    assert result["rows"]["edges"] == 6
    assert result["ingest"]["rejected"] == 3


def test_job_on_s3_keeps_its_log_there(pictures: Path, s3: str) -> None:
    attempt = submit_job(label_job(pictures, f"{s3}/jobs-data", groups=["edges"]), "local")
    assert attempt.address.startswith("s3://")
    assert any("edges: 1 shards labeled" in line for line in finished(attempt))
    assert sum(bool(row["edges"]) for row in Dataset.open(f"{s3}/jobs-data").rows("edges")) == 6
    for name in JobFolder(attempt.address).store.walk():
        assert os.environ["AWS_SECRET_ACCESS_KEY"].encode() not in JobFolder(attempt.address).store.read(name)


def test_user_error_is_reason_of_failure(tmp_path: Path) -> None:
    attempt = submit_job(
        resolve_job(parse_specification({"kind": "label", "dataset": str(tmp_path / "none")}, "job")), "local"
    )
    lines = list(log_lines(attempt, follow=True))
    assert "no dataset there" in lines[-1]
    state = job_status(attempt)
    assert state.phase == "failed"
    assert "make it with `ingest`" in state.reason
    folder = Path(attempt.address)
    parts = [path.stat().st_mtime_ns for path in (folder / "log").iterdir()]
    assert parts and (folder / "state.json").stat().st_mtime_ns > max(parts), "the log is whole before it has ended"


def test_stopped_and_killed_jobs_leave_no_process_and_continue(
    pictures: Path, tmp_path: Path, shared_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = label_job(pictures, str(tmp_path / "data"))
    first = submit_job(job, "local")
    until(lambda: (tmp_path / "data" / "edges" / "group.json").exists(), first)
    assert stop_job(first.job_id).phase == "stopped"
    assert not work_processes(first.name)
    with monkeypatch.context() as alone:
        alone.delenv("RAY_ADDRESS")  # it starts a Ray, which must not outlive it
        second = submit_job(job, "local")
    assert second.number == 2
    until(lambda: any("raylet" in process.name() for process in work_processes(second.name)), second)
    leader = JobFolder(second.address).state()
    assert leader is not None
    os.kill(leader.process, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(leader.process)] if psutil.pid_exists(leader.process) else [], timeout=120)
    assert job_status(second).phase == "lost"
    stop_job(second.job_id)
    assert not work_processes(second.name)
    third = submit_job(job, "local")
    assert third.number == 3
    finished(third)


def test_submit_killed_half_way_is_sent_again(pictures: Path, tmp_path: Path, shared_ray: None) -> None:
    """Killed before the target has the job: it is listed, and sent under the same name. Killed later: it is joined."""
    job = label_job(pictures, str(tmp_path / "data"), groups=["edges"])
    script = (
        "import os, sys, yaml\n"
        "from cluster.local import LocalBackend\n"
        "from pipelines.jobs.resolved import resolve_job\n"
        "from pipelines.jobs.specification import parse_specification\n"
        "from pipelines.jobs.submit import submit_job\n"
        "sent = LocalBackend.submit\n"
        "def submit(self, work):\n"
        "    if sys.argv[1] == 'after':\n"
        "        sent(self, work)\n"
        "    os._exit(9)\n"
        "LocalBackend.submit = submit\n"
        "submit_job(resolve_job(parse_specification(yaml.safe_load(sys.stdin), 'job')), 'local')\n"
    )
    for moment, phases in (("before", ["lost"]), ("after", ["pending", "running"])):
        killed = subprocess.run(
            [sys.executable, "-c", script, moment],
            input=yaml.safe_dump(job.specification.model_dump(mode="json")).encode(),
            cwd=Path(__file__).parents[3],
            timeout=240,
        )
        assert killed.returncode == 9
        [(attempt, state)] = list_jobs()
        assert attempt.number == 1
        assert state.phase in phases, state
    attached = submit_job(job, "local")
    assert attached == attempt
    finished(attached)


def test_scaled_stopped_and_interrupted_training_has_same_losses(
    shared_config: dict[str, Any], tmp_path: Path, shared_ray: None
) -> None:
    """With 1 worker, then 2, stopped, sent again, interrupted: the losses and weights of an undisturbed run."""
    config = {**shared_config, "steps": 100_000, "checkpoints": {"every": 100_000, "keep": 2, "first": False}}
    config["optimizer"] = {**config["optimizer"], "learning_rate": 1e-5}  # rounding is not to grow over so many steps
    job = train_job(config, str(tmp_path / "run"))
    store = open_store(tmp_path / "run")
    first = submit_job(job, "local")
    until(lambda: len(read_metrics(store)) >= 3, first)
    with pytest.raises(InputError, match="another configuration"):
        submit_job(train_job({**config, "seed": 5}, str(tmp_path / "run")), "local")
    assert scale_job(first.job_id, WorkersSpec(count=2, cpus=0.25)) == first
    until(lambda: whole_checkpoints(store), first)
    [scaled_at] = whole_checkpoints(store)
    until(lambda: read_metrics(store)[-1]["step"] > scaled_at, first)
    assert stop_job(first.job_id).phase == "stopped"
    stopped_at = whole_checkpoints(store)[-1]
    assert 3 <= scaled_at < stopped_at
    second = submit_job(job, "local")
    until(lambda: read_metrics(store)[-1]["step"] > stopped_at, second)
    leader = JobFolder(second.address).state()
    assert leader is not None
    os.kill(leader.process, signal.SIGTERM)  # as a machine that is needed elsewhere
    until_ended(lambda: job_status(second).phase == "interrupted")
    interrupted_at = whole_checkpoints(store)[-1]
    assert stopped_at < interrupted_at
    lines = list(log_lines(second))
    assert any(f"going on from step {scaled_at} with 2 workers" in line for line in lines)
    assert any(f"continuing from step {stopped_at}" in line for line in lines)
    run_training(load_config("debug", {**config, "steps": interrupted_at}), str(tmp_path / "plain"))
    losses = [[record["loss"] for record in read_metrics(open_store(tmp_path / name))] for name in ("plain", "run")]
    assert len(losses[0]) == interrupted_at
    torch.testing.assert_close(torch.tensor(losses[1]), torch.tensor(losses[0]), rtol=1e-3, atol=1e-4)
    weights = [load_training(open_store(tmp_path / name), interrupted_at) for name in ("plain", "run")]
    for name, value in weights[0].items():
        if name.startswith("model."):
            torch.testing.assert_close(weights[1][name], value, rtol=1e-2, atol=1e-3)


def test_control_request_beyond_machine_is_refused_once(ray_cluster: None) -> None:
    lines: list[str] = []
    for count, heard in ((1, 1), (64, None), ((64, 65), None), (64, None)):
        request = ControlRequest(stop=True, workers=count)
        control = refuse_impossible(lambda request=request: request, load_config("debug"), lines.append)
        assert control() == control() == ControlRequest(stop=True, workers=heard)
    assert len(lines) == 3, "once for each request"
    assert "64 workers ask for" in lines[0]
    assert "it goes on with the workers it has" in lines[0]


def test_unknown_name_is_one_line(pictures: Path) -> None:
    job = label_job(pictures, "data")
    for action in (
        lambda: find_attempt("label-none"),
        lambda: submit_job(job, "loca"),
        lambda: plan_job(job, "nowhere"),
    ):
        with pytest.raises(InputError) as error:
            action()
        assert "\n" not in str(error.value)
        assert "; " in str(error.value)
