"""What is done from the dashboard: assets are made by jobs on targets, checked, and new pictures noticed."""

from __future__ import annotations

import json
import re
import shutil
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dashboard_assets import BRIGHTNESS, DOUBLED, last_event, verdicts

from labeling.dataset import Dataset, lease, open_store
from labeling.declaration import declare
from labeling.registry import load_labeler
from pipelines.dashboard import ranges
from pipelines.dashboard.checks import dataset_verdicts
from pipelines.dashboard.definitions import build_definitions
from pipelines.dashboard.fingerprints import dataset_state
from pipelines.dashboard.follower import Follower
from pipelines.dashboard.jobs import ingest_pictures
from pipelines.dashboard.snapshots import find_snapshot, refresh
from pipelines.dashboard.sources import listing, news, source_verdict
from pipelines.dashboard.tracked_assets import remember
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


def test_materializing_is_a_job_on_a_target(
    faces: Dataset, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two groups of a range of two shards, with a parameter from the form: one job, which anyone can list."""
    import ray  # it reads its environment when it is imported

    monkeypatch.setattr(ranges, "FEW_SHARDS", 2)
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
    [(submission, state)] = list_jobs(faces.uri)
    assert (state.phase, submission.target_name) == ("succeeded", "local")
    kept = instance.get_run_by_id(run.run_id)
    assert kept and kept.tags["onediffusion/job"] == submission.job_id
    assert "brightness: 2 shards labeled" in capfd.readouterr().out
    declared = faces.declaration("brightness")
    assert declared and declared["parameters"]["gain"] == 0.1
    for partition, expected in (("000000", "FRESH"), ("000001", "FRESH"), ("000002", "STALE")):
        assert verdicts(instance, partition)["faces/brightness"][0] == expected
        assert verdicts(instance, partition)["faces/doubled"][0] == "FRESH"
    made = run.asset_materializations_for_node("faces__label")
    assert sorted((one.asset_key.path[1], one.partition) for one in made) == [
        (group, partition) for group in ("brightness", "doubled") for partition in ("000000", "000001")
    ]
    assert made[0].metadata["rows labeled by the job"].value == 4 and made[0].metadata["rows a second"].value > 0


def test_a_job_that_is_scaled_is_followed_through_its_next_attempt(
    faces: Dataset, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A label job is scaled by ending one attempt and beginning the next, while someone watches it here."""
    import ray

    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    faces.declare("patient", declare(load_labeler("simple_labelers:Patient", {"seconds": 2.0})))
    refresh()
    scaled: list[Attempt] = []

    def scale() -> None:
        deadline = time.monotonic() + 120
        while not faces.store.exists("patient/000000.parquet") and time.monotonic() < deadline:
            time.sleep(0.2)
        [(submission, _)] = list_jobs(faces.uri)
        scaled.append(scale_job(submission.job_id, WorkersSpec(count=2)))

    thread = threading.Thread(target=scale)
    thread.start()
    run = materialize(instance, "patient")
    thread.join()
    assert run.success
    [(submission, state)] = list_jobs(faces.uri)
    assert (submission, state.phase) == (scaled[0], "succeeded")
    assert (submission.number, JobFolder(submission.address).specification().workers) == (2, WorkersSpec(count=2))
    assert sum(row["value"] is not None for row in faces.rows("patient")) == 6
    said = capfd.readouterr().out
    assert "stopped; the same job submitted again continues" in said
    assert re.search(r"patient: [012] shards labeled, [123] fresh", said), said


def test_what_a_form_says_wrongly_fails_with_one_line(faces: Dataset, instance: dg.DagsterInstance) -> None:
    run = materialize(
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
def grown(labeled: Path, faces: Dataset, photographs: Path) -> Iterator[Path]:
    """The dataset's source with one picture more."""
    added = labeled / "source" / "brick.png"
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
    first = notice(instance)
    assert "have changed" in first.skip_message and not first.run_requests
    asked = notice(instance, first.cursor)
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


def rested(instance: dg.DagsterInstance) -> Any:
    """What is said of sources that were the same twice."""
    return notice(instance, notice(instance).cursor)


def test_a_file_that_is_still_copied_is_waited_for(faces: Dataset, grown: Path, instance: dg.DagsterInstance) -> None:
    remember([("dataset", faces.uri)], new_pictures="build")
    whole, cursor = grown.read_bytes(), None
    for size in (len(whole) // 3, len(whole) // 2, len(whole)):
        grown.write_bytes(whole[:size])
        tick = notice(instance, cursor)
        assert not tick.run_requests and "have changed" in tick.skip_message
        cursor = tick.cursor
    assert notice(instance, cursor).run_requests


def test_what_lies_beside_a_source_is_none_of_it(faces: Dataset, labeled: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "raw.tar", "w") as archive:
        archive.add(labeled / "source" / "camera.png", "camera.png")
    for pattern in ("raw.tar", "raw*.tar"):
        snapshot = replace(find_snapshot("faces"), sources=[f"{tmp_path}/{pattern}"])
        before = listing(snapshot)
        faces.store.put(f"jobs/label-{pattern}/state.json", b"{}")
        (tmp_path / "notes.txt").write_text(pattern)
        assert listing(snapshot) == before
    with tarfile.open(tmp_path / "raw.tar", "a") as archive:
        archive.add(labeled / "source" / "coffee.png", "coffee.png")
    assert listing(snapshot) != before


def request_run(instance: dg.DagsterInstance, tick: Any, status: dg.DagsterRunStatus) -> dg.DagsterRun:
    """The run that a tick asked for, as if it had come so far."""
    [request] = tick.run_requests
    return instance.create_run_for_job(ingest_pictures, tags=request.tags, run_config=request.run_config, status=status)


def test_new_pictures_are_built_by_one_run_at_a_time_and_once_more_where_it_failed(
    faces: Dataset, grown: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    remember([("dataset", faces.uri)], new_pictures="build")
    first = rested(instance)
    faces.store.put("jobs/label-0a0a0a0a/state.json", b"{}")
    assert rested(instance).run_requests[0].run_key == first.run_requests[0].run_key, "for the same pictures"
    run = request_run(instance, first, dg.DagsterRunStatus.STARTED)
    shutil.copy(grown, grown.with_name("other.png"))
    try:
        assert "is adding pictures" in rested(instance).skip_message
        instance.report_run_failed(run)
        assert "asked for again in 5 min" in rested(instance).skip_message
        monkeypatch.setattr("pipelines.dashboard.sensors.RETRY_SECONDS", 0.0)
        second = rested(instance)
        assert second.run_requests[0].run_key != first.run_requests[0].run_key
        run = request_run(instance, second, dg.DagsterRunStatus.STARTED)
        instance.report_run_canceled(run)
        assert "was terminated" in rested(instance).skip_message
    finally:
        grown.with_name("other.png").unlink()
    assert rested(instance).run_requests, "the sources are others since"


def test_a_run_that_met_another_job_is_asked_for_again(
    faces: Dataset, grown: Path, instance: dg.DagsterInstance, shared_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had ingested the picture, so nothing is new any more; but its labels are not there."""
    monkeypatch.setattr("pipelines.dashboard.sensors.RETRY_SECONDS", 0.0)
    remember([("dataset", faces.uri)], new_pictures="build")

    def run() -> dg.ExecuteInProcessResult:
        [request] = rested(instance).run_requests
        return ingest_pictures.execute_in_process(
            request.run_config, instance=instance, tags=dict(request.tags), raise_on_error=False
        )

    before = len(faces.shards)
    with lease(faces.store, ["brightness"]):  # since the tick that asked for it
        held = json.loads(faces.store.read("brightness/running.json"))
        faces.store.put("brightness/running.json", json.dumps({**held, "time": 0.0}).encode())
        assert not run().success
    refresh()
    assert len(Dataset.open(faces.uri).shards) == before + 1 and not news(find_snapshot("faces"))
    assert run().success
    assert sum(row["value"] is not None for row in Dataset.open(faces.uri).rows("brightness")) == 7
    assert not rested(instance).run_requests


def test_far_sources_are_listed_less_often(
    faces: Dataset, labeled: Path, s3: str, instance: dg.DagsterInstance
) -> None:
    place = f"{s3}/faces-source"
    for path in (labeled / "source").iterdir():
        open_store(place).put(path.name, path.read_bytes())
    faces.store.put("dataset.json", json.dumps({**faces.description, "sources": [{"uri": place}]}).encode())
    refresh()
    first = notice(instance)
    assert "have changed" in first.skip_message
    assert "listed again in 300 s" in notice(instance, first.cursor).skip_message
    waited = json.dumps({**json.loads(first.cursor), "due": 0.0})
    assert notice(instance, waited).skip_message == "all pictures are in the dataset"


def test_an_archive_that_is_cut_is_named(faces: Dataset, labeled: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.tar").write_bytes((labeled / "source" / "camera.png").read_bytes())
    verdict, found = source_verdict(replace(find_snapshot("faces"), sources=[f"{tmp_path}/cut.tar"]))
    assert not verdict.passed and not found
    assert "cut.tar cannot be read (" in verdict.said and "\n" not in verdict.said


def test_pictures_without_labels_are_work_unless_a_job_is_at_it(
    faces: Dataset, grown: Path, instance: dg.DagsterInstance
) -> None:
    """The labeling that was to follow the ingest had met another job."""
    remember([("dataset", faces.uri)], new_pictures="build")
    ingest(str(grown.parent), faces.uri, shard_rows=2)
    refresh()
    assert not news(find_snapshot("faces"))
    with lease(faces.store, ["brightness"]):
        waits = rested(instance)
        assert waits.skip_message == "a job is working on brightness" and not waits.run_requests
    asked = rested(instance)
    assert asked.run_requests
    run = request_run(instance, asked, dg.DagsterRunStatus.SUCCESS)
    assert run and "has succeeded" in rested(instance).skip_message, "not for ever"
    label(faces.uri, [])
    done = rested(instance)
    assert done.skip_message == "all pictures are in the dataset" and not done.run_requests


def test_what_cannot_be_reached_fails_no_run(
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
        found = run.get_asset_check_evaluations()
        return {(one.asset_key.path[1], one.check_name): (one.passed, one.description or "") for one in found}

    found = check(("images", "sources"), ("brightness", "fresh"))
    passed, said = found["images", "sources"]
    assert not passed and "s3://lab/far" in said and "\n" not in said
    assert found["brightness", "fresh"] == (True, "all 3 shards are fresh")
    shutil.move(faces.uri, f"{faces.uri}-away")
    found = check(("brightness", "fresh"))
    assert list(found) == [("brightness", "fresh")]
    passed, said = found["brightness", "fresh"]
    assert not passed and said.startswith("cannot be checked: ") and "no dataset there" in said


def test_how_fast_a_job_of_the_command_line_was_is_shown(faces: Dataset, instance: dg.DagsterInstance) -> None:
    follower = Follower(instance)
    follower.follow()
    folder = JobFolder(job_address(faces.uri, "label-0a0a0a0a"))

    def ended(attempt: int, seconds: float) -> None:
        result = {"rows": {"brightness": 6, "doubled": 0}, "busy": {"brightness": seconds, "doubled": 0.0}}
        folder.put_state(AttemptState(attempt, "succeeded", "here", 1, 1.0, float(attempt), result=result))

    ended(1, 2.0)
    follower.follow()
    [record] = instance.fetch_observations(dg.AssetKey(["faces", "brightness"]), limit=9).records
    seen = record.event_log_entry.asset_observation
    assert seen and seen.metadata["rows a second"].value == 3.0
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
