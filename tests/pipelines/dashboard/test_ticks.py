"""What a tick reads: what may have changed, the longest unread first, and no more than fits into its time."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import dagster as dg
import pytest
from dashboard_assets import declare, statuses

from labeling.dataset import Dataset
from pipelines.dashboard import changes
from pipelines.dashboard import follower as following
from pipelines.dashboard.changes import fingerprint
from pipelines.dashboard.dataset_state import DatasetState, dataset_state
from pipelines.dashboard.follower import Follower
from pipelines.dashboard.snapshots import Snapshot
from pipelines.dashboard.tracked_assets import track


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the datasets whose shards were listed, in order."""
    names: list[str] = []
    monkeypatch.setattr(changes, "UNSURE_SECONDS", 1800.0)  # however long a busy machine takes to a first reading

    def note(snapshot: Snapshot, before: DatasetState | None = None) -> DatasetState:
        names.append(snapshot.tracked.name)
        return dataset_state(snapshot, before)

    monkeypatch.setattr(following, "dataset_state", note)
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
    for _ in range(12):
        follower.follow(0.0)
        counts.append([name for name in ("faces", "later") if name in read])
    assert read[0] == "faces" and set(read) == {"faces", "later"}
    assert len(read) < 6, "an unfinished dataset is not read again for each event"
    assert counts == sorted(counts, key=len)
    follower.follow()
    assert {status for status, _ in statuses(instance).values()} == {"FRESH"}
