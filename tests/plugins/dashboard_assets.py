"""Fixtures of the dashboard's tests: a labeled dataset on a dashboard, and what Dagster says of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster_judgment import stale_status

from cluster.local import work_processes
from labeling.dataset import Dataset
from pipelines.dashboard.definitions import build_definitions
from pipelines.dashboard.snapshots import refresh
from pipelines.dashboard.tracked_assets import track
from pipelines.ingest import ingest
from pipelines.jobs.status import list_jobs
from pipelines.label import label

BRIGHTNESS, DOUBLED = "simple_labelers:Brightness", "simple_labelers:Doubled"
Statuses = dict[str, tuple[str, list[str]]]


@pytest.fixture(scope="session")
def labeled(ray_cluster: None, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source of six pictures and a dataset of three shards made of it, with two labels, one made from the other."""
    folder = tmp_path_factory.mktemp("dashboard")
    (folder / "source").mkdir()
    for name in ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "camera.png", "motorcycle_left.png"):
        shutil.copy(photographs / name, folder / "source" / name)
    ingest(str(folder / "source"), str(folder / "faces"), shard_rows=2)
    label(str(folder / "faces"), [BRIGHTNESS, DOUBLED], {"brightness": {"levels": 2}})
    return folder


@pytest.fixture
def own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A data folder of the test's own; processes that jobs leave running are killed."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    yield
    for attempt, _ in list_jobs():
        for process in work_processes(attempt.name):
            process.kill()


@pytest.fixture
def faces(labeled: Path, own_data: None, tmp_path: Path) -> Dataset:
    """A dataset on the dashboard that a test may change."""
    dataset = Dataset.open(shutil.copytree(labeled / "faces", tmp_path / "faces"))
    track([("dataset", dataset.uri)])
    refresh()
    return dataset


@pytest.fixture
def new_picture(labeled: Path, faces: Dataset, photographs: Path) -> Iterator[Path]:
    """A picture in the dataset's source that the dataset does not have."""
    path = labeled / "source" / "brick.png"
    shutil.copy(photographs / "brick.png", path)
    yield path
    path.unlink()


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def statuses(instance: dg.DagsterInstance, partition: str | None = None) -> Statuses:
    """What Dagster says of each asset, and why, by the definitions as they load now."""
    graph = build_definitions().get_repository_def().asset_graph
    return {
        key.to_user_string(): stale_status(instance, graph, key, partition if graph.get(key).is_partitioned else None)
        for key in graph.get_all_asset_keys()
    }


def declare(dataset: Dataset, group: str, **parameters: Any) -> None:
    declared = dataset.declaration(group)
    assert declared
    dataset.declare(group, {**declared, "parameters": {**declared["parameters"], **parameters}})
    refresh()


def last_event(instance: dg.DagsterInstance, *key: str) -> dg.AssetMaterialization:
    records = instance.fetch_materializations(dg.AssetKey(key), limit=1).records
    event = records[0].asset_materialization
    assert event
    return event
