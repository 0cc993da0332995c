"""Attempts that end by a signal, or because a later attempt was recorded, whatever they are doing."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from recorded_jobs import GONE, LOCAL, recorded

from pipelines.jobs.attempt import AttemptState
from pipelines.jobs.folder import JobFolder
from pipelines.jobs.resolved import ResolvedJob


@pytest.fixture(autouse=True)
def own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


WAITS_FOR_RAY = """
import ray
ray.init(address="auto", logging_level="ERROR", log_to_driver=False)
class Never:
    def __init__(self): time.sleep(600)
def run(job, own):
    actor = ray.remote(num_cpus=0)(Never).remote()
    threading.Timer(2, print, ["begun"], {"flush": True}).start()
    ray.get(actor.__ray_ready__.remote())
"""
CLEARS_AWAY = """
class Cleared:
    def __del__(self):
        print("begun", flush=True)
        time.sleep(5)
def run(job, own):
    Cleared()
    time.sleep(600)
"""


BEGINS_ITS_LOG = """
import os, signal
from contextlib import contextmanager
@contextmanager
def captured_log(store):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.1)
    print("signaled", flush=True)
    yield
import pipelines.jobs.run
pipelines.jobs.run.captured_log = captured_log
def run(job, own):
    time.sleep(600)
"""


@pytest.mark.parametrize("run", [WAITS_FOR_RAY, CLEARS_AWAY, BEGINS_ITS_LOG], ids=["Ray", "finalizer", "log"])
def test_signal_interrupts_attempt_anywhere(run: str, job: ResolvedJob, shared_ray: None) -> None:
    """Python drops exceptions raised in a finalizer, and Ray all but KeyboardInterrupt while it waits."""
    attempt = recorded(job, 1, LOCAL)
    ends = "import pipelines.jobs.run as execute\nexecute.run_job = run\nsys.exit(execute.execute(sys.argv[1], 1))\n"
    command = [sys.executable, "-c", f"import sys, threading, time\n{run}{ends}", attempt.address]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process:
        line = process.stdout.readline()
        assert line in ("begun\n", "signaled\n")
        if line == "begun\n":
            process.terminate()
        try:
            assert process.wait(timeout=240) == 75
        finally:
            process.kill()
    state = JobFolder(attempt.address).state()
    assert state and state.phase == "interrupted", state


def test_superseded_attempt_keeps_state_of_later_one(tmp_path: Path, job: ResolvedJob) -> None:
    """As when it was taken for dead: its own end must not be recorded as that of the later attempt."""
    later = AttemptState(2, "running", "elsewhere", 7, time.time(), time.time())
    attempt = recorded(job, 2, GONE, later)
    script = (
        "import sys, time\n"
        "import pipelines.jobs.run as execute\n"
        "import pipelines.jobs.running as running\n"
        "from pipelines.jobs.folder import JobFolder\n"
        "running.CONTROL_SECONDS = 0.2\n"
        "folder = JobFolder(sys.argv[1])\n"
        "execute.run_job = lambda job, own: time.sleep(600)\n"
        "with running.RunningAttempt(folder, 1) as own:\n"
        "    outcome = execute._outcome(None, own)\n"
        "    own.end(outcome.phase, outcome.reason)\n"
        "print('ended')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, attempt.address], capture_output=True, text=True, timeout=240
    )
    assert result.stdout.splitlines()[-1] == "ended", result.stderr
    assert JobFolder(attempt.address).state() == later
