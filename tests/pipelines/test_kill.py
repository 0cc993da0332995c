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
from label_kills import label_with_kills, shards

from labeling.dataset import Dataset
from pipelines.ingest import ingest
from pipelines.label import label

pytestmark = pytest.mark.long

SLOW = "simple_labelers:Patient"
NAMES = ["edges", "latents-96-edges", "simple_labelers:Gated"]  # what reads another label, and what a test can halt


def start(dataset: Path, gate: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pipelines", "label", str(dataset), *NAMES, "--set", f"gated.gate={gate}"]
    log = dataset.with_suffix(".log").open("ab")
    return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def labeled(dataset: Path) -> int:
    groups = ("edges/", "latents-96-edges/", "gated/")
    return sum(name.startswith(groups) for name in shards(dataset))


def kill_when(dataset: Path, gate: Path, moment: Callable[[], bool]) -> None:
    job = start(dataset, gate)
    deadline = time.monotonic() + 240
    while not (came := moment()) and job.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    children = psutil.Process(job.pid).children(recursive=True)
    # Ray's own agents outlive its daemon by a minute and touch nothing of ours.
    agents = [process for process in children if process.name().endswith("Agent")]
    job.send_signal(signal.SIGKILL)
    job.wait()
    _, working = psutil.wait_procs([process for process in children if process not in agents], timeout=240)
    for agent in agents:
        agent.kill()
    assert came, f"it did not come so far:\n{dataset.with_suffix('.log').read_text()}"
    assert not working, "what writes for the job must end with it"


def test_killed_label_gives_the_same_shards(tmp_path: Path, pictures: Path, ray_cluster: None) -> None:
    for name in ("cut.jpg", "notes.txt", "z-coffee-again.png"):  # their shards have no rows, and nothing to wait for
        (pictures / name).unlink()
    calm, killed, gate = tmp_path / "calm", tmp_path / "killed", tmp_path / "gate"
    ingest(str(pictures), str(calm), shard_rows=1)
    shutil.copytree(calm, killed)
    gate.write_text("1")  # by process, of which there is one a core

    kill_when(killed, gate, lambda: any((killed / "edges").glob("running-*.json")))
    assert labeled(killed) == 0
    kill_when(killed, gate, lambda: labeled(killed) >= len(NAMES))
    first = labeled(killed)
    kill_when(killed, gate, lambda: any(killed.glob("*/.[0-9]*.tmp")) or labeled(killed) > first)
    assert labeled(killed) < len(Dataset.open(killed).shards) * len(NAMES)

    gate.write_text("100")
    parameters = {"gated": {"gate": str(gate)}}
    label(str(calm), NAMES, parameters)
    result = label(str(killed), NAMES, parameters)
    assert shards(killed) == shards(calm)
    assert labeled(calm) == len(Dataset.open(calm).shards) * len(NAMES)
    assert not list(killed.rglob(".[0-9]*.tmp"))
    assert result.fresh.total() >= len(NAMES)
    before = {path: path.stat().st_mtime_ns for path in killed.rglob("[0-9]*.parquet")}
    assert not label(str(killed), NAMES, parameters).written.total()
    assert {path: path.stat().st_mtime_ns for path in killed.rglob("[0-9]*.parquet")} == before


def test_job_goes_on_when_any_of_its_processes_is_killed(tmp_path: Path, pictures: Path, ray_cluster: None) -> None:
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    ingest(str(pictures), str(calm), shard_rows=1)
    shutil.copytree(calm, killed)
    label(str(calm), [*NAMES[:2], SLOW])
    kinds = ["child", "actor", "writer", "coordinator"]
    assert label_with_kills(killed, [*NAMES[:2], SLOW], kinds, seed=0, pause=0.5).total() == len(kinds)
    assert shards(killed) == shards(calm)


@pytest.mark.usefixtures("ray_cluster")
def test_killed_ingest_continues(tmp_path: Path, pictures: Path) -> None:
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    ingest(str(pictures), str(calm), shard_rows=2)
    ingest(str(pictures), str(killed), shard_rows=2)
    # What a kill leaves: no dataset.json, some shards, a temporary file.
    (killed / "dataset.json").unlink()
    (killed / "images" / "000001.parquet").rename(killed / "images" / ".000001.parquet.tmp")
    modified = (killed / "images" / "000000.parquet").stat().st_mtime_ns
    ingest(str(pictures), str(killed), shard_rows=2)
    assert (killed / "images" / "000000.parquet").stat().st_mtime_ns == modified
    assert shards(killed) == shards(calm)
    assert (killed / "dataset.json").read_bytes() == (calm / "dataset.json").read_bytes()
