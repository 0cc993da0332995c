"""Assets are made by jobs on targets, and checked."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dashboard_assets import BRIGHTNESS, DOUBLED, last_event, statuses

from labeling.dataset import Dataset
from labeling.declaration import declare
from labeling.registry import load_labeler
from pipelines.dashboard import partitions
from pipelines.dashboard.check_outcomes import dataset_outcomes
from pipelines.dashboard.dataset_state import dataset_state
from pipelines.dashboard.definitions import build_definitions
from pipelines.dashboard.follower import Follower
from pipelines.dashboard.snapshots import find_snapshot, refresh
from pipelines.ingest import ingest
from pipelines.jobs.attempt import Attempt, AttemptState
from pipelines.jobs.control import scale_job
from pipelines.jobs.folder import JobFolder, job_address
from pipelines.jobs.specification import WorkersSpec
from pipelines.jobs.status import list_jobs
from pipelines.label import label


def materialize(instance: dg.DagsterInstance, *groups: str, **more: Any) -> dg.ExecuteInProcessResult:
    job = build_definitions().get_implicit_global_asset_job_def()
    return job.execute_in_process(
        instance=instance,
        raise_on_error=False,
        asset_selection=[dg.AssetKey(["faces", group]) for group in groups],
        **more,
    )


def test_materializing_submits_one_job(
    faces: Dataset, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two groups of a range of two shards, with a parameter from the form: one job, which anyone can list."""
    import ray  # it reads its environment when it is imported

    monkeypatch.setattr(partitions, "FEW_SHARDS", 2)
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)  # rather than one of its own
    Follower(instance).follow()
    form = {"parameters": {"brightness": {"gain": 0.1, "levels": 256}}, "workers": {"cpus": 2.0}}
    run = materialize(
        instance,
        "brightness",
        "doubled",
        tags={"dagster/asset_partition_range_start": "000000", "dagster/asset_partition_range_end": "000001"},
        run_config={"ops": {"faces__label": {"config": form}}},
    )
    assert run.success
    [(attempt, state)] = list_jobs(faces.uri)
    assert (state.phase, attempt.target_name) == ("succeeded", "local")
    dagster_run = instance.get_run_by_id(run.run_id)
    assert dagster_run and dagster_run.tags["onediffusion/job"] == attempt.job_id
    assert "brightness: 2 shards labeled" in capfd.readouterr().out
    declared = faces.declaration("brightness")
    assert declared and declared["parameters"]["gain"] == 0.1
    for partition, expected in (("000000", "FRESH"), ("000001", "FRESH"), ("000002", "STALE")):
        assert statuses(instance, partition)["faces/brightness"][0] == expected
        assert statuses(instance, partition)["faces/doubled"][0] == "FRESH"
    events = run.asset_materializations_for_node("faces__label")
    assert sorted((one.asset_key.path[1], one.partition) for one in events) == [
        (group, partition) for group in ("brightness", "doubled") for partition in ("000000", "000001")
    ]
    assert events[0].metadata["rows labeled by the job"].value == 4 and events[0].metadata["rows a second"].value > 0


def test_scaled_job_is_followed_into_its_next_attempt(
    faces: Dataset,
    instance: dg.DagsterInstance,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A label job is scaled by ending one attempt and beginning the next, while a Dagster run follows it."""
    import ray

    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    gate = tmp_path / "gate"
    gate.write_text("2")  # the first attempt labels one shard of three, however long it takes to end
    faces.declare("gated", declare(load_labeler("simple_labelers:Gated", {"gate": str(gate)})))
    refresh()
    scaled: list[Attempt] = []

    def scale() -> None:
        deadline = time.monotonic() + 120
        while not faces.store.exists("gated/000000.parquet") and time.monotonic() < deadline:
            time.sleep(0.2)
        [(attempt, _)] = list_jobs(faces.uri)
        scaled.append(scale_job(attempt.job_id, WorkersSpec(count=2)))
        gate.write_text("100")

    thread = threading.Thread(target=scale)
    thread.start()
    run = materialize(instance, "gated")
    thread.join()
    assert run.success
    [(attempt, state)] = list_jobs(faces.uri)
    assert (attempt, state.phase) == (scaled[0], "succeeded")
    assert (attempt.number, JobFolder(attempt.address).specification().workers) == (2, WorkersSpec(count=2))
    assert sum(row["value"] is not None for row in faces.rows("gated")) == 6
    output = capfd.readouterr().out
    assert "stopped; the same job submitted again continues" in output
    assert re.search(r"gated: 2 shards labeled, 1 fresh", output), output


def test_invalid_form_fails_run_with_one_line(faces: Dataset, instance: dg.DagsterInstance) -> None:
    run = materialize(
        instance, "brightness", run_config={"ops": {"faces__label": {"config": {"target_file": "nowhere.yaml"}}}}
    )
    assert not run.success
    [failure] = [event for event in run.all_node_events if event.is_step_failure]
    error = failure.step_failure_data.error
    assert error and "nowhere.yaml: no such target file" in str(failure.step_failure_data.user_failure_data)


def test_checks_warn_of_rows_in_error(faces: Dataset, instance: dg.DagsterInstance) -> None:
    label(faces.uri, [BRIGHTNESS, DOUBLED], {"brightness": {"refuse_wider_than": 600}})
    Follower(instance).follow()
    outcomes = {
        (one.key[1], one.check): one for one in dataset_outcomes(dataset_state(find_snapshot("faces")), instance)
    }
    assert not outcomes["brightness", "errors"].passed and "of 6 rows" in outcomes["brightness", "errors"].description
    assert outcomes["brightness", "fresh"].passed
    table = str(last_event(instance, "faces", "brightness").metadata["errors"].value)
    assert "wider than 600" in table
    job = build_definitions().get_implicit_global_asset_job_def()
    key = dg.AssetCheckKey(dg.AssetKey(["faces", "brightness"]), "errors")
    run = job.execute_in_process(instance=instance, asset_selection=[], op_selection=["faces__check"])
    outcomes = {one.asset_check_key: one.passed for one in run.get_asset_check_evaluations()}
    assert outcomes[key] is False and len(outcomes) == 7


def test_unreachable_source_or_dataset_fails_checks_but_no_run(
    faces: Dataset, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("AWS_ENDPOINT_URL", "http://127.0.0.1:9"), ("AWS_ACCESS_KEY_ID", "a")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    description = {**faces.description, "sources": [{"uri": "s3://lab/far"}]}
    faces.store.put("dataset.json", json.dumps(description).encode())
    job = build_definitions().get_implicit_global_asset_job_def()

    def check(*chosen: tuple[str, str]) -> dict[tuple[str, str], tuple[bool, str]]:
        keys = {dg.AssetCheckKey(dg.AssetKey(["faces", group]), name) for group, name in chosen}
        part = job.get_subset(asset_selection=set(), asset_check_selection=keys)
        run = part.execute_in_process(instance=instance)
        outcomes = run.get_asset_check_evaluations()
        return {(one.asset_key.path[1], one.check_name): (one.passed, one.description or "") for one in outcomes}

    outcomes = check(("images", "sources"), ("brightness", "fresh"))
    passed, reason = outcomes["images", "sources"]
    assert not passed and "s3://lab/far" in reason and "\n" not in reason
    assert outcomes["brightness", "fresh"] == (True, "all 3 shards are fresh")
    shutil.move(faces.uri, f"{faces.uri}-away")
    outcomes = check(("brightness", "fresh"))
    assert list(outcomes) == [("brightness", "fresh")]
    passed, reason = outcomes["brightness", "fresh"]
    assert not passed and reason.startswith("cannot be checked: ") and "no dataset there" in reason


def test_speed_of_command_line_jobs_is_shown(faces: Dataset, instance: dg.DagsterInstance) -> None:
    follower = Follower(instance)
    follower.follow()
    folder = JobFolder(job_address(faces.uri, "label-0a0a0a0a"))

    def ended(attempt: int, seconds: float) -> None:
        result = {"rows": {"brightness": 6, "doubled": 0}, "busy": {"brightness": seconds, "doubled": 0.0}}
        folder.put_state(AttemptState(attempt, "succeeded", "here", 1, 1.0, float(attempt), result=result))

    ended(1, 2.0)
    follower.follow()
    [record] = instance.fetch_observations(dg.AssetKey(["faces", "brightness"]), limit=9).records
    observation = record.event_log_entry.asset_observation
    assert observation and observation.metadata["rows a second"].value == 3.0
    faces.store.delete("brightness/000001.parquet")
    follower.follow()
    event = last_event(instance, "faces", "brightness")
    assert (event.metadata["rows a second"].value, event.metadata["labeled by"].value) == (3.0, "label-0a0a0a0a-1")
    ended(2, 60.0)  # the same job again: its state says nothing of the first attempt
    follower.follow()
    key = dg.AssetCheckKey(dg.AssetKey(["faces", "brightness"]), "speed")
    record = instance.event_log_storage.get_latest_asset_check_execution_by_key([key])[key]
    evaluation = record.event.dagster_event.asset_check_evaluation_data
    assert (evaluation.passed, evaluation.description) == (False, "0.1 rows a second, 3 before")


def test_speeds_in_events_of_earlier_versions_count(faces: Dataset, instance: dg.DagsterInstance) -> None:
    """They named the job "labelled by"."""
    key = dg.AssetKey(["faces", "brightness"])
    for job, speed in (("label-0a0a0a0a-1", 100.0), ("label-0a0a0a0a-2", 1.0)):
        metadata = {"labelled by": job, "rows a second": speed}
        instance.report_runless_asset_event(dg.AssetMaterialization(key, metadata=metadata))
    state = dataset_state(find_snapshot("faces"))
    [outcome] = [one for one in dataset_outcomes(state, instance, {"speed"}) if one.key[1] == "brightness"]
    assert (outcome.passed, outcome.description) == (False, "1 rows a second, 100 before")


@pytest.mark.parametrize("few", [2, 4])
def test_new_shards_form_their_own_partitions(
    faces: Dataset, new_picture: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    """Three shards and then four: in partitions from the start, or only from the fourth shard on."""
    monkeypatch.setattr(partitions, "FEW_SHARDS", few)
    follower = Follower(instance)
    follower.follow()
    before = "000001" if few == 2 else None
    assert {status for status, _ in statuses(instance, before).values()} == {"FRESH"}
    ingest(str(new_picture.parent), faces.uri, shard_rows=2)
    follower.follow()
    for partition in ("000000", "000001", "000002"):
        assert {status for status, _ in statuses(instance, partition).values()} == {"FRESH"}, partition
    assert {name: status for name, (status, _) in statuses(instance, "000003").items()} == {
        "faces/images": "FRESH",
        "faces/brightness": "MISSING",
        "faces/doubled": "MISSING",
    }
    label(faces.uri, [], shards=(3, 4))
    follower.follow()
    assert {status for status, _ in statuses(instance, "000003").values()} == {"FRESH"}
