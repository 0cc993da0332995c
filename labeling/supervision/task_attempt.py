"""One try at a task: which rows are under way, and what is known of them from processes that ended.

Work that labels rows marks them while a labeler holds them. When its process dies or hangs, the supervisor
(`labeling.supervision.supervisor`) reads the mark, starts another process and calls the same work again with an attempt
that knows better. Work that runs in the caller's own process uses `Attempt()`, which knows nothing.
"""

from __future__ import annotations

import os
import pickle
import resource
import struct
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from labeling.failures import DeviceError, Failure

_RESERVED_BY_THREADS = 4 << 30  # bytes
TIMEOUT = 600.0  # seconds that a call may take where nobody says otherwise

# A mark: number (odd while rows are under way), its timeout in seconds, calls that ended well so far, and the length of
# the pickled (group, row ids) that follows.
HEADER = struct.Struct("<QdQQ")


class ProcessFullError(BaseException):
    """A process had no memory for a row, while it held much for no row: it must end, and the row is tried again."""


@dataclass
class Knowledge:
    """What the supervisor knows of a task from the processes that ended over it.

    ends: the (group, row ids) that were under way, once for each process. failures: by (group, row id), of rows that
    are given up. saved: by key, results of earlier attempts.
    """

    ends: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    failures: dict[tuple[str, str], Failure] = field(default_factory=dict)
    saved: dict[Hashable, Any] = field(default_factory=dict)
    device_ends: int = 0  # processes that a device's error has ended

    def suspicion(self, group: str, row: str) -> int:
        """How many processes ended in calls with a row."""
        return sum(group == ended and row in rows for ended, rows in self.ends)


class Attempt:
    """An attempt in the process of the caller: a crash ends the caller, and a hang hangs it."""

    def __init__(self, knowledge: Knowledge | None = None) -> None:
        self.knowledge = knowledge or Knowledge()
        self.caught: tuple[type[BaseException], ...] = (Exception, SystemExit)  # what is a row's failure

    @property
    def is_first(self) -> bool:
        """Whether no process has ended over this task."""
        return not self.knowledge.ends

    def mark(
        self, group: str, rows: Sequence[str], timeout: float = TIMEOUT, on_device: bool = False
    ) -> AbstractContextManager[None]:
        """While rows (ids) are under way in a call for a group, which may take `timeout` seconds.

        on_device: whether a call that ends well shows that the device works.
        """
        return nullcontext()

    def failure(self, group: str, row: str) -> Failure | None:
        """Why a row is given up: nothing may be called with it again."""
        return self.knowledge.failures.get((group, row))

    def ends(self, group: str, rows: Sequence[str]) -> int:
        """How many processes ended in a call with exactly these rows."""
        return self.knowledge.ends.count((group, tuple(rows)))

    def suspicion(self, group: str, row: str) -> int:
        """How many processes ended in calls with this row: where any did, it is to be tried alone."""
        return self.knowledge.suspicion(group, row)

    def keep(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` gives, kept for later attempts at the same task; the first attempt keeps nothing."""
        return make()

    def end_if_low_on_memory(self) -> None:
        """End a process that holds so much that a MemoryError may be for the sake of earlier rows."""


class SupervisedAttempt(Attempt):
    """An attempt in a process of its own; marks go into shared memory, which outlives the process."""

    def __init__(
        self, knowledge: Knowledge, marks: Marks, save: Callable[[Hashable, Any], None], limit: MemoryLimit
    ) -> None:
        super().__init__(knowledge)
        self.caught = (Exception, SystemExit, KeyboardInterrupt, GeneratorExit)
        self._marks = marks
        self._save = save
        self._limit = limit

    def mark(
        self, group: str, rows: Sequence[str], timeout: float = TIMEOUT, on_device: bool = False
    ) -> AbstractContextManager[None]:
        return _Mark(self._marks, group, tuple(rows), timeout, on_device)

    def keep(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if self.is_first:
            return make()
        if key not in self.knowledge.saved:
            value = make()
            self._save(key, value)
            return value
        return self.knowledge.saved[key]

    def end_if_low_on_memory(self) -> None:
        if self._limit.is_near():
            raise ProcessFullError


class Marks:
    """The shared memory with the mark of a process."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._number = 0
        self._well = 0

    def begin(self, group: str, rows: tuple[str, ...], timeout: float) -> None:
        """Rows are under way."""
        payload = pickle.dumps((group, rows))
        self._number += 1 + self._number % 2  # a device's error has left the mark before
        os.pwrite(self._file, HEADER.pack(self._number, timeout, self._well, len(payload)) + payload, 0)

    def end(self, well: bool) -> None:
        """No row is under way; `well`: the call shows that the device works."""
        self._number += 1
        self._well += well
        os.pwrite(self._file, HEADER.pack(self._number, 0.0, self._well, 0), 0)


@dataclass(frozen=True)
class Mark:
    """What a mark says: `number` changes with each; group and rows are empty where no row is under way."""

    number: int = 0
    timeout: float = 0.0
    well: int = 0
    group: str = ""
    rows: tuple[str, ...] = ()

    @classmethod
    def read(cls, file: int, whole: bool) -> Mark:
        """The mark in shared memory; without `whole`, not which rows are under way."""
        header = os.pread(file, HEADER.size, 0)
        if len(header) < HEADER.size:
            return cls()
        number, timeout, well, length = HEADER.unpack(header)
        if not whole or number % 2 == 0:
            return cls(number, timeout, well)
        group, rows = pickle.loads(os.pread(file, length, HEADER.size))  # noqa: S301 (of our own process)
        return cls(number, timeout, well, group, rows)


class _Mark(AbstractContextManager[None]):
    def __init__(self, marks: Marks, group: str, rows: tuple[str, ...], timeout: float, on_device: bool) -> None:
        self._marks = marks
        self._group = group
        self._rows = rows
        self._timeout = timeout
        self._on_device = on_device

    def __enter__(self) -> None:
        self._marks.begin(self._group, self._rows, self._timeout)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Errors that end the process leave the mark: the supervisor reads whose they were.
        if not isinstance(error, DeviceError | ProcessFullError):
            self._marks.end(well=self._on_device and error is None)


class MemoryLimit:
    """What this process may hold, in bytes: an allocation far beyond it raises MemoryError. 0 is no limit.

    The kernel's limit is on memory that is reserved, and threads reserve more than they use: about 1.6 GB with all
    labelers. So it is higher; the supervisor watches what is used.
    """

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._at_start = _data_bytes()
        if memory:
            hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
            resource.setrlimit(resource.RLIMIT_DATA, (memory + _RESERVED_BY_THREADS, hard))

    def is_near(self) -> bool:
        """Whether this process holds so much that a MemoryError may be due to rows that it labeled before."""
        return bool(self._memory) and _data_bytes() - self._at_start > self._memory // 2


def _data_bytes() -> int:
    """Bytes of data that this process has reserved."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[5]) * resource.getpagesize()
