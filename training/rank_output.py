"""What each rank of a run prints, kept in the run's folder: RUN/ranks/00003/000001.txt, while it runs.

A rank that dies of a native abort, as NCCL's watchdog and CUDA cause it, can write nothing more. So a process of its
own reads the rank's standard output and error from a pipe: it outlives the rank, writes what came last, and ends.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress

FOLDER = "ranks"
LAST_TRIES = 3
MOST_PARTS = 40  # of a quarter of a megabyte, the last ones
_FINISH_SECONDS = 5.0  # for the last lines to be written, at the end of a rank


def rank_folder(rank: int) -> str:
    """The folder of a rank's output, within a run's."""
    return f"{FOLDER}/{rank:05d}"


@contextmanager
def captured_output(run: str, rank: int) -> Iterator[None]:
    """Keep what this process and those that it starts print, stdout and stderr, in the run's folder. run: its address.

    It goes where it went before, too. An exception is printed before it is raised.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    originals = [os.dup(1), os.dup(2)]
    reading, writing = os.pipe()
    finished, finishing = os.pipe()
    subprocess.run(  # noqa: S603 - ourselves
        [sys.executable, "-m", "training.rank_output", run, str(rank), str(os.getpid()), str(finishing)],
        stdin=reading,
        pass_fds=(finishing,),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        check=True,
    )
    os.close(reading)
    os.close(finishing)
    os.dup2(writing, 1)
    os.dup2(writing, 2)
    os.close(writing)
    try:
        yield
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(originals[0], 1)
        os.dup2(originals[1], 2)
        # A process that the rank has left behind holds the pipe, and must not delay its end for long.
        select.select([finished], [], [], _FINISH_SECONDS)
        for number in (*originals, finished):
            os.close(number)


def keep(run: str, rank: int, process: int) -> None:
    """Pass standard input on to standard output, and keep it in the run's folder, until it ends."""
    keeper = _Keeper(
        run, rank, f"[{time.strftime('%F %T')}] rank {rank} on {socket.gethostname()}, process {process}\n"
    )
    while data := os.read(0, 65536):
        keeper.add(data)
        with suppress(OSError):
            os.write(1, data)
    keeper.finish()


class _Keeper:
    """Writes what is added in a thread, which starts with the first of it: most ranks print nothing."""

    def __init__(self, run: str, rank: int, head: str) -> None:
        self._run, self._rank = run, rank
        self._pending = bytearray(head.encode())
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, data: bytes) -> None:
        with self._lock:
            self._pending += data
        if self._thread is None:
            self._thread = threading.Thread(target=self._write)
            self._thread.start()

    def finish(self) -> None:
        self._over.set()
        if self._thread:
            self._thread.join()

    def _write(self) -> None:
        from labeling.dataset import PAUSE_SECONDS, GrowingText, open_store

        text = GrowingText(open_store(self._run), rank_folder(self._rank), MOST_PARTS)
        tries = LAST_TRIES
        while True:
            last = self._over.is_set()
            with self._lock:
                text.add(bytes(self._pending))
                self._pending.clear()
            written = text.put()
            if last and (written or tries == 0):
                return
            tries -= last
            self._over.wait(PAUSE_SECONDS)


def main() -> None:
    """What `captured_output` starts. It is nobody's child: Ray ends those of a worker that it ends."""
    run, rank, process, finishing = sys.argv[1:]
    if os.fork():
        os._exit(0)
    os.setsid()
    try:
        keep(run, int(rank), int(process))
    finally:
        os.close(int(finishing))


if __name__ == "__main__":
    main()
