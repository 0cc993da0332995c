"""Which datasets and runs the dashboard shows, and where it keeps them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from typing import Any

import dagster as dg
import pytest

from labeling.dataset import Dataset
from model.inputs import InputError
from pipelines.dashboard.definitions import build_definitions
from pipelines.dashboard.follower import Follower
from pipelines.dashboard.snapshots import find_snapshot, refresh, snapshots, snapshots_digest
from pipelines.dashboard.tracked_assets import (
    TrackedAsset,
    assets_of_jobs,
    find_tracked,
    kind_at,
    state_folder,
    track,
    tracked_assets,
    untrack,
)
from pipelines.jobs.known_jobs import forget_job, remember_job


def test_unreachable_dataset_is_shown_with_its_reason_beside_the_others(
    faces: Dataset, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("AWS_ENDPOINT_URL", "http://127.0.0.1:9"), ("AWS_ACCESS_KEY_ID", "a")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    track([("unknown", "s3://lab/far")])
    lines = Follower(instance).follow()
    assert lines[0] == "faces: 9 changes" and lines[1].startswith("far: s3://lab/far")
    graph = build_definitions().get_repository_def().asset_graph
    assert "does not answer" in str(graph.get(dg.AssetKey(["far"])).description)
    shutil.move(faces.uri, f"{faces.uri}-away")
    refresh()
    graph = build_definitions().get_repository_def().asset_graph
    assert "Out of reach" in str(graph.get(dg.AssetKey(["faces", "brightness"])).description)
    shutil.move(f"{faces.uri}-away", faces.uri)
    refresh()
    assert not find_snapshot("faces").trouble


def test_tracked_assets_have_unique_lasting_names(own_data: None) -> None:
    track([("dataset", "/data/demo/dataset"), ("run", "/data/runs/demo"), ("dataset", "s3://lab/other/dataset")])
    assert {asset.address: asset.name for asset in tracked_assets()} == {
        "/data/demo/dataset": "dataset",
        "/data/runs/demo": "demo",
        "s3://lab/other/dataset": "other_dataset",
    }
    before = snapshots_digest()
    track([("dataset", "/data/demo/dataset")], owner="team:labels")
    assert find_tracked("dataset").owner == "team:labels" and snapshots_digest() != before
    untrack(["dataset"])
    with pytest.raises(InputError, match="dataset: not on the dashboard; there are demo, other_dataset"):
        untrack(["dataset"])
    remember_job("label-0a", "/data/a-b/jobs/label-0a")
    remember_job("train-0b", "s3://lab/r/jobs/train-0b")
    remember_job("report-0c", "/data/c/jobs/report-0c")
    remember_job("evaluate-0d", "/data/r2/jobs/evaluate-0d")
    assert set(assets_of_jobs()) == {("dataset", "/data/a-b"), ("run", "s3://lab/r"), ("run", "/data/r2")}
    track([*assets_of_jobs(), ("dataset", "/data/demo/dataset")])
    assert "dataset" not in {asset.name for asset in tracked_assets()}, (
        "what a person took out does not come back by itself"
    )
    track([("dataset", "/data/demo/dataset")], by_person=True)
    assert find_tracked("dataset").address == "/data/demo/dataset"
    untrack(["a_b"])
    track(assets_of_jobs())
    assert "a_b" not in {asset.name for asset in tracked_assets()}
    for identity in ("label-0a", "train-0b", "report-0c", "evaluate-0d"):
        forget_job(identity)
    with pytest.raises(InputError, match="neither a dataset nor a run"):
        kind_at(os.devnull + "/nothing")


def test_definitions_load_from_snapshots_alone(faces: Dataset) -> None:
    shutil.rmtree(faces.uri)
    names: Mapping[str, Any] = {snapshot.tracked.name: snapshot for snapshot in snapshots()}
    assert list(names) == ["faces"]
    assert len(list(build_definitions().get_repository_def().asset_graph.get_all_asset_keys())) == 3


def test_files_of_earlier_versions_are_read(own_data: None) -> None:
    asset = {
        "name": "faces",
        "kind": "dataset",
        "address": "/data/faces",
        "owner": "team:labels",
        "new_pictures": "build",
    }
    groups = {"images": {"labeler": "ingest"}, "edges": {"labeler": "edges", "version": 1, "reads": ["images.image"]}}
    snapshot = {"place": asset, "trouble": "", "kind": "pictures", "shards": 3, "sources": ["/raw"], "groups": groups}
    (state_folder() / "places.json").write_text(json.dumps([asset]))
    (state_folder() / "forgotten.json").write_text(json.dumps(["/data/other"]))
    (state_folder() / "snapshots").mkdir()
    (state_folder() / "snapshots" / "faces.json").write_text(json.dumps({**snapshot, "config": {}, "reads": []}))
    assert find_snapshot("faces").tracked == TrackedAsset(**asset)
    assert (find_snapshot("faces").labels, find_snapshot("faces").shards) == (["edges"], 3)
    track([("dataset", "/data/other")])
    assert [one.name for one in tracked_assets()] == ["faces"]
