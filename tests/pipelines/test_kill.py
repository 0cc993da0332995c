"""A label job killed at any moment and run again gives the shards of an undisturbed run, byte for byte."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from labeling.shards import Dataset
from pipelines.ingest import ingest

NAMES = ["boxes", "segmentation", "edges", "latents-96-edges"]  # what reads another label, and what stands alone


def start(dataset: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pipelines", "label", str(dataset), *NAMES]
    log = dataset.with_suffix(".log").open("ab")
    return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def shards(dataset: Path) -> dict[str, bytes]:
    return {str(path.relative_to(dataset)): path.read_bytes() for path in sorted(dataset.glob("*/[0-9]*.parquet"))}


def labelled(dataset: Path) -> int:
    return sum(not name.startswith(("images", "rejected")) for name in shards(dataset))


def kill_when(dataset: Path, moment: Callable[[], bool]) -> None:
    job = start(dataset)
    deadline = time.monotonic() + 240
    while not moment():
        assert job.poll() is None, (
            f"the job ended before it could be killed:\n{dataset.with_suffix('.log').read_text()}"
        )
        assert time.monotonic() < deadline
        time.sleep(0.02)
    children = psutil.Process(job.pid).children(recursive=True)
    job.send_signal(signal.SIGKILL)
    job.wait()
    _, alive = psutil.wait_procs(children, timeout=15)
    agents = [process for process in alive if process.name().endswith("Agent")]
    for agent in agents:  # Ray's own, which outlive its daemon for a while and touch nothing of ours
        agent.kill()
    _, working = psutil.wait_procs([process for process in alive if process not in agents], timeout=60)
    assert not working, "what writes for the job must end with it"


def test_killed_at_several_moments(tmp_path: Path, pictures: Path, ray_cluster: None) -> None:
    calm = tmp_path / "calm"
    ingest(str(pictures), str(calm), shard_rows=3)
    count = len(Dataset.open(calm).shards) * len(NAMES)
    killed = tmp_path / "killed"
    shutil.copytree(calm, killed)
    assert start(calm).wait() == 0, calm.with_suffix(".log").read_text()
    assert labelled(calm) == count

    kill_when(killed, lambda: (killed / "boxes" / "running.json").exists())
    assert labelled(killed) == 0
    kill_when(killed, lambda: any(killed.glob("*/.*.tmp")) or labelled(killed) > 0)
    some = labelled(killed)
    started = time.monotonic()
    kill_when(killed, lambda: time.monotonic() - started > 6)  # while its processes start, some shards done already
    assert labelled(killed) >= some

    assert start(killed).wait() == 0, killed.with_suffix(".log").read_text()
    assert shards(killed) == shards(calm)
    assert not list(killed.rglob("*.tmp"))
    before = {path: path.stat().st_mtime_ns for path in killed.rglob("[0-9]*.parquet")}
    assert start(killed).wait() == 0
    assert {path: path.stat().st_mtime_ns for path in killed.rglob("[0-9]*.parquet")} == before


@pytest.mark.usefixtures("ray_cluster")
def test_a_killed_ingest_continues(tmp_path: Path, pictures: Path) -> None:
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    ingest(str(pictures), str(calm), shard_rows=2)
    ingest(str(pictures), str(killed), shard_rows=2)
    # What a kill leaves: no dataset.json, some shards, a temporary file.
    (killed / "dataset.json").unlink()
    (killed / "images" / "000001.parquet").rename(killed / "images" / ".000001.parquet.tmp")
    kept = (killed / "images" / "000000.parquet").stat().st_mtime_ns
    ingest(str(pictures), str(killed), shard_rows=2)
    assert (killed / "images" / "000000.parquet").stat().st_mtime_ns == kept
    assert shards(killed) == shards(calm)
    assert (killed / "dataset.json").read_bytes() == (calm / "dataset.json").read_bytes()
