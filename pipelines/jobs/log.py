"""The log of a job: copied into its folder while an attempt runs, and read from there.

It is kept in parts (log/000001.txt …), since nothing appends to an object on S3.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from labeling.dataset import Store
from pipelines.jobs.attempt import Attempt
from pipelines.jobs.folder import JobFolder
from pipelines.jobs.status import backend_of, job_status

PART = re.compile(r"[0-9]{6}\.txt")
PART_BYTES = 256_000
PAUSE_SECONDS = 2.0  # between two writes of the log, and between two looks at it
LAST_TRIES = 5


def log_lines(attempt: Attempt, follow: bool = False, say: Callable[[str], None] = lambda line: None) -> Iterator[str]:
    """The log kept in the job's folder, of all attempts; where there is none yet, what the target kept of it.

    follow: until the job ends. say: is given the reason why the job waits, when that changes; these lines are not part
    of the log.
    """
    folder = JobFolder(attempt.address)
    last_reason = ""

    def over() -> bool:
        nonlocal last_reason
        last = folder.attempt() or attempt
        status = job_status(last)
        if status.phase == "pending" and status.reason != last_reason:
            last_reason = status.reason
            say(f"pending: {last_reason}")
        return not follow or not (status.alive or folder.control().attempt > last.number)

    if follow and not log_parts(folder.store):
        while not over() and not log_parts(folder.store):
            time.sleep(PAUSE_SECONDS)
    if log_parts(folder.store):
        yield from stored_lines(folder.store, over)
    else:
        yield from backend_of(attempt).logs(attempt.name)


def log_parts(store: Store) -> list[str]:
    """Names of the parts; other files in the folder are none."""
    return [name for name in store.files("log") if PART.fullmatch(name)]


def stored_lines(
    store: Store, over: Callable[[], bool] = lambda: True, seconds: float = PAUSE_SECONDS
) -> Iterator[str]:
    """Lines of the log; then, every few seconds, new ones, until `over` (asked before each last look)."""
    sizes_read: dict[str, int] = {}  # bytes of each part that were given out
    rest = b""
    while True:
        last = over()
        sizes = store.files("log")
        for name in filter(PART.fullmatch, sizes):
            if sizes[name].size > sizes_read.get(name, 0):
                content = store.read(f"log/{name}")
                rest += content[sizes_read.get(name, 0) :]
                sizes_read[name] = len(content)
        *lines, rest = rest.split(b"\n")
        yield from (line.decode(errors="replace") for line in lines)
        if last:
            break
        time.sleep(seconds)
    if rest:
        yield rest.decode(errors="replace")


@contextmanager
def captured_log(store: Store) -> Iterator[None]:
    """Copy standard output and error to STORE/log/, every few seconds, after what earlier attempts left there.

    This process's and those of the processes it starts.
    """
    number = 1 + max((int(name[:6]) for name in log_parts(store)), default=0)
    sys.stdout.flush()
    sys.stderr.flush()
    originals = [os.dup(1), os.dup(2)]
    reading, writing = os.pipe()
    os.dup2(writing, 1)
    os.dup2(writing, 2)
    os.close(writing)
    log = _Log(store, number)
    copying = threading.Thread(target=_copy, args=(reading, originals[0], log), daemon=True)
    writing_parts = threading.Thread(target=log.write_until_over, daemon=True)
    copying.start()
    writing_parts.start()
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(originals[0], 1)
        os.dup2(originals[1], 2)
        # The pipe ends when no process holds it; one that was left behind must not delay the end for long.
        copying.join(timeout=PAUSE_SECONDS)
        log.over.set()
        writing_parts.join(timeout=10)


def _copy(reading: int, shown: int, log: _Log) -> None:
    """Pass output on to `shown` and to the log without waiting for either: a full pipe would stop the job."""
    while data := os.read(reading, 65536):
        log.add(data)
        with suppress(OSError):  # a terminal that went away
            os.write(shown, data)


class _Log:
    """Parts of a log, from a number on. A part that grows is written again whole."""

    def __init__(self, store: Store, number: int) -> None:
        self.over = threading.Event()
        self._store, self._number = store, number
        self._part, self._written = bytearray(), 0
        self._lock = threading.Lock()

    def add(self, data: bytes) -> None:
        with self._lock:
            self._part += data

    def write_until_over(self) -> None:
        """Write what was added, every few seconds. An error of the storage shows in the job itself."""
        while not self.over.wait(PAUSE_SECONDS):
            self._put()
        for _ in range(LAST_TRIES):
            if self._put():
                return

    def _put(self) -> bool:
        """Whether everything that was added is written."""
        while True:
            with self._lock:
                part = bytes(self._part[:PART_BYTES])
            if len(part) == self._written:
                return True
            try:
                self._store.put(f"log/{self._number:06d}.txt", part)
            except Exception:
                return False
            self._written = len(part)
            if self._written == PART_BYTES:
                with self._lock:
                    del self._part[:PART_BYTES]
                self._number, self._written = self._number + 1, 0
