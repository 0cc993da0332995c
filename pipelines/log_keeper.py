"""Keeping what a process and those it starts print in the job's folder too, also on S3, where nothing appends."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from labeling.storage import Store

PART = re.compile(r"[0-9]{6}\.txt")
PART_BYTES = 256_000
SECONDS = 2.0


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
    thread = threading.Thread(target=_copy, args=(reading, kept[0], store, number), daemon=True)
    thread.start()
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # The pipe ends when nobody holds it: processes left behind must not hold up the end, hence a limit.
        os.dup2(kept[0], 1)
        os.dup2(kept[1], 2)
        thread.join(timeout=10)


def _copy(reading: int, shown: int, store: Store, number: int) -> None:
    """Pass on to `shown`, and write parts of the log from `number` on; a part that grows is written again whole.

    Nothing here may raise: the job would stand still at a pipe that nobody reads.
    """
    part, written, at = b"", 0, time.monotonic()
    os.set_blocking(reading, False)
    while True:
        try:
            data = os.read(reading, 65536)
        except BlockingIOError:
            data = None
            time.sleep(0.1)
        if data:
            part += data
            with suppress(OSError):  # a terminal that went away
                os.write(shown, data)
        due = time.monotonic() - at > SECONDS or len(part) >= PART_BYTES or data == b""
        if due and len(part) > written:
            with suppress(Exception):  # written again with what comes; trouble with the place shows elsewhere
                store.put(f"log/{number:06d}.txt", part)
                written = len(part)
            at = time.monotonic()
            if len(part) >= PART_BYTES and written == len(part):
                number, part, written = number + 1, b"", 0
        if data == b"":
            return
