"""Pictures of asset pages: which are kept, and curves that follow a run."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import dagster as dg
from dashboard_assets import declare, last_event

from labeling.dataset import Dataset
from pipelines.dashboard.charts import live_curves
from pipelines.dashboard.follower import Follower
from pipelines.dashboard.picture_files import drop_old_pictures, keep_picture, picture_folder
from pipelines.dashboard.reporting import shown_pictures
from pipelines.label import label


def test_oldest_pictures_are_dropped_first(own_data: None) -> None:
    names = [keep_picture(bytes([number]) * 1000, "jpg") for number in range(3)]
    for number, name in enumerate(names):
        os.utime(picture_folder() / name.rsplit("/", 1)[1], (number, number))
    drop_old_pictures(max_bytes=1500)
    assert [f"/pictures/{path.name}" for path in picture_folder().iterdir()] == names[2:]


def test_pictures_of_newest_events_are_kept(faces: Dataset, instance: dg.DagsterInstance) -> None:
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
    drop_old_pictures(shown, max_bytes=sum((picture_folder() / name).stat().st_size for name in shown))
    assert {path.name for path in picture_folder().iterdir()} == shown


def test_live_curves_read_metrics_only_when_they_change_and_no_manifest(own_data: None, tmp_path: Path) -> None:
    (tmp_path / "manifest.arrow").mkdir()  # it names every shard of every dataset, so reading it takes its time
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps({"step": step, "loss": 1.0 / step}) + "\n" for step in (1, 2, 3)))
    assert b"step 3, loss" in live_curves(str(tmp_path))
    before = metrics.stat()
    metrics.write_text(metrics.read_text().replace('"step": 3', '"step": 4'))
    os.utime(metrics, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert b"step 3, loss" in live_curves(str(tmp_path)), "what is listed as before is not read again"
    os.utime(metrics)
    assert b"step 4, loss" in live_curves(str(tmp_path))
