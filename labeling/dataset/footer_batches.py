"""Footers of very many shards, read in batches that become columns; by several processes where they are worth it.

A footer costs a tenth of a millisecond of Python on disk and two on S3, so one process would take minutes for 10⁵
shards, however many requests it has under way.
"""

from __future__ import annotations

import json
import os
import pickle
import queue
import subprocess
import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, suppress
from itertools import chain, islice
from types import TracebackType

from labeling.dataset.footers import FooterTable
from labeling.dataset.parallel import in_parallel
from labeling.dataset.shards import Footer, read_footer
from labeling.dataset.storage import Store

BATCH = 2048  # footers that are read before they become columns
MANY = 16 * BATCH  # footers, from which processes are started: each takes a second to begin
MOST_PROCESSES = 16
_STARTS = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from labeling.dataset.footer_batches import serve; serve()"
)

File = tuple[str, str, int | None]  # group, shard, and size in bytes if known
Tables = list[tuple[str, FooterTable]]  # by group


def read_batches(
    store: Store, files: Iterable[File], size: int = BATCH
) -> Generator[tuple[str, FooterTable], None, None]:
    """Tables of the footers of files, by group, of so many files at a time; without what is gone."""
    rest = iter(files)
    batches: Iterator[list[File]] = iter(lambda: list(islice(rest, size)), [])
    many = max(1, MANY // size)
    first = list(islice(batches, many))
    processes = len(os.sched_getaffinity(0))
    if len(first) < many or processes < 2:
        for batch in chain(first, batches):
            yield from _read(store, store.parallel, batch)
        return
    with ExitStack() as ending:
        free: queue.SimpleQueue[_Reader] = queue.SimpleQueue()
        for _ in range(min(processes, MOST_PROCESSES)):
            free.put(ending.enter_context(_Reader()))

        def read(batch: list[File]) -> Tables:
            reader = free.get()
            at_once = max(1, store.parallel // processes)
            try:
                return reader.read(store, at_once, batch)
            except (EOFError, BrokenPipeError):  # it was killed, as when memory runs out
                return _read(store, at_once, batch)
            finally:
                free.put(reader)

        for tables in in_parallel(read, chain(first, batches), min(processes, MOST_PROCESSES)):
            yield from tables


def _read(store: Store, at_once: int, batch: list[File]) -> Tables:
    def read(one: File) -> Footer | None:
        try:
            return read_footer(store, *one)
        except FileNotFoundError:  # deleted since it was listed
            return None

    by_group: dict[str, dict[str, Footer]] = {}
    for (group, shard, _), footer in zip(batch, in_parallel(read, batch, at_once), strict=True):
        if footer:
            by_group.setdefault(group, {})[shard] = footer
    return [(group, FooterTable.of(footers)) for group, footers in by_group.items()]


class _Reader:
    """A process that reads batches. It imports nothing of the program that runs here, and ends with it."""

    def __enter__(self) -> _Reader:
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-P", "-c", _STARTS, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        with suppress(OSError):
            self._process.communicate()

    def read(self, store: Store, at_once: int, batch: list[File]) -> Tables:
        """See `_read`, raises what it raises."""
        sending, receiving = self._process.stdin, self._process.stdout
        assert sending and receiving
        pickle.dump((store, at_once, batch), sending)
        sending.flush()
        found: Tables | Exception = pickle.load(receiving)  # noqa: S301 (of our own process)
        if isinstance(found, Exception):
            raise found
        return found


def serve() -> None:
    """Read the batches that come from standard input, until there are no more."""
    with suppress(EOFError, BrokenPipeError):
        while True:
            task = pickle.load(sys.stdin.buffer)  # noqa: S301 (of our own process)
            try:
                found: Tables | Exception = _read(*task)
            except Exception as error:
                found = error
            pickle.dump(found, sys.stdout.buffer)
            sys.stdout.buffer.flush()
