"""Decoders that crash, hang or take all memory: the file is rejected with its reason, and the next one is taken."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from picture_zoo.files import encode, scene

from labeling.sources.normalize import Rejected
from model.pixels.guard import Guard


def poisoned(**limits: float) -> Guard:
    return Guard(module="picture_zoo.poison", **limits)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"crash", "its decoder crashed (SIGSEGV)"),
        (b"abort", "its decoder crashed (SIGABRT)"),
        (b"exit", "its decoder crashed (exit 3)"),
        (b"compute", "too much computing"),
        (b"hang", "did not end in time"),
        (b"memory", "too much memory"),
    ],
)
def test_file_that_ends_the_decoder_is_rejected_and_decoding_goes_on(raw: bytes, reason: str) -> None:
    guard = poisoned(processes=1, seconds=3 if raw == b"hang" else 120, cpu_seconds=1, memory=2 << 30)
    with pytest.raises(Rejected) as rejection:
        guard.convert(raw, 10**6, 32)
    assert reason in str(rejection.value)
    image = guard.convert(encode(scene(), "BMP"), 10**6, 32)
    assert (image.width, image.height) == scene().size


def test_decoder_killed_from_outside_restarts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POISON_MARKER", str(tmp_path / "killed"))
    assert poisoned(processes=1).convert(b"once", 10**6, 32).encoded == b"fine"


def test_processes_that_were_ended_while_they_waited_are_no_files_fault() -> None:
    """As by Ray, which ends the children of a process that leaves it."""
    guard, picture = Guard(processes=2), encode(scene(), "BMP")
    others = set(psutil.Process().children())
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: guard.convert(picture, 10**6, 32), range(8)))
    own = set(psutil.Process().children()) - others
    for process in own:
        process.kill()
        os.waitpid(process.pid, 0)  # whoever ends them may also ask how they ended
    for _ in range(3):
        assert guard.convert(picture, 10**6, 32).width == scene().width


def test_several_threads_share_the_processes() -> None:
    guard, before = poisoned(processes=2), set(psutil.Process().children())
    files = [encode(scene(seed=seed), "BMP") for seed in range(12)] + [b"abort"] * 4

    def convert(raw: bytes) -> bytes:
        try:
            return guard.convert(raw, 10**6, 32).encoded
        except Rejected as error:
            return str(error).encode()

    with ThreadPoolExecutor(8) as pool:
        several = list(pool.map(convert, files))
    assert several == [convert(raw) for raw in files]
    assert len(set(psutil.Process().children()) - before) <= 2


def test_the_process_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    code = (
        "import os, psutil, sys; from picture_zoo.files import encode, scene;"
        "from labeling.sources.normalize import normalize;"
        "normalize(encode(scene(), 'BMP'), 10**6, 32);"
        "print(psutil.Process().children()[0].pid, flush=True); os._exit(0)"
    )
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr
    deadline = time.monotonic() + 120
    while psutil.pid_exists(int(done.stdout)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not psutil.pid_exists(int(done.stdout))
