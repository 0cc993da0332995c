"""What a tick reads: what may have changed, the longest unread first, and no more than fits into its time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dashboard_assets import declare, statuses

from labeling.dataset import Dataset, FooterTable, open_store
from pipelines.dashboard import changes, reporting
from pipelines.dashboard import follower as following
from pipelines.dashboard.changes import fingerprint
from pipelines.dashboard.dagster_internals import DATA_VERSION
from pipelines.dashboard.dataset_state import DatasetState, StateReading, dataset_state
from pipelines.dashboard.follower import Follower
from pipelines.dashboard.known_events import LatestTags
from pipelines.dashboard.snapshots import Snapshot, find_snapshot, refresh
from pipelines.dashboard.tracked_assets import track, tracked_assets


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the datasets whose shards were listed, in order."""
    names: list[str] = []
    monkeypatch.setattr(changes, "UNSURE_SECONDS", 1800.0)  # however long a busy machine takes to a first reading

    class Reading(StateReading):
        def __init__(self, snapshot: Snapshot, before: DatasetState | None = None) -> None:
            names.append(snapshot.tracked.name)
            super().__init__(snapshot, before)

    monkeypatch.setattr(following, "StateReading", Reading)
    return names


def rest(place: str) -> None:
    """As if nothing had changed there for an hour."""
    for folder in [place, *(entry.path for entry in os.scandir(place))]:
        stat = os.stat(folder)
        os.utime(folder, ns=(stat.st_atime_ns, stat.st_mtime_ns - 3600 * 10**9))


def test_dataset_is_read_again_when_a_folder_of_it_has_changed(
    faces: Dataset, instance: dg.DagsterInstance, read: list[str]
) -> None:
    follower = Follower(instance)
    follower.follow()
    assert fingerprint(faces.uri, False) is None, "what has just changed may change again, by the same clock"
    rest(faces.uri)
    follower.follow()
    follower.follow()
    assert read == ["faces"] * 2
    assert all(not state.footers for state in follower._states.values())
    Path(faces.uri, "brightness", "000001.parquet").unlink()
    follower.follow()
    assert read == ["faces"] * 3
    assert statuses(instance)["faces/brightness"][0] != "FRESH"
    rest(faces.uri)
    follower.follow()
    follower.follow()
    assert read == ["faces"] * 4
    rest(faces.uri)
    declare(faces, "brightness", gain=2.0)
    follower.follow()
    assert read == ["faces"] * 5
    assert fingerprint("s3://lab/faces", False) is None and fingerprint("/nowhere", False) is None


def test_tick_without_time_goes_on_where_the_last_one_stopped(
    faces: Dataset, instance: dg.DagsterInstance, read: list[str], tmp_path: Path
) -> None:
    shutil.copytree(faces.uri, tmp_path / "later")
    track([("dataset", str(tmp_path / "later"))])
    follower = Follower(instance)
    rest(faces.uri)
    rest(str(tmp_path / "later"))
    counts = []
    for _ in range(26):
        follower.follow(0.0)
        counts.append([name for name in ("faces", "later") if name in read])
    assert read[0] == "faces" and set(read) == {"faces", "later"}
    assert len(read) < 6, "an unfinished dataset is not read again for each event"
    assert counts == sorted(counts, key=len)
    follower.follow()
    assert {status for status, _ in statuses(instance).values()} == {"FRESH"}


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Groups whose files were listed."""
    groups: list[str] = []
    footers_until = Dataset.footers_until

    def note(
        dataset: Dataset, deadline: float, names: Sequence[str], known: dict[str, FooterTable]
    ) -> tuple[dict[str, FooterTable], bool]:
        groups.extend(names)
        return footers_until(dataset, deadline, names, known)

    monkeypatch.setattr(Dataset, "footers_until", note)
    return groups


def test_groups_without_a_change_are_not_listed(
    faces: Dataset, instance: dg.DagsterInstance, read: list[str], listed: list[str]
) -> None:
    follower = Follower(instance)
    rest(faces.uri)
    follower.follow()
    assert sorted(listed) == ["brightness", "doubled", "images"]
    rest(faces.uri)  # the indexes were written meanwhile
    follower.follow()
    listed.clear()
    os.utime(Path(faces.uri, "dataset.json"))
    follower.follow()
    assert (len(read), listed) == (3, [])
    Path(faces.uri, "doubled", "000001.parquet").unlink()
    follower.follow()
    assert "doubled" in listed and statuses(instance)["faces/doubled"][0] == "STALE"


def test_reading_that_begins_anew_reads_no_group_before_it_goes_on(faces: Dataset, listed: list[str]) -> None:
    snapshot = find_snapshot("faces")
    reading = StateReading(snapshot)
    assert reading.go_on(deadline=0.0) is None
    before, known = len(listed), set(listed)
    anew = StateReading(snapshot, reading.partial())
    assert known and known < set(snapshot.groups) and len(listed) == before
    assert anew.go_on() is not None and set(listed) == set(snapshot.groups)


def test_index_of_a_group_tells_changes_on_s3(
    faces: Dataset, s3: str, listed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = open_store(f"{s3}/ticks")
    for name in faces.store.walk():
        there.put(name, faces.store.read(name))
    track([("dataset", there.uri)])
    refresh()
    snapshot = find_snapshot(next(asset.name for asset in tracked_assets() if asset.address == there.uri))

    def look(before: DatasetState | None) -> tuple[DatasetState, set[str]]:
        listed.clear()
        state = dataset_state(snapshot, before)
        return state, set(listed)

    state, groups = look(None)
    assert groups == {"images", "brightness", "doubled"}
    state, _ = look(state.without_footers())  # it may have written indexes
    state, groups = look(state.without_footers())
    assert groups == set()
    there.delete("brightness/000001.parquet")  # by another program than ours
    assert look(state.without_footers())[1] == set()
    dataset = Dataset.open(there.uri)
    dataset.save_index("doubled", dataset.footers("doubled").without(["000002"]))
    assert look(state.without_footers())[1] >= {"doubled"}
    monkeypatch.setattr("pipelines.dashboard.dataset_state.REMOTE_SECONDS", 0.0)
    state, groups = look(state.without_footers())
    assert groups == {"images", "brightness", "doubled"} and state.totals("brightness").missing == 1


def test_dagster_is_asked_once_for_all_that_nobody_has_changed(
    faces: Dataset, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting, "MEMORY_SECONDS", 0.0)
    monkeypatch.setattr(following, "MEMORY_SECONDS", 0.0)
    asked: list[str | None] = []
    of = LatestTags.of

    def note(tags: LatestTags, partition: str | None) -> Any:
        asked.append(partition)
        return of(tags, partition)

    monkeypatch.setattr(LatestTags, "of", note)
    follower = Follower(instance)
    follower.follow()
    follower.follow()
    asked.clear()
    assert follower.follow() == [] and asked == []
    others = dg.AssetMaterialization(dg.AssetKey(["faces", "brightness"]), tags={DATA_VERSION: "by others"})
    instance.report_runless_asset_event(others)
    assert follower.follow() == ["faces: 1 changes"] and asked == [None]
    assert {status for status, _ in statuses(instance).values()} == {"FRESH"}
