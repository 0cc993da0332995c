"""Kills of a labeling job's processes at random moments, until it has done its work all the same."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
from process_tree import below, wait_for_end

KINDS = ("child", "actor", "writer", "coordinator", "driver", "raylet")
SURVIVED = KINDS[:4]  # the job goes on by itself
PATIENCE = 240.0  # seconds that a job may take


def shards(dataset: Path) -> dict[str, bytes]:
    """Name → content of every shard of a dataset."""
    return {str(path.relative_to(dataset)): path.read_bytes() for path in sorted(dataset.glob("*/[0-9]*.parquet"))}


def label_with_kills(
    dataset: Path, names: Sequence[str], kinds: Sequence[str], seed: int, pause: float = 3.0
) -> Counter[str]:
    """Label a dataset to the end, and kill a process of each of the kinds on the way, in order.

    pause: seconds up to which a kill waits, at random. After a kill that ends the job, it is run again. Returns the
    kills that were done; what a job ended before is not among them.
    """
    draw, waiting, done = random.Random(seed), list(kinds), Counter[str]()
    log = dataset.with_suffix(".log")
    for _ in range(len(kinds) + 2):
        with log.open("ab") as output:
            command = [sys.executable, "-m", "pipelines", "label", str(dataset), *names]
            job = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        deadline = time.monotonic() + PATIENCE
        fatal = False
        while job.poll() is None:
            assert time.monotonic() < deadline, f"it hangs:\n{log.read_text()}"
            if not waiting or fatal:
                time.sleep(0.1)
            elif victim := _find(job.pid, waiting[0]):
                time.sleep(draw.uniform(0, pause))
                if victim.is_running() and job.poll() is None:
                    kind = waiting.pop(0)
                    fatal = kind not in SURVIVED
                    children = below(job.pid)
                    with suppress(psutil.NoSuchProcess):
                        victim.send_signal(signal.SIGKILL)
                    done[kind] += 1
                    if kind == "driver":
                        wait_for_end(job, children)
            else:
                time.sleep(0.1)
        if job.returncode == 0 and not fatal:
            return done
        assert fatal, f"exit code {job.returncode}:\n{log.read_text()}"
    raise AssertionError(f"it came to no end:\n{log.read_text()}")


def _find(job: int, kind: str) -> psutil.Process | None:
    """A process of a kind, once the job is under way."""
    if kind == "driver":
        return psutil.Process(job) if _find(job, "writer") else None
    signs: dict[str, Callable[[psutil.Process, str], bool]] = {
        "child": lambda process, line: (
            "supervision.worker_main" in line and "supervision.worker_main" in " ".join(process.parent().cmdline())
        ),
        "actor": lambda process, line: line.startswith("ray::") and "LabelProcess" in line,
        "writer": lambda process, line: line.startswith("ray::ShardWriter"),
        "coordinator": lambda process, line: line.startswith("ray::Coordinator"),
        "raylet": lambda process, line: process.name() == "raylet" and bool(_find(job, "writer")),
    }
    for process in below(job):
        with suppress(psutil.NoSuchProcess, AttributeError):
            if signs[kind](process, " ".join(process.cmdline())):
                return process
    return None
