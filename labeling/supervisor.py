"""Work on rows in a process of its own, which may crash, hang or take too much memory: one bad row costs one row.

    with Supervisor(make_work, memory_gb=8) as supervisor:
        result = supervisor.run(task)

`make_work()` runs in the child process and gives what is called there with each task, as `work(task, attempt)`; it
loads models, which stay loaded. `work` marks rows while a labeler holds them (`labeling.run` does). When the process
ends or does not answer, it is started again and `work` is called again with the same task and an attempt that knows
which rows were under way; those are tried alone, and a row with which the process ends again is given up for a reason.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from labeling.attempt import Attempt, Knowledge
from labeling.failures import DeviceError, Failure, ProcessError, WorkError
from labeling.worker import Worker, WorkerEnded
from model.inputs import InputError

Work = Callable[[Any, Attempt], Any]

LOAD_TIMEOUT = 3600.0  # seconds to make the work: weights may come over a network
READ_TIMEOUT = 1800.0  # seconds in which no row is marked, as while columns are read
ENDS_WITHOUT_ROW = 3  # processes in a row that may end while no row is under way
DEVICE_ENDS = 3  # processes that a device's error may end for the sake of a row
_SHARE = 0.8  # of a machine's memory that workers may hold together

_log = logging.getLogger(__name__)


def memory_share(processes: int) -> float:
    """GB that each of so many processes of a machine may hold where nobody says otherwise."""
    import psutil

    total = psutil.virtual_memory().total
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path("/sys/fs/cgroup", name).read_text()))
        except (OSError, ValueError):  # no such control group, or "max"
            continue
    return _SHARE * total / max(1, processes) / 1e9


class Supervisor:
    """A child process that keeps what it has loaded, and is started again when a task ends it.

    factory: picklable; makes the work in the child, where it is called once in each process. memory_gb: what the
    child and its own processes may hold; by default the share of one of `processes` of this machine (one a CPU).
    on_gpu: the child uses a GPU, whose driver reserves more memory than it takes. name: what a list of processes
    shows.
    """

    def __init__(
        self,
        factory: Callable[[], Work],
        memory_gb: float | None = None,
        processes: int | None = None,
        on_gpu: bool = False,
        load_timeout: float = LOAD_TIMEOUT,
        read_timeout: float = READ_TIMEOUT,
        name: str = "",
    ) -> None:
        self._factory = factory
        self._memory = int(1e9 * (memory_gb or memory_share(processes or os.cpu_count() or 1)))
        self._on_gpu = on_gpu
        self._load_timeout = load_timeout
        self._read_timeout = read_timeout
        self._name = name
        self._worker: Worker | None = None

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start the child and wait until the work is made; nothing to do where it is.

        Raises InputError and WorkError as the factory did, DeviceError where the device does not work, ProcessError
        where the process ends again and again.
        """
        for _ in range(ENDS_WITHOUT_ROW):
            if self._worker:
                return
            worker = self._worker = Worker(self._factory, self._memory, not self._on_gpu, self._name)
            try:
                self._answer(worker, self._load_timeout)
            except WorkerEnded as ended:
                self._worker = None
                cause = f"while labelers were loaded, {ended.cause}"
                _log.warning("%s%s\n%s", self._name, cause, worker.error_output)
            except BaseException:
                self.close()
                raise
        if not self._worker:
            raise ProcessError(f"{cause} ({ENDS_WITHOUT_ROW} times)")

    def run(self, task: Any) -> Any:
        """What the work makes of a task.

        Raises InputError and WorkError as the work did; DeviceError where the device does not work, so that the task
        is to be tried elsewhere; ProcessError where the process ends again and again for the sake of no row.
        """
        knowledge = Knowledge()
        ends_without_row = ends_without_label = 0
        while True:
            self.start()
            worker = self._worker
            assert worker is not None
            worker.ask((task, knowledge))
            try:
                return self._answer(worker, self._read_timeout, knowledge)
            except WorkerEnded as ended:
                self._worker = None
                mark = ended.mark
                _log.warning("%s%s: %s\n%s", mark.group, mark.rows, ended.cause, worker.error_output)
                if not mark.rows:
                    ends_without_row += 1
                    if ends_without_row >= ENDS_WITHOUT_ROW:
                        raise ProcessError(
                            f"while no row was labeled, {ended.cause} ({ends_without_row} times)"
                        ) from None
                    continue
                knowledge.ends.append((mark.group, mark.rows))
                needed = 3 if ended.from_outside else 2
                self._judge(knowledge, mark.group, mark.rows, needed, ended.cause)
            except DeviceError as error:
                mark = worker.mark
                self.close()
                _log.warning("%s%s: %s", mark.group, mark.rows, error)
                ends_without_label = 0 if mark.well else ends_without_label + 1
                if not mark.rows or ends_without_label >= DEVICE_ENDS:
                    raise
                knowledge.ends.append((mark.group, mark.rows))
                if mark.well:
                    self._judge(knowledge, mark.group, mark.rows, DEVICE_ENDS, str(error))
            except BaseException as error:
                if not isinstance(error, InputError | WorkError):
                    self.close()
                raise

    def _judge(self, knowledge: Knowledge, group: str, rows: tuple[str, ...], ends: int, cause: str) -> None:
        """Give up a row that was alone when its process ended, where that many processes ended with it."""
        if len(rows) == 1 and sum(group == ended and rows[0] in others for ended, others in knowledge.ends) >= ends:
            knowledge.failures[group, rows[0]] = Failure(cause)

    def _answer(self, worker: Worker, seconds: float, knowledge: Knowledge | None = None) -> Any:
        """The worker's answer; what it saves on the way goes to the knowledge."""
        while True:
            kind, value = worker.wait(seconds)
            if kind == "saved" and knowledge:
                knowledge.saved[value[0]] = value[1]
            elif kind == "input":
                raise InputError(value)
            elif kind == "device":
                raise DeviceError(value)
            elif kind == "raised":
                raise WorkError(*value)
            elif kind == "full":
                mark = worker.mark
                worker.end()
                raise WorkerEnded(f"more than {self._memory / 1e9:.1f} GB of memory", mark)
            else:
                return value

    def close(self) -> None:
        """End the child and everything that it has started."""
        worker, self._worker = self._worker, None
        if worker:
            worker.end()
