"""What pods do before they are taken away, with real processes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from cluster.kubernetes.drain import drain

JOB = """
import signal, sys, time
def checkpoint(*_):
    time.sleep(0.3)
    open(sys.argv[-1], "w").write("checkpoint")
    sys.exit(75)
signal.signal(signal.SIGTERM, checkpoint)
open(sys.argv[-1] + ".started", "w")
time.sleep(60)
"""


@contextmanager
def process(*words: str, started: Path) -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen(words)
    try:
        while not started.exists():
            assert child.poll() is None
            time.sleep(0.02)
        yield child
    finally:
        child.kill()
        child.wait()


@pytest.fixture
def job(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A process whose command line is that of a job, which answers SIGTERM with a checkpoint."""
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "__main__.py").write_text(JOB)
    written = tmp_path / "written"
    words = ["env", "-C", str(tmp_path), sys.executable, "-P", "-m", "pipelines", "execute", str(written)]
    words[3:3] = [f"PYTHONPATH={tmp_path}"]
    with process(*words, started=tmp_path / "written.started") as child:
        yield child, written


@pytest.fixture(autouse=True)
def pod(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod has its processes to itself; here they are those that the test started, and not the others' jobs."""
    own = psutil.Process()
    before = {process.pid for process in own.children(recursive=True)}  # a Ray of other tests
    mine = lambda: [process for process in own.children(recursive=True) if process.pid not in before]  # noqa: E731
    monkeypatch.setattr(psutil, "process_iter", mine)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)  # that Ray, which is not to be drained


def test_head_waits_for_checkpoint(job: tuple[subprocess.Popen[bytes], Path]) -> None:
    child, written = job
    assert drain("head", 20)
    assert written.read_text() == "checkpoint" and child.wait() == 75


def test_head_stops_waiting_at_deadline(job: tuple[subprocess.Popen[bytes], Path]) -> None:
    child, written = job
    child.send_signal(signal.SIGSTOP)
    assert not drain("head", 0.5) and not written.exists()


def test_drain_outside_pod_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    command = [sys.executable, "-m", "cluster.kubernetes.drain", "head", "--seconds", "1"]
    refused = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert refused.returncode == 2 and "for pods alone" in refused.stderr
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    command[3:] = ["worker", "--seconds", "0"]  # which only looks: 1 where a Ray of other tests is at work
    assert subprocess.run(command, cwd=Path(__file__).parents[2]).returncode != 2


def test_head_without_job_does_not_wait() -> None:
    assert drain("head", 0)


@pytest.mark.parametrize(("name", "ended"), [("ray::TrainWorker", False), ("ray::IDLE", True)])
def test_worker_waits_for_its_tasks(name: str, ended: bool, tmp_path: Path) -> None:
    started = tmp_path / "started"
    script = f'touch "{started}"; exec -a "{name}" sleep 60'
    with process("bash", "-c", script, started=started) as child:
        while child.poll() is None and name not in Path(f"/proc/{child.pid}/cmdline").read_text():
            time.sleep(0.02)
        assert drain("worker", 1) == ended
