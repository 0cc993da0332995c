"""Sensors that notice new pictures in the sources of a dataset, and the runs that they request."""

from __future__ import annotations

import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from labeling.dataset import Dataset, lease, open_store
from pipelines.dashboard.dagster_jobs import ingest_pictures
from pipelines.dashboard.definitions import build_definitions
from pipelines.dashboard.snapshots import find_snapshot, refresh
from pipelines.dashboard.sources import new_files, source_outcome, sources_digest
from pipelines.dashboard.tracked_assets import track
from pipelines.ingest import ingest
from pipelines.label import label


def notice(instance: dg.DagsterInstance, cursor: str | None = None) -> Any:
    definitions = build_definitions()
    sensor = definitions.get_repository_def().get_sensor_def("new_pictures")
    return sensor.evaluate_tick(dg.build_sensor_context(instance=instance, cursor=cursor))


def test_new_pictures_are_reported_built_or_ignored_by_policy(
    faces: Dataset, new_picture: Path, instance: dg.DagsterInstance
) -> None:
    [new] = new_files(find_snapshot("faces"))
    assert (new.count, new.names) == (1, ["brick.png"])
    first = notice(instance)
    assert "have changed" in first.skip_message and not first.run_requests
    tick = notice(instance, first.cursor)
    assert "1 new in" in tick.skip_message and not tick.run_requests
    key = dg.AssetCheckKey(dg.AssetKey(["faces", "images"]), "sources")
    record = instance.event_log_storage.get_latest_asset_check_execution_by_key([key])[key]
    assert record.event and record.event.dagster_event
    assert not record.event.dagster_event.asset_check_evaluation_data.passed
    assert "as they were" in notice(instance, tick.cursor).skip_message
    track([("dataset", faces.uri)], new_pictures="build")
    built = notice(instance, tick.cursor)
    assert built.run_requests[0].run_config["ops"]["add_pictures"]["config"] == {"dataset": "faces"}
    track([("dataset", faces.uri)], new_pictures="ignore")
    assert notice(instance).skip_message == "no sources to look at now"


def test_tick_looks_at_as_many_datasets_as_fit_and_then_at_the_others(
    faces: Dataset, new_picture: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.dashboard.sensors.TICK_SECONDS", 0.0)
    others = [Path(faces.uri).parent / name for name in ("a", "b")]
    for other in others:
        shutil.copytree(faces.uri, other)
    track([("dataset", str(other)) for other in others])
    refresh()
    looked, cursor = [], None
    for _ in range(4):
        tick = notice(instance, cursor)
        cursor = tick.cursor
        looked.append(tick.skip_message.split(":")[0])
    assert sorted(looked[:3]) == ["a", "b", "faces"] and looked[3] == looked[0]
    assert set(json.loads(cursor)) == {"a", "b", "faces"}


def test_dataset_that_cannot_be_looked_at_does_not_hold_up_others(
    faces: Dataset, new_picture: Path, instance: dg.DagsterInstance
) -> None:
    other = Path(faces.uri).parent / "a"
    shutil.copytree(faces.uri, other)
    track([("dataset", str(other))])
    refresh()
    (other / "dataset.json").write_text("{")
    tick = notice(instance)
    assert "a: " in tick.skip_message and "faces: the sources have changed" in tick.skip_message


def second_tick(instance: dg.DagsterInstance) -> Any:
    """The second of two ticks, which finds the sources unchanged."""
    return notice(instance, notice(instance).cursor)


def test_sensor_waits_for_file_that_is_still_copied(
    faces: Dataset, new_picture: Path, instance: dg.DagsterInstance
) -> None:
    track([("dataset", faces.uri)], new_pictures="build")
    whole, cursor = new_picture.read_bytes(), None
    for size in (len(whole) // 3, len(whole) // 2, len(whole)):
        new_picture.write_bytes(whole[:size])
        tick = notice(instance, cursor)
        assert not tick.run_requests and "have changed" in tick.skip_message
        cursor = tick.cursor
    assert notice(instance, cursor).run_requests


def test_files_beside_a_source_do_not_change_its_digest(faces: Dataset, labeled: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "raw.tar", "w") as archive:
        archive.add(labeled / "source" / "camera.png", "camera.png")
    for pattern in ("raw.tar", "raw*.tar"):
        snapshot = replace(find_snapshot("faces"), sources=[f"{tmp_path}/{pattern}"])
        before = sources_digest(snapshot)
        faces.store.put(f"jobs/label-{pattern}/state.json", b"{}")
        (tmp_path / "notes.txt").write_text(pattern)
        assert sources_digest(snapshot) == before
    with tarfile.open(tmp_path / "raw.tar", "a") as archive:
        archive.add(labeled / "source" / "coffee.png", "coffee.png")
    assert sources_digest(snapshot) != before


def request_run(instance: dg.DagsterInstance, tick: Any, status: dg.DagsterRunStatus) -> dg.DagsterRun:
    """The run that a tick requested, with this status."""
    [request] = tick.run_requests
    return instance.create_run_for_job(ingest_pictures, tags=request.tags, run_config=request.run_config, status=status)


def test_sensor_requests_one_run_at_a_time_and_another_after_failure(
    faces: Dataset, new_picture: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    track([("dataset", faces.uri)], new_pictures="build")
    first = second_tick(instance)
    faces.store.put("jobs/label-0a0a0a0a/state.json", b"{}")
    assert second_tick(instance).run_requests[0].run_key == first.run_requests[0].run_key, "for the same pictures"
    run = request_run(instance, first, dg.DagsterRunStatus.STARTED)
    shutil.copy(new_picture, new_picture.with_name("other.png"))
    try:
        assert "is adding pictures" in second_tick(instance).skip_message
        instance.report_run_failed(run)
        assert "asked for again in 5 min" in second_tick(instance).skip_message
        monkeypatch.setattr("pipelines.dashboard.sensors.RETRY_SECONDS", 0.0)
        second = second_tick(instance)
        assert second.run_requests[0].run_key != first.run_requests[0].run_key
        run = request_run(instance, second, dg.DagsterRunStatus.STARTED)
        instance.report_run_canceled(run)
        assert "was terminated" in second_tick(instance).skip_message
    finally:
        new_picture.with_name("other.png").unlink()
    assert second_tick(instance).run_requests, "the sources are others since"


def test_run_refused_by_another_job_is_requested_again(
    faces: Dataset, new_picture: Path, instance: dg.DagsterInstance, shared_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refused run had ingested the picture, so nothing is new any more; but its labels are missing."""
    monkeypatch.setattr("pipelines.dashboard.sensors.RETRY_SECONDS", 0.0)
    track([("dataset", faces.uri)], new_pictures="build")

    def run() -> dg.ExecuteInProcessResult:
        [request] = second_tick(instance).run_requests
        return ingest_pictures.execute_in_process(
            request.run_config, instance=instance, tags=dict(request.tags), raise_on_error=False
        )

    before = len(faces.shards)
    with lease(faces.store, ["brightness"]):  # since the tick that requested it
        [name] = faces.store.files("brightness", "running")
        lease_record = json.loads(faces.store.read(f"brightness/{name}"))
        faces.store.put(f"brightness/{name}", json.dumps({**lease_record, "time": 0.0}).encode())
        assert not run().success
    refresh()
    assert len(Dataset.open(faces.uri).shards) == before + 1 and not new_files(find_snapshot("faces"))
    assert run().success
    assert sum(row["value"] is not None for row in Dataset.open(faces.uri).rows("brightness")) == 7
    assert not second_tick(instance).run_requests


def test_remote_sources_are_listed_less_often(
    faces: Dataset, labeled: Path, s3: str, instance: dg.DagsterInstance
) -> None:
    address = f"{s3}/faces-source"
    for path in (labeled / "source").iterdir():
        open_store(address).put(path.name, path.read_bytes())
    faces.store.put("dataset.json", json.dumps({**faces.description, "sources": [{"uri": address}]}).encode())
    refresh()
    first = notice(instance)
    assert "have changed" in first.skip_message
    assert notice(instance, first.cursor).skip_message == "no sources to look at now"
    waited = json.dumps({"faces": json.loads(first.cursor)["faces"] | {"due": 0.0}})
    assert notice(instance, waited).skip_message == "faces: all pictures are in the dataset"


def test_truncated_archive_is_named(faces: Dataset, labeled: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.tar").write_bytes((labeled / "source" / "camera.png").read_bytes())
    outcome, new = source_outcome(replace(find_snapshot("faces"), sources=[f"{tmp_path}/cut.tar"]))
    assert not outcome.passed and not new
    assert "cut.tar cannot be read (" in outcome.description and "\n" not in outcome.description


def test_unlabeled_shards_request_a_run_unless_a_job_holds_them(
    faces: Dataset, new_picture: Path, instance: dg.DagsterInstance
) -> None:
    """As when the labeling after an ingest was refused because of another job."""
    track([("dataset", faces.uri)], new_pictures="build")
    ingest(str(new_picture.parent), faces.uri, shard_rows=2)
    refresh()
    assert not new_files(find_snapshot("faces"))
    with lease(faces.store, ["brightness"]):
        waits = second_tick(instance)
        assert waits.skip_message == "faces: a job is working on brightness" and not waits.run_requests
    tick = second_tick(instance)
    assert tick.run_requests
    run = request_run(instance, tick, dg.DagsterRunStatus.SUCCESS)
    assert run and "has succeeded" in second_tick(instance).skip_message, "not for ever"
    label(faces.uri, [])
    done = second_tick(instance)
    assert done.skip_message == "faces: all pictures are in the dataset" and not done.run_requests
