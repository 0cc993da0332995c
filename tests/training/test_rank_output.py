"""What each rank prints is in the run's folder, also what it printed last before a native abort."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from recorded_jobs import GONE, recorded
from typer.testing import CliRunner

from labeling.dataset import PAUSE_SECONDS, open_store, stored_lines
from model.inputs import WorkFailed
from pipelines.cli.app import app
from pipelines.jobs.attempt import AttemptState
from pipelines.jobs.resolved import resolve_job
from pipelines.jobs.specification import TrainJob
from pipelines.train import train
from training.config import load_config

RANK = """
import faulthandler, os, sys
from training.rank_output import captured_output

with captured_output(sys.argv[1], 3):
    print("a line of Python's")
    os.write(2, b"NCCL WARN a line of C's\\n")
    if sys.argv[2] == "raises":
        raise ValueError("of the code")
    faulthandler.enable()
    os.abort()
"""


@pytest.mark.parametrize("manner", ["raises", "aborts"])
def test_last_lines_outlive_the_rank_on_s3(s3: str, manner: str) -> None:
    run = f"{s3}/ranks-{manner}"
    done = subprocess.run([sys.executable, "-c", RANK, run, manner], capture_output=True, text=True)
    assert done.returncode == (1 if manner == "raises" else -signal.SIGABRT)
    deadline = time.monotonic() + 120
    while not (lines := list(stored_lines(open_store(run), "ranks/00003"))) and time.monotonic() < deadline:
        time.sleep(PAUSE_SECONDS / 10)
    assert "rank 3 on " in lines[0]
    assert {"a line of Python's", "NCCL WARN a line of C's"} <= set(lines)
    assert any("ValueError: of the code" in line or "Fatal Python error: Aborted" in line for line in lines)
    assert "NCCL WARN a line of C's" in done.stdout, "it goes where it went before, too"


def test_rank_that_aborts_leaves_its_last_lines(
    small_config: dict[str, Any], tmp_path: Path, ray_cluster: None
) -> None:
    """Rank 1 of two is aborted between two steps, as by NCCL's watchdog; Python's fault handler speaks last."""
    run = tmp_path / "run"
    workers = {"count": 2, "pack_tokens": 100, "max_failures": 0}
    config = load_config("debug", {**small_config, "steps": 10_000, "workers": workers})

    def abort() -> None:
        while not (run / "metrics.jsonl").exists():
            time.sleep(0.2)
        keepers = [one.info["cmdline"] for one in psutil.process_iter(["cmdline"]) if one.info["cmdline"]]
        (rank,) = (one[5] for one in keepers if one[1:5] == ["-m", "training.rank_output", str(run), "1"])
        os.kill(int(rank), signal.SIGABRT)

    threading.Thread(target=abort, daemon=True).start()
    with pytest.raises(WorkFailed, match=f"rank 1 died, `onediffusion logs {run} --rank 1` shows"):
        train(config, str(run))
    folder, deadline = run / "ranks" / "00001", time.monotonic() + 120
    while not folder.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    printed = CliRunner().invoke(app, ["logs", str(run), "--rank", "1"])
    assert printed.exit_code == 0, printed.exception
    assert "Fatal Python error: Aborted" in printed.stdout
    absent = CliRunner().invoke(app, ["logs", str(run), "--rank", "7"])
    assert "rank 7 has printed nothing; ranks that did: " in str(absent.exception)


def test_rank_of_a_job_is_followed_until_the_job_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`logs -f JOB --rank 3` from before the rank prints anything."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    run, now = tmp_path / "run", time.time()
    running = AttemptState(1, "running", "elsewhere", 7, now, now)
    job = resolve_job(TrainJob(kind="train", config="debug", run=str(run)))
    recorded(job, 1, GONE, running)
    command = [sys.executable, "-m", "pipelines", "logs", "-f", job.id, "--rank", "3"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as following:
        assert following.stdout
        subprocess.run([sys.executable, "-c", RANK, str(run), "aborts"], capture_output=True)
        lines = []
        for line in following.stdout:
            lines.append(line.rstrip())
            if line.startswith("Fatal Python error: Aborted"):
                job.folder.put_state(replace(running, phase="failed", reason="rank 3 died"))
        assert following.wait() == 0
    assert "NCCL WARN a line of C's" in lines and "rank 3 on " in lines[0], lines
