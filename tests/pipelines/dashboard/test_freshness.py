"""The assets' lineage, and what Dagster calls fresh, compared with what the footers say."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dashboard_assets import BRIGHTNESS, declare, last_event, statuses

from labeling.dataset import Dataset, dataset_status
from pipelines.dashboard import partitions
from pipelines.dashboard.check_outcomes import CheckOutcome, dataset_outcomes, report_outcomes, run_outcomes
from pipelines.dashboard.checks import check_specs
from pipelines.dashboard.dataset_state import dataset_state
from pipelines.dashboard.definitions import build_definitions
from pipelines.dashboard.follower import Follower
from pipelines.dashboard.picture_files import picture_folder
from pipelines.dashboard.reporting import Reporter
from pipelines.dashboard.snapshots import find_snapshot
from pipelines.dashboard.tracked_assets import kind_at, track, tracked_assets
from pipelines.dashboard.versions import AssetVersion, dataset_versions
from pipelines.jobs.status import list_jobs
from pipelines.label import label
from pipelines.train import train
from training.config import load_config


def test_groups_become_assets_with_lineage_and_code_versions(faces: Dataset) -> None:
    graph = build_definitions().get_repository_def().asset_graph
    parents = {
        key.to_user_string(): {parent.to_user_string() for parent in graph.get(key).parent_keys}
        for key in graph.get_all_asset_keys()
    }
    assert parents == {
        "faces/images": set(),
        "faces/brightness": {"faces/images"},
        "faces/doubled": {"faces/images", "faces/brightness"},
    }
    node = graph.get(dg.AssetKey(["faces", "brightness"]))
    before = node.code_version
    assert node.group_name == "faces" and node.metadata["labeler"] == "brightness 1" and before
    assert not graph.get(dg.AssetKey(["faces", "images"])).is_materializable
    declare(faces, "brightness", gain=2.0)
    graph = build_definitions().get_repository_def().asset_graph
    assert graph.get(dg.AssetKey(["faces", "brightness"])).code_version not in (None, before)


def test_follower_reports_labels_of_the_command_line_as_fresh_with_pictures(
    faces: Dataset, instance: dg.DagsterInstance
) -> None:
    assert statuses(instance)["faces/brightness"][0] == "MISSING"
    follower = Follower(instance)
    assert follower.follow() == ["faces: 9 changes"]  # three groups, and three checks of each label
    assert {status for status, _ in statuses(instance).values()} == {"FRESH"}
    event = last_event(instance, "faces", "brightness")
    content = dataset_state(find_snapshot("faces")).contents["brightness"]
    assert event.tags["dagster/data_version"] == content
    assert event.metadata["dagster/row_count"].value == 6
    sheet = str(event.metadata["pictures"].value)
    name = sheet[sheet.index("/pictures/") + len("/pictures/") : -1]
    assert len(sheet) < 1000 and (picture_folder() / name).read_bytes().startswith(b"\xff\xd8")
    assert follower.follow() == [] == Follower(instance).follow()


def test_dagster_agrees_with_footers_on_what_is_stale(faces: Dataset, instance: dg.DagsterInstance) -> None:
    follower = Follower(instance)
    follower.follow()
    declare(faces, "brightness", gain=1.0001)
    follower.follow()
    assert statuses(instance)["faces/brightness"] == ("STALE", ["has a new code version"])
    assert statuses(instance)["faces/doubled"] == ("FRESH", [])
    label(faces.uri, [])  # with two levels the values come out the same: nothing else is stale
    follower.follow()
    assert {status for status, _ in statuses(instance).values()} == {"FRESH"}
    declare(faces, "brightness", gain=0.1, levels=256)
    label(faces.uri, ["brightness"])
    follower.follow()
    assert asdict(dataset_status(faces)["doubled"])["stale"] == 3
    assert statuses(instance)["faces/doubled"] == ("STALE", ["has a new dependency data version"])
    label(faces.uri, [])
    follower.follow()
    assert {status for status, _ in statuses(instance).values()} == {"FRESH"}


def test_missing_or_differently_made_shards_are_stale(faces: Dataset, instance: dg.DagsterInstance) -> None:
    label(faces.uri, [BRIGHTNESS], {"brightness": {"gain": 2.0}})
    declare(faces, "brightness", gain=1.0)  # before the dashboard ever saw it
    follower = Follower(instance)
    follower.follow()
    assert statuses(instance)["faces/brightness"][0] == "STALE"
    label(faces.uri, [])
    follower.follow()
    assert statuses(instance)["faces/brightness"][0] == "FRESH"
    faces.store.delete("doubled/000001.parquet")
    follower.follow()
    assert statuses(instance)["faces/doubled"][0] == "STALE"
    for name in ("000000", "000002"):
        faces.store.delete(f"doubled/{name}.parquet")
    follower.follow()
    assert statuses(instance)["faces/doubled"][0] == "STALE"
    assert last_event(instance, "faces", "doubled").tags["dagster/data_version"] == "missing"


def test_report_corrects_what_dagster_concludes_from_versions(faces: Dataset, instance: dg.DagsterInstance) -> None:
    """As when a column changed that nobody reads: the data version is new, what depends on it is fresh all the same."""
    Follower(instance).follow()
    versions = list(dataset_versions(dataset_state(find_snapshot("faces"))))
    changed = [
        AssetVersion(**{**one.__dict__, "content": "x"}) if one.key[1] == "brightness" else one for one in versions
    ]
    assert Reporter(instance).report(changed, lambda one: {}) == 1
    assert statuses(instance)["faces/doubled"][0] == "STALE"
    inputs = {("faces", "brightness"): "x", ("faces", "images"): versions[0].content}
    changed[-1] = AssetVersion(**{**changed[-1].__dict__, "inputs": inputs, "current": inputs})
    assert Reporter(instance).report(changed, lambda one: {}) == 1
    assert statuses(instance)["faces/doubled"] == ("FRESH", [])


def count_events(instance: dg.DagsterInstance, *key: str) -> int:
    return len(instance.fetch_materializations(dg.AssetKey(key), limit=99).records)


@pytest.mark.parametrize("wait", [60.0, 0.0])
def test_incomplete_group_is_reported_at_growing_intervals_and_when_complete(
    faces: Dataset, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, wait: float
) -> None:
    monkeypatch.setattr("pipelines.dashboard.reporting.MIN_WAIT", wait)
    names = [f"{group}/{shard}.parquet" for group in ("brightness", "doubled") for shard in ("000001", "000002")]
    contents = {name: faces.store.read(name) for name in names}
    follower, counts = Follower(instance), []

    def report(*restored: str) -> None:
        for name in restored:
            faces.store.put(name, contents[name])
        follower.follow()
        counts.append((count_events(instance, "faces", "brightness"), count_events(instance, "faces", "doubled")))

    report()
    for name in names:
        faces.store.delete(name)
    report()
    report(names[0], names[2])
    assert counts == [(1, 1), (2, 2), (2, 2) if wait else (3, 3)]
    assert statuses(instance)["faces/doubled"][0] == "STALE"
    report(names[1], names[3])
    assert counts[-1] == ((3, 3) if wait else (4, 4))
    assert {status for status, _ in statuses(instance).values()} == {"FRESH"}


def test_check_is_reported_when_it_flips_and_otherwise_seldom(instance: dg.DagsterInstance) -> None:
    def report(passed: bool, description: str, **more: float) -> int:
        return report_outcomes(instance, [CheckOutcome(("run", "checkpoints"), "loss", passed, description)], **more)

    assert [report(True, "0.5"), report(True, "0.4"), report(False, "9"), report(False, "8")] == [1, 0, 1, 0]
    assert [
        report(False, "8", repeat_seconds=0.0),
        report(False, "7", repeat_seconds=0.0),
        report(False, "7", repeat_seconds=0.0),
    ] == [1, 1, 0]


def test_second_state_reads_only_changed_footers(faces: Dataset) -> None:
    state = dataset_state(find_snapshot("faces"))
    assert dataset_state(find_snapshot("faces"), state.without_footers()).is_as(state)
    for group in ("images", "brightness", "doubled"):
        faces.store.delete(f"{group}/index-000000-004096.parquet")
    path = Path(faces.uri, "brightness", "000000.parquet")  # not to be read: what is listed of it stays the same
    stat = path.stat()
    path.write_bytes(bytes(stat.st_size))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert dataset_state(find_snapshot("faces"), state).is_as(state)
    faces.store.delete("brightness/000001.parquet")
    os.utime(Path(faces.uri, "brightness", "000002.parquet"))
    after = dataset_state(find_snapshot("faces"), state)
    assert (after.totals("brightness").fresh, after.totals("brightness").missing) == (2, 1)
    assert after.totals("doubled").stale == 1 and after.ranges["images"] is state.ranges["images"]


@pytest.mark.parametrize(
    ("shards", "count", "first", "last"),
    [
        (0, 0, "", ""),
        (9, 1, "all", "all"),
        (10, 10, "000000", "000009"),
        (99, 99, "000000", "000098"),
        (100, 10, "000000-000009", "000090-000099"),
        (101, 11, "000000-000009", "000100-000109"),
        (100_000, 10, "000000-009999", "090000-099999"),
    ],
)
def test_partitions_are_few_and_keep_their_keys_as_a_dataset_grows(
    shards: int, count: int, first: str, last: str
) -> None:
    ranges = partitions.shard_ranges(shards)
    assert len(ranges) == count <= partitions.MAX_PARTITIONS
    assert [shard for one in ranges for shard in range(one.first, one.end)] == list(range(shards))
    if ranges:
        assert (ranges[0].key, ranges[-1].key) == (first, last)


def test_partitions_are_stale_independently(
    faces: Dataset, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "FEW_SHARDS", 2)
    graph = build_definitions().get_repository_def().asset_graph
    definition = graph.get(dg.AssetKey(["faces", "doubled"])).partitions_def
    assert definition and definition.get_partition_keys() == ["000000", "000001", "000002"]
    follower = Follower(instance)
    follower.follow()
    assert {status for status, _ in statuses(instance, "000001").values()} == {"FRESH"}
    declare(faces, "brightness", gain=0.1, levels=256)
    label(faces.uri, ["brightness"], shards=(1, 2))
    follower.follow()
    assert statuses(instance, "000001")["faces/brightness"][0] == "FRESH"
    assert statuses(instance, "000001")["faces/doubled"][0] == "STALE"
    assert statuses(instance, "000002")["faces/brightness"][0] == "STALE"
    assert statuses(instance, "000002")["faces/doubled"][0] == "FRESH"
    check = {(one.key[1], one.check): one for one in dataset_outcomes(dataset_state(find_snapshot("faces")), instance)}
    assert check["brightness", "fresh"].description == "2 stale of 3 shards, in 000000, 000002"


def test_dataset_on_s3_is_shown_like_a_folder(
    labeled: Path, own_data: None, s3: str, instance: dg.DagsterInstance
) -> None:
    source, target = Dataset.open(labeled / "faces").store, Dataset(f"{s3}/far/faces").store
    for name in source.walk():
        target.put(name, source.read(name))
    assert kind_at(target.uri) == "dataset"
    track([("dataset", target.uri)])
    follower = Follower(instance)
    assert follower.follow() == ["faces: 9 changes"]
    assert {status for status, _ in statuses(instance).values()} == {"FRESH"}
    assert "pictures" in last_event(instance, "faces", "brightness").metadata


def test_run_is_fresh_while_its_datasets_hold_what_it_learned_from(
    pictures_dataset: Path,
    small_config: dict[str, Any],
    own_data: None,
    ray_cluster: None,
    instance: dg.DagsterInstance,
    tmp_path: Path,
) -> None:
    config = load_config("debug", {**small_config, "validation": {"share": 0.3, "samples": 12}})
    train(config, str(tmp_path / "run"), say=lambda line: None)
    track([("run", str(tmp_path / "run"))])
    follower = Follower(instance)
    follower.follow()  # its datasets are shown with it
    assert {asset.name for asset in tracked_assets()} == {"run", "pictures_dataset"}
    follower.follow()
    graph = build_definitions().get_repository_def().asset_graph
    parents = graph.get(dg.AssetKey(["run", "checkpoints"])).parent_keys
    assert {key.path[1] for key in parents} == {
        "images",
        "latents-64",
        "latents-64-edges",
        "latents-64-segmentation",
        "segmentation",
        "text",
    }
    assert statuses(instance)["run/checkpoints"] == ("FRESH", [])
    event = last_event(instance, "run", "checkpoints")
    assert event.metadata["step"].value == config.steps and "/pictures/" in str(event.metadata["loss"].value)
    assert next((one.check, one.passed) for one in run_outcomes(find_snapshot("run"))) == ("loss", True)
    assert {spec.name for spec in check_specs(find_snapshot("run"))} == {"loss", "validation", "figures"}
    metrics = tmp_path / "run" / "metrics.jsonl"
    for loss, passed in ((1e-3, True), (2e-3, False)):  # lower than ever, then risen from there
        with metrics.open("a") as file:
            file.write(json.dumps({"step": 5, "validation_loss": loss}) + "\n")
        [outcome] = [one for one in run_outcomes(find_snapshot("run")) if one.check == "validation"]
        assert outcome.passed is passed, outcome.description
    (pictures_dataset / "text" / "000001.parquet").unlink()
    follower.follow()
    assert statuses(instance)["run/checkpoints"] == ("STALE", ["has a new dependency data version"])
    # It has all its steps: training again would do nothing, and is no success.
    job = build_definitions().get_implicit_global_asset_job_def()
    result = job.execute_in_process(
        instance=instance, raise_on_error=False, asset_selection=[dg.AssetKey(["run", "checkpoints"])]
    )
    [failure] = [event for event in result.all_node_events if event.is_step_failure]
    message = str(failure.step_failure_data.user_failure_data)
    assert "it learned from other content of pictures_dataset/text than is there now; take another run" in message
    assert not list_jobs(str(tmp_path / "run"))
