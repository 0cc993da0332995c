"""Keeping what a process and those it starts print in the job's folder too, also on S3, where nothing appends."""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from labeling.dataset import Store

PART = re.compile(r"[0-9]{6}\.txt")
PART_BYTES = 256_000
SECONDS = 2.0
LAST_TRIES = 5


@contextmanager
def kept_log(store: Store) -> Iterator[None]:
    """Copy standard output and error to STORE/log/, every few seconds, after what earlier attempts left there."""
    number = 1 + max((int(name[:6]) for name in store.files("log") if PART.fullmatch(name)), default=0)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    reading, writing = os.pipe()
    os.dup2(writing, 1)
    os.dup2(writing, 2)
    os.close(writing)
    log = _Log(store, number)
    copying = threading.Thread(target=_copy, args=(reading, kept[0], log), daemon=True)
    keeping = threading.Thread(target=log.keep, daemon=True)
    copying.start()
    keeping.start()
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(kept[0], 1)
        os.dup2(kept[1], 2)
        # The pipe ends when nobody holds it: processes left behind must not hold up the end for long.
        copying.join(timeout=SECONDS)
        log.over.set()
        keeping.join(timeout=10)


def _copy(reading: int, shown: int, log: _Log) -> None:
    """Pass on to `shown` and to the log, and wait for neither: a job stands still at a pipe that nobody reads."""
    while data := os.read(reading, 65536):
        log.add(data)
        with suppress(OSError):  # a terminal that went away
            os.write(shown, data)


class _Log:
    """Parts of a log, from a number on; one that grows is written again whole."""

    def __init__(self, store: Store, number: int) -> None:
        self.over = threading.Event()
        self._store, self._number = store, number
        self._part, self._written = bytearray(), 0
        self._lock = threading.Lock()

    def add(self, data: bytes) -> None:
        with self._lock:
            self._part += data

    def keep(self) -> None:
        """Write what came, every few seconds until it is over. Trouble with the place shows elsewhere."""
        while not self.over.wait(SECONDS):
            self._put()
        for _ in range(LAST_TRIES):
            if self._put():
                return

    def _put(self) -> bool:
        """Whether all is written that came."""
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
