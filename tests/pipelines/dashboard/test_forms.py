"""What forms ask for, what they send, and which runs wait for which."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster_judgment import add_run, jobs_to_start

from labeling.resources import Resources
from pipelines.dashboard import dagster_jobs, launch
from pipelines.dashboard.dagster_jobs import DAGSTER_JOBS, start_training
from pipelines.dashboard.dataset_state import dataset_state
from pipelines.dashboard.forms import training_overrides_in
from pipelines.dashboard.instance import SETTINGS
from pipelines.dashboard.metadata import group_metadata
from pipelines.dashboard.snapshots import find_snapshot, refresh
from pipelines.dashboard.tracked_assets import track
from pipelines.dashboard.versions import dataset_versions
from pipelines.jobs.attempt import Attempt, AttemptState, Control
from pipelines.jobs.control import STOP_SECONDS
from pipelines.jobs.folder import JobFolder
from pipelines.jobs.resolved import resolve_job
from pipelines.jobs.specification import LabelJob, TrainJob, WorkersSpec
from pipelines.jobs.status import JobStatus


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ({}, WorkersSpec(count=2, cpus=0.25)),
        ({"least": 0, "most": 0, "cpus": 0.0, "gpus": -1.0}, WorkersSpec(count=2, cpus=0.25)),
        ({"least": 3}, WorkersSpec(count=3, cpus=0.25)),
        ({"least": 1, "most": 4, "cpus": 0.5}, WorkersSpec(count=(1, 4), cpus=0.5)),
    ],
)
def test_form_defaults_keep_the_configuration(form: dict[str, Any], expected: WorkersSpec) -> None:
    overrides = training_overrides_in({"batch": 0, "steps": 0, "workers": form})
    job = resolve_job(TrainJob(kind="train", config="debug", run="r", overrides=overrides))
    assert job.specification.workers == expected


def test_preset_is_submitted_unchanged(tmp_path: Path, own_data: None) -> None:
    """Of one that shards over GPUs, so that workers without any are refused; it gets as far as its target."""
    form = {"config": "stage1-256", "run": str(tmp_path / "run"), "target_file": "nowhere.yaml"}
    run = start_training.execute_in_process({"ops": {"train_run": {"config": form}}}, raise_on_error=False)
    [failure] = [event for event in run.all_node_events if event.is_step_failure]
    assert "nowhere.yaml: no such target file" in str(failure.step_failure_data.user_failure_data)


def test_labeling_form_gives_labelers_resources(
    tmp_path: Path, own_data: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[LabelJob] = []
    monkeypatch.setattr(dagster_jobs, "run_job", lambda context, job, target: sent.append(job))
    label_dataset = next(job for job in DAGSTER_JOBS if job.name == "label_dataset")

    def submit(**form: Any) -> dg.ExecuteInProcessResult:
        config = {"dataset": str(tmp_path / "d"), "groups": ["depth"], **form}
        return label_dataset.execute_in_process({"ops": {"label_groups": {"config": config}}}, raise_on_error=False)

    assert submit().success
    assert submit(resources={"depth": {"gpus": 0.5, "processes": [1, 8]}}, only_errors=True).success
    assert [(job.resources, job.only_errors) for job in sent] == [
        ({}, False),
        ({"depth": Resources(gpus=0.5, processes=(1, 8))}, True),
    ]
    assert [resolve_job(job).resources.gpus for job in sent] == [0.0, 0.5]
    [failure] = [event for event in submit(resources={"depth": {"gpu": 1}}).all_node_events if event.is_step_failure]
    words = "resources: no key 'depth.gpu' (did you mean 'gpus'?)"
    assert words in str(failure.step_failure_data.user_failure_data)


def test_asset_page_tells_unavailable_rows_from_rows_in_error(tmp_path: Path, own_data: None) -> None:
    dataset = shutil.copytree(Path(__file__).parents[2] / "compatibility/dataset", tmp_path / "old")
    track([("dataset", str(dataset))])
    refresh()
    state = dataset_state(find_snapshot("old"))
    pages = {version.key[1]: group_metadata(state, version) for version in dataset_versions(state)}
    for group in ("depth", "latents-64-depth"):  # three pictures have no disparity, and no depth model is named
        assert (pages[group]["rows in error"], pages[group]["rows unavailable"]) == (0, 3)
        assert "--set depth.model=NAME" in pages[group]["why"]
        assert "errors" not in pages[group]
    assert "rows unavailable" not in pages["edges"]


def test_stop_and_scale_runs_skip_the_queue_of_following_runs() -> None:
    jobs = {job.name: job for job in DAGSTER_JOBS}
    with dg.instance_for_test(overrides=yaml.safe_load(SETTINGS)) as instance:
        for name in ("start_training", "label_dataset", "ingest_pictures", "write_report"):
            for _ in range(4):
                add_run(instance, name, dg.DagsterRunStatus.STARTED, dict(jobs[name].tags))
        for name in ("start_training", "stop_job", "scale_training", "set_parameters"):
            add_run(instance, name, dg.DagsterRunStatus.QUEUED, dict(jobs[name].tags))
        assert jobs_to_start(instance) == ["scale_training", "set_parameters", "stop_job"]


def test_instance_settings_are_valid() -> None:
    settings = yaml.safe_load(SETTINGS)
    with dg.instance_for_test(overrides=settings) as instance:
        assert instance.run_monitoring_settings["free_slots_after_run_end_seconds"] > 0
        # For a checkpoint, and then for a process that does not end by itself.
        assert instance.run_monitoring_cancel_timeout_seconds > STOP_SECONDS + 90


@pytest.fixture
def stopped(tmp_path: Path) -> JobFolder:
    """A job whose first attempt was stopped."""
    job = resolve_job(TrainJob(kind="train", config="debug", run=str(tmp_path / "run")))
    folder = job.folder
    folder.put_specification(job.specification)
    folder.put_attempt(attempt(folder, 1))
    folder.put_state(AttemptState(1, "stopped", "", 0, 0.0, 0.0))
    return folder


def attempt(folder: JobFolder, number: int) -> Attempt:
    return Attempt("train-0a", number, folder.address, "local", {"type": "local"}, 0.0, "")


def outcome(folder: JobFolder) -> tuple[JobStatus, Attempt | None]:
    return launch._outcome(attempt(folder, 1), folder)


def test_outcome_waits_for_announced_attempt(stopped: JobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scaling says that there will be another before the target has ended the last, which may take long."""
    monkeypatch.setattr(launch, "NEXT_SECONDS", 0.0)
    monkeypatch.setattr(launch, "POLL_SECONDS", 0.1)
    assert outcome(stopped) == (JobStatus("stopped", result={}), None)
    stopped.put_control(Control(2))
    threading.Timer(0.3, stopped.put_attempt, [attempt(stopped, 2)]).start()
    assert outcome(stopped)[1] == attempt(stopped, 2)
    stopped.put_attempt(attempt(stopped, 1))  # it could not be sent after all
    threading.Timer(0.3, stopped.put_control, [Control(1, stop=True)]).start()
    began = time.monotonic()
    assert outcome(stopped)[1] is None and 0.25 < time.monotonic() - began < 20
