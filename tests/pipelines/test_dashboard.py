"""The dashboard's assets: their lineage, and what Dagster calls fresh, beside what the footers say."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dashboard_assets import BRIGHTNESS, declare, last_event, verdicts

from labeling.dataset import Dataset, dataset_status
from model.inputs import InputError
from pipelines.dashboard import ranges
from pipelines.dashboard.checks import Verdict, dataset_verdicts, place_checks, report_verdicts, run_verdicts
from pipelines.dashboard.definitions import build_definitions
from pipelines.dashboard.fingerprints import Version, dataset_state, dataset_versions
from pipelines.dashboard.follower import Follower
from pipelines.dashboard.reporting import Reporter, shown_pictures
from pipelines.dashboard.sheets import drop_old_pictures, keep_picture, live_curves, picture_folder
from pipelines.dashboard.snapshots import find_snapshot, refresh, shape, snapshots
from pipelines.dashboard.tracked_assets import find_place, forget, place_kind, places, remember, worked_on
from pipelines.jobs.known_jobs import forget_job, remember_job
from pipelines.jobs.status import list_jobs
from pipelines.label import label
from pipelines.train import train
from training.config import load_config


def test_groups_are_assets_with_their_lineage_and_code_versions(faces: Dataset) -> None:
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


def test_what_was_labeled_elsewhere_is_shown_as_fresh_with_pictures(
    faces: Dataset, instance: dg.DagsterInstance
) -> None:
    assert verdicts(instance)["faces/brightness"][0] == "MISSING"
    follower = Follower(instance)
    assert follower.follow() == ["faces: 9 changes"]  # three groups, and three checks of each label
    assert {status for status, _ in verdicts(instance).values()} == {"FRESH"}
    event = last_event(instance, "faces", "brightness")
    content = dataset_state(find_snapshot("faces")).contents["brightness"]
    assert event.tags["dagster/data_version"] == content
    assert event.metadata["dagster/row_count"].value == 6
    sheet = str(event.metadata["pictures"].value)
    name = sheet[sheet.index("/pictures/") + len("/pictures/") : -1]
    assert len(sheet) < 1000 and (picture_folder() / name).read_bytes().startswith(b"\xff\xd8")
    assert follower.follow() == [] == Follower(instance).follow()


def test_dagster_calls_stale_what_the_footers_call_stale(faces: Dataset, instance: dg.DagsterInstance) -> None:
    follower = Follower(instance)
    follower.follow()
    declare(faces, "brightness", gain=1.0001)
    follower.follow()
    assert verdicts(instance)["faces/brightness"] == ("STALE", ["has a new code version"])
    assert verdicts(instance)["faces/doubled"] == ("FRESH", [])
    label(faces.uri, [])  # with two levels the values come out the same: nothing else is stale
    follower.follow()
    assert {status for status, _ in verdicts(instance).values()} == {"FRESH"}
    declare(faces, "brightness", gain=0.1, levels=256)
    label(faces.uri, ["brightness"])
    follower.follow()
    assert asdict(dataset_status(faces)["doubled"])["stale"] == 3
    assert verdicts(instance)["faces/doubled"] == ("STALE", ["has a new dependency data version"])
    label(faces.uri, [])
    follower.follow()
    assert {status for status, _ in verdicts(instance).values()} == {"FRESH"}


def test_shards_that_are_gone_or_made_otherwise_are_stale(faces: Dataset, instance: dg.DagsterInstance) -> None:
    label(faces.uri, [BRIGHTNESS], {"brightness": {"gain": 2.0}})
    declare(faces, "brightness", gain=1.0)  # before the dashboard ever saw it
    follower = Follower(instance)
    follower.follow()
    assert verdicts(instance)["faces/brightness"][0] == "STALE"
    label(faces.uri, [])
    follower.follow()
    assert verdicts(instance)["faces/brightness"][0] == "FRESH"
    faces.store.delete("doubled/000001.parquet")
    follower.follow()
    assert verdicts(instance)["faces/doubled"][0] == "STALE"
    for name in ("000000", "000002"):
        faces.store.delete(f"doubled/{name}.parquet")
    follower.follow()
    assert verdicts(instance)["faces/doubled"][0] == "STALE"
    assert last_event(instance, "faces", "doubled").tags["dagster/data_version"] == "missing"


def test_a_report_overrules_what_dagster_concludes_from_versions(faces: Dataset, instance: dg.DagsterInstance) -> None:
    """As when a column changed that nobody reads: the data version is new, what depends on it is fresh all the same."""
    Follower(instance).follow()
    versions = list(dataset_versions(dataset_state(find_snapshot("faces"))))
    changed = [Version(**{**one.__dict__, "content": "x"}) if one.key[1] == "brightness" else one for one in versions]
    assert Reporter(instance).report(changed, lambda one: {}) == 1
    assert verdicts(instance)["faces/doubled"][0] == "STALE"
    inputs = {("faces", "brightness"): "x", ("faces", "images"): versions[0].content}
    changed[-1] = Version(**{**changed[-1].__dict__, "inputs": inputs, "current": inputs})
    assert Reporter(instance).report(changed, lambda one: {}) == 1
    assert verdicts(instance)["faces/doubled"] == ("FRESH", [])


def count_events(instance: dg.DagsterInstance, *key: str) -> int:
    return len(instance.fetch_materializations(dg.AssetKey(key), limit=99).records)


@pytest.mark.parametrize("wait", [60.0, 0.0])
def test_what_fills_is_told_of_now_and_then_and_when_it_is_whole(
    faces: Dataset, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, wait: float
) -> None:
    monkeypatch.setattr("pipelines.dashboard.reporting.LEAST_WAIT", wait)
    names = [f"{group}/{shard}.parquet" for group in ("brightness", "doubled") for shard in ("000001", "000002")]
    kept = {name: faces.store.read(name) for name in names}
    follower, told = Follower(instance), []

    def tell(*restored: str) -> None:
        for name in restored:
            faces.store.put(name, kept[name])
        follower.follow()
        told.append((count_events(instance, "faces", "brightness"), count_events(instance, "faces", "doubled")))

    tell()
    for name in names:
        faces.store.delete(name)
    tell()
    tell(names[0], names[2])
    assert told == [(1, 1), (2, 2), (2, 2) if wait else (3, 3)]
    assert verdicts(instance)["faces/doubled"][0] == "STALE"
    tell(names[1], names[3])
    assert told[-1] == ((3, 3) if wait else (4, 4))
    assert {status for status, _ in verdicts(instance).values()} == {"FRESH"}


def test_a_check_is_told_again_when_it_flips_and_else_seldom(instance: dg.DagsterInstance) -> None:
    def tell(passed: bool, said: str, **more: float) -> int:
        return report_verdicts(instance, [Verdict(("run", "checkpoints"), "loss", passed, said)], **more)

    assert [tell(True, "0.5"), tell(True, "0.4"), tell(False, "9"), tell(False, "8")] == [1, 0, 1, 0]
    assert [tell(False, "8", seconds=0.0), tell(False, "7", seconds=0.0), tell(False, "7", seconds=0.0)] == [1, 1, 0]


def test_a_second_look_reads_nothing_but_the_footers_that_changed(faces: Dataset) -> None:
    state = dataset_state(find_snapshot("faces"))
    assert dataset_state(find_snapshot("faces"), state) is state
    for group in ("images", "brightness", "doubled"):
        faces.store.delete(f"{group}/index.parquet")
    path = Path(faces.uri, "brightness", "000000.parquet")  # not to be read: what is listed of it stays the same
    stat = path.stat()
    path.write_bytes(bytes(stat.st_size))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert dataset_state(find_snapshot("faces"), state) is state
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
def test_ranges_are_few_and_keep_their_names_as_a_dataset_grows(shards: int, count: int, first: str, last: str) -> None:
    found = ranges.cut_ranges(shards)
    assert len(found) == count <= ranges.MOST_RANGES
    assert [shard for one in found for shard in range(one.first, one.end)] == list(range(shards))
    if found:
        assert (found[0].key, found[-1].key) == (first, last)


def test_a_range_of_shards_is_stale_by_itself(
    faces: Dataset, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "FEW_SHARDS", 2)
    graph = build_definitions().get_repository_def().asset_graph
    partitions = graph.get(dg.AssetKey(["faces", "doubled"])).partitions_def
    assert partitions and partitions.get_partition_keys() == ["000000", "000001", "000002"]
    follower = Follower(instance)
    follower.follow()
    assert {status for status, _ in verdicts(instance, "000001").values()} == {"FRESH"}
    declare(faces, "brightness", gain=0.1, levels=256)
    label(faces.uri, ["brightness"], shards=(1, 2))
    follower.follow()
    assert verdicts(instance, "000001")["faces/brightness"][0] == "FRESH"
    assert verdicts(instance, "000001")["faces/doubled"][0] == "STALE"
    assert verdicts(instance, "000002")["faces/brightness"][0] == "STALE"
    assert verdicts(instance, "000002")["faces/doubled"][0] == "FRESH"
    check = {(one.key[1], one.check): one for one in dataset_verdicts(dataset_state(find_snapshot("faces")), instance)}
    assert check["brightness", "fresh"].said == "2 stale of 3 shards, in 000000, 000002"


def test_a_dataset_out_of_reach_is_shown_with_its_reason_and_leaves_the_others_alone(
    faces: Dataset, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("AWS_ENDPOINT_URL", "http://127.0.0.1:9"), ("AWS_ACCESS_KEY_ID", "a")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    remember([("unknown", "s3://lab/far")])
    told = Follower(instance).follow()
    assert told[0] == "faces: 9 changes" and told[1].startswith("far: s3://lab/far")
    graph = build_definitions().get_repository_def().asset_graph
    assert "does not answer" in str(graph.get(dg.AssetKey(["far"])).description)
    shutil.move(faces.uri, f"{faces.uri}-away")
    refresh()
    graph = build_definitions().get_repository_def().asset_graph
    assert "Out of reach" in str(graph.get(dg.AssetKey(["faces", "brightness"])).description)
    shutil.move(f"{faces.uri}-away", faces.uri)
    refresh()
    assert not find_snapshot("faces").trouble


def test_a_dataset_on_s3_is_shown_like_a_folder(
    labeled: Path, own_data: None, s3: str, instance: dg.DagsterInstance
) -> None:
    source, target = Dataset.open(labeled / "faces").store, Dataset(f"{s3}/far/faces").store
    for name in source.walk():
        target.put(name, source.read(name))
    assert place_kind(target.uri) == "dataset"
    remember([("dataset", target.uri)])
    follower = Follower(instance)
    assert follower.follow() == ["faces: 9 changes"]
    assert {status for status, _ in verdicts(instance).values()} == {"FRESH"}
    assert "pictures" in last_event(instance, "faces", "brightness").metadata


def test_a_run_is_fresh_while_its_datasets_hold_what_it_learned_from(
    pictures_dataset: Path,
    small_config: dict[str, Any],
    own_data: None,
    ray_cluster: None,
    instance: dg.DagsterInstance,
    tmp_path: Path,
) -> None:
    config = load_config("debug", {**small_config, "validation": {"share": 0.3, "samples": 12}})
    train(config, str(tmp_path / "run"), say=lambda line: None)
    remember([("run", str(tmp_path / "run"))])
    follower = Follower(instance)
    follower.follow()  # its datasets are shown with it
    assert {place.name for place in places()} == {"run", "pictures_dataset"}
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
    assert verdicts(instance)["run/checkpoints"] == ("FRESH", [])
    event = last_event(instance, "run", "checkpoints")
    assert event.metadata["step"].value == config.steps and "/pictures/" in str(event.metadata["loss"].value)
    assert next((one.check, one.passed) for one in run_verdicts(find_snapshot("run"))) == ("loss", True)
    assert {spec.name for spec in place_checks(find_snapshot("run"))} == {"loss", "held_out", "figures"}
    metrics = tmp_path / "run" / "metrics.jsonl"
    for loss, passed in ((1e-3, True), (2e-3, False)):  # lower than ever, then risen from there
        with metrics.open("a") as file:
            file.write(json.dumps({"step": 5, "validation_loss": loss}) + "\n")
        [held_out] = [one for one in run_verdicts(find_snapshot("run")) if one.check == "held_out"]
        assert held_out.passed is passed, held_out.said
    (pictures_dataset / "text" / "000001.parquet").unlink()
    follower.follow()
    assert verdicts(instance)["run/checkpoints"] == ("STALE", ["has a new dependency data version"])
    # It has all its steps: training again would do nothing, and is no success.
    job = build_definitions().get_implicit_global_asset_job_def()
    made = job.execute_in_process(
        instance=instance, raise_on_error=False, asset_selection=[dg.AssetKey(["run", "checkpoints"])]
    )
    [failure] = [event for event in made.all_node_events if event.is_step_failure]
    said = str(failure.step_failure_data.user_failure_data)
    assert "it learned from other content of pictures_dataset/text than is there now; take another run" in said
    assert not list_jobs(str(tmp_path / "run"))


def test_places_have_names_of_their_own_for_good(own_data: None) -> None:
    remember([("dataset", "/data/demo/dataset"), ("run", "/data/runs/demo"), ("dataset", "s3://lab/other/dataset")])
    assert {place.address: place.name for place in places()} == {
        "/data/demo/dataset": "dataset",
        "/data/runs/demo": "demo",
        "s3://lab/other/dataset": "other_dataset",
    }
    before = shape()
    remember([("dataset", "/data/demo/dataset")], owner="team:labels")
    assert find_place("dataset").owner == "team:labels" and shape() != before
    forget(["dataset"])
    with pytest.raises(InputError, match="dataset: not on the dashboard; there are demo, other_dataset"):
        forget(["dataset"])
    remember_job("label-0a", "/data/a-b/jobs/label-0a")
    remember_job("train-0b", "s3://lab/r/jobs/train-0b")
    remember_job("report-0c", "/data/c/jobs/report-0c")
    assert worked_on() == [("dataset", "/data/a-b"), ("run", "s3://lab/r")]
    remember([*worked_on(), ("dataset", "/data/demo/dataset")])
    assert "dataset" not in {place.name for place in places()}, "what a person took out does not come back by itself"
    remember([("dataset", "/data/demo/dataset")], asked=True)
    assert find_place("dataset").address == "/data/demo/dataset"
    forget(["a_b"])
    remember(worked_on())
    assert "a_b" not in {place.name for place in places()}
    for identity in ("label-0a", "train-0b", "report-0c"):
        forget_job(identity)
    with pytest.raises(InputError, match="neither a dataset nor a run"):
        place_kind(os.devnull + "/nothing")


def test_old_pictures_make_room(own_data: None) -> None:
    names = [keep_picture(bytes([number]) * 1000, "jpg") for number in range(3)]
    for number, name in enumerate(names):
        os.utime(picture_folder() / name.rsplit("/", 1)[1], (number, number))
    drop_old_pictures(most=1500)
    assert [f"/pictures/{path.name}" for path in picture_folder().iterdir()] == names[2:]


def test_pictures_of_the_newest_events_stay(faces: Dataset, instance: dg.DagsterInstance) -> None:
    follower = Follower(instance)
    follower.follow()
    declare(faces, "brightness", gain=0.1, levels=256)
    before = str(last_event(instance, "faces", "brightness").metadata["pictures"].value)
    label(faces.uri, ["brightness"])
    follower.follow()
    after = str(last_event(instance, "faces", "brightness").metadata["pictures"].value)
    shown = shown_pictures(instance)
    assert len(shown) == 3 and any(name in after for name in shown) and not any(name in before for name in shown)
    other = keep_picture(bytes(1000), "jpg").rpartition("/")[2]
    for path in picture_folder().iterdir():  # those of a dataset that nobody touched for long
        os.utime(path, (time.time() - 9, time.time() - 9 + (path.name == other)))
    drop_old_pictures(shown, most=sum((picture_folder() / name).stat().st_size for name in shown))
    assert {path.name for path in picture_folder().iterdir()} == shown


def test_curves_are_drawn_without_the_manifest_and_metrics_read_when_they_change(
    own_data: None, tmp_path: Path
) -> None:
    (tmp_path / "manifest.json").mkdir()  # it names every shard of every dataset, so reading it takes its time
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps({"step": step, "loss": 1.0 / step}) + "\n" for step in (1, 2, 3)))
    assert b"step 3, loss" in live_curves(str(tmp_path))
    before = metrics.stat()
    metrics.write_text(metrics.read_text().replace('"step": 3', '"step": 4'))
    os.utime(metrics, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert b"step 3, loss" in live_curves(str(tmp_path)), "what is listed as before is not read again"
    os.utime(metrics)
    assert b"step 4, loss" in live_curves(str(tmp_path))


def test_definitions_need_nothing_but_the_snapshots(faces: Dataset) -> None:
    shutil.rmtree(faces.uri)
    names: Mapping[str, Any] = {snapshot.place.name: snapshot for snapshot in snapshots()}
    assert list(names) == ["faces"]
    assert len(list(build_definitions().get_repository_def().asset_graph.get_all_asset_keys())) == 3
