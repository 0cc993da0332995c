"""What is done from the dashboard: assets are made by jobs on targets, checked, and new pictures noticed."""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dashboard_assets import BRIGHTNESS, DOUBLED, last_event, verdicts

from labeling.plan import declare
from labeling.registry import load_labeler
from labeling.shards import Dataset
from pipelines.dashboard import ranges
from pipelines.dashboard.checks import dataset_verdicts
from pipelines.dashboard.definitions import build_definitions
from pipelines.dashboard.fingerprints import dataset_state
from pipelines.dashboard.following import Follower
from pipelines.dashboard.places import remember
from pipelines.dashboard.snapshots import find_snapshot, refresh
from pipelines.dashboard.sources import news
from pipelines.ingest import ingest
from pipelines.job import WorkersSpec
from pipelines.job_folder import JobFolder, Submission
from pipelines.label import label
from pipelines.submit import list_jobs, scale_job


def materialise(instance: dg.DagsterInstance, *groups: str, **more: Any) -> dg.ExecuteInProcessResult:
    job = build_definitions().get_implicit_global_asset_job_def()
    return job.execute_in_process(
        instance=instance,
        raise_on_error=False,
        asset_selection=[dg.AssetKey(["faces", group]) for group in groups],
        **more,
    )


def test_materialising_is_a_job_on_a_target(
    faces: Dataset, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two groups of a range of two shards, with a parameter from the form: one job, which anyone can list."""
    import ray  # it reads its environment when it is imported

    monkeypatch.setattr(ranges, "FEW_SHARDS", 2)
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)  # rather than one of its own
    Follower(instance).follow()
    form = {"parameters": {"brightness": {"gain": 0.1, "levels": 256}}, "workers": {"cpus": 2.0}}
    run = materialise(
        instance,
        "brightness",
        "doubled",
        tags={"dagster/asset_partition_range_start": "000000", "dagster/asset_partition_range_end": "000001"},
        run_config={"ops": {"faces__label": {"config": form}}},
    )
    assert run.success
    [(submission, state)] = list_jobs(faces.uri)
    assert (state.phase, submission.target_name) == ("succeeded", "local")
    kept = instance.get_run_by_id(run.run_id)
    assert kept and kept.tags["onediffusion/job"] == submission.id
    assert "brightness: 2 shards labelled" in capfd.readouterr().out
    declared = faces.declaration("brightness")
    assert declared and declared["parameters"]["gain"] == 0.1
    for partition, expected in (("000000", "FRESH"), ("000001", "FRESH"), ("000002", "STALE")):
        assert verdicts(instance, partition)["faces/brightness"][0] == expected
        assert verdicts(instance, partition)["faces/doubled"][0] == "FRESH"
    made = run.asset_materializations_for_node("faces__label")
    assert sorted((one.asset_key.path[1], one.partition) for one in made) == [
        (group, partition) for group in ("brightness", "doubled") for partition in ("000000", "000001")
    ]
    assert made[0].metadata["rows labelled by the job"].value == 4 and made[0].metadata["rows a second"].value > 0


def test_a_job_that_is_scaled_is_followed_through_its_next_attempt(
    faces: Dataset, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A label job is scaled by ending one attempt and beginning the next, while someone watches it here."""
    import ray

    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    faces.declare("patient", declare(load_labeler("simple_labelers:Patient", {"seconds": 2.0})))
    refresh()
    scaled: list[Submission] = []

    def scale() -> None:
        deadline = time.monotonic() + 120
        while not faces.store.exists("patient/000000.parquet") and time.monotonic() < deadline:
            time.sleep(0.2)
        [(submission, _)] = list_jobs(faces.uri)
        scaled.append(scale_job(submission.id, WorkersSpec(count=2)))

    thread = threading.Thread(target=scale)
    thread.start()
    run = materialise(instance, "patient")
    thread.join()
    assert run.success
    [(submission, state)] = list_jobs(faces.uri)
    assert (submission, state.phase) == (scaled[0], "succeeded")
    assert (submission.attempt, JobFolder(submission.address).job().workers) == (2, WorkersSpec(count=2))
    assert sum(row["value"] is not None for row in faces.rows("patient")) == 6
    said = capfd.readouterr().out
    assert "stopped; the same job submitted again continues" in said
    assert re.search(r"patient: [012] shards labelled, [123] fresh", said), said


def test_what_a_form_says_wrongly_fails_with_one_line(faces: Dataset, instance: dg.DagsterInstance) -> None:
    run = materialise(
        instance, "brightness", run_config={"ops": {"faces__label": {"config": {"target_file": "nowhere.yaml"}}}}
    )
    assert not run.success
    [failure] = [event for event in run.all_node_events if event.is_step_failure]
    error = failure.step_failure_data.error
    assert error and "nowhere.yaml: no such target file" in str(failure.step_failure_data.user_failure_data)


def test_checks_tell_of_errors(faces: Dataset, instance: dg.DagsterInstance) -> None:
    label(faces.uri, [BRIGHTNESS, DOUBLED], {"brightness": {"refuse_wider_than": 600}})
    Follower(instance).follow()
    found = {(one.key[1], one.check): one for one in dataset_verdicts(dataset_state(find_snapshot("faces")), instance)}
    assert not found["brightness", "errors"].passed and "of 6 rows" in found["brightness", "errors"].said
    assert found["brightness", "fresh"].passed
    table = str(last_event(instance, "faces", "brightness").metadata["errors"].value)
    assert "wider than 600" in table
    job = build_definitions().get_implicit_global_asset_job_def()
    key = dg.AssetCheckKey(dg.AssetKey(["faces", "brightness"]), "errors")
    run = job.execute_in_process(instance=instance, asset_selection=[], op_selection=["faces__check"])
    outcomes = {one.asset_check_key: one.passed for one in run.get_asset_check_evaluations()}
    assert outcomes[key] is False and len(outcomes) == 7


@pytest.fixture
def grown(labelled: Path, faces: Dataset, photographs: Path) -> Iterator[Path]:
    """The dataset's source with one picture more."""
    added = labelled / "source" / "brick.png"
    shutil.copy(photographs / "brick.png", added)
    yield added
    added.unlink()


def notice(instance: dg.DagsterInstance, cursor: str | None = None) -> Any:
    definitions = build_definitions()
    sensor = definitions.get_repository_def().get_sensor_def("new_pictures_faces")
    return sensor.evaluate_tick(dg.build_sensor_context(instance=instance, cursor=cursor))


def test_new_pictures_are_asked_about_built_or_ignored(
    faces: Dataset, grown: Path, instance: dg.DagsterInstance
) -> None:
    [found] = news(find_snapshot("faces"))
    assert (found.count, found.names) == (1, ["brick.png"])
    asked = notice(instance)
    assert "1 new in" in asked.skip_message and not asked.run_requests
    key = dg.AssetCheckKey(dg.AssetKey(["faces", "images"]), "sources")
    record = instance.event_log_storage.get_latest_asset_check_execution_by_key([key])[key]
    assert record.event and record.event.dagster_event
    assert not record.event.dagster_event.asset_check_evaluation_data.passed
    assert "as they were" in notice(instance, asked.cursor).skip_message
    remember([("dataset", faces.uri)], new_pictures="build")
    built = notice(instance, asked.cursor)
    assert built.run_requests[0].run_config["ops"]["add_pictures"]["config"] == {"dataset": "faces"}
    remember([("dataset", faces.uri)], new_pictures="ignore")
    assert "ignored" in notice(instance).skip_message


@pytest.mark.parametrize("few", [2, 4])
def test_shards_that_come_are_ranges_of_their_own(
    faces: Dataset, grown: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    """Three shards and then four: in ranges before, or whole until then."""
    monkeypatch.setattr(ranges, "FEW_SHARDS", few)
    follower = Follower(instance)
    follower.follow()
    before = "000001" if few == 2 else None
    assert {status for status, _ in verdicts(instance, before).values()} == {"FRESH"}
    ingest(str(grown.parent), faces.uri, shard_rows=2)
    follower.follow()
    for partition in ("000000", "000001", "000002"):
        assert {status for status, _ in verdicts(instance, partition).values()} == {"FRESH"}, partition
    assert {name: status for name, (status, _) in verdicts(instance, "000003").items()} == {
        "faces/images": "FRESH",
        "faces/brightness": "MISSING",
        "faces/doubled": "MISSING",
    }
    label(faces.uri, [], shards=(3, 4))
    follower.follow()
    assert {status for status, _ in verdicts(instance, "000003").values()} == {"FRESH"}
