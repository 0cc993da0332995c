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

from labeling.failures import LONGEST_REASON, DeviceError, Failure, ProcessError, WorkError
from labeling.supervision.messages import Ahead
from labeling.supervision.task_attempt import Attempt, Knowledge, Mark
from labeling.supervision.worker_handle import Worker, WorkerEnded
from model.inputs import InputError, one_line

Work = Callable[[Any, Attempt], Any]

LOAD_TIMEOUT = 3600.0  # seconds to make the work: weights may come over a network
READ_TIMEOUT = 3600.0  # seconds in which no row is marked, as while columns are read or a labeler is loaded late
ENDS_WITHOUT_ROW = 3  # processes in a row that may end while no row is under way
ENDS = 2  # processes that end with a row, alone in the last of them: it is the row's doing
DOUBTFUL_ENDS = 3  # the same where earlier rows or other processes may have to do with it
DEVICE_ENDS = 3  # the same for errors of a device that works for other rows
_SHARE = 0.8  # of a machine's memory that workers may hold together
_LEAST_MEMORY = 4e9  # bytes for each, which few of them need at a time: all labelers take 0.8 GB between rows

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
    return min(_SHARE * total, max(_LEAST_MEMORY, _SHARE * total / max(1, processes))) / 1e9


class Supervisor:
    """A child process that keeps what it has loaded, and is started again when a task ends it.

    factory: picklable; makes the work in the child, where it is called once in each process. memory_gb: what the
    child and its own processes may hold; by default the share of one of `processes` of this machine (one a CPU; with a
    GPU, eight).
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
        self._memory = int(1e9 * (memory_gb or memory_share(processes or (8 if on_gpu else os.cpu_count() or 1))))
        self._on_gpu = on_gpu
        self._load_timeout = load_timeout
        self._read_timeout = read_timeout
        self._name = name
        self._worker: Worker | None = None
        self._worked: Any = None  # the last task that went well on a GPU
        self._given: Worker | None = None  # the child that has what the next task needs

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
        causes: list[str] = []
        while not self._worker:
            worker = self._worker = Worker(self._factory, self._memory, not self._on_gpu, self._name)
            try:
                self._answer(worker, self._load_timeout)
            except WorkerEnded as ended:
                causes.append(self._ended_without_row("labelers were loaded", worker, ended))
                if len(causes) >= ENDS_WITHOUT_ROW:
                    raise ProcessError(f"{causes[-1]} ({ENDS_WITHOUT_ROW} times)") from None
            except BaseException:
                self.close()
                raise

    def ahead(self, value: Any) -> None:
        """Give the child what the next task needs while it is at one: `work.ahead(value)` is called beside the work.

        To be called from another thread than `run`. Where there is no child, nothing is given.
        """
        worker = self._worker
        if worker is not None:
            worker.give(Ahead(value))
            self._given = worker

    def run(self, task: Any, short: Any = None) -> Any:
        """What the work makes of a task.

        short: the same task without what `ahead` has given; a child that has not got it is asked to do the whole task.
        Raises InputError and WorkError as the work did; DeviceError where the device does not work, so that the task
        is to be tried elsewhere; ProcessError where the process ends again and again for the sake of no row.
        """
        knowledge = Knowledge()
        without_row = without_label = 0  # processes that ended while no row was marked, or before a call ended well
        try:
            while True:
                self.start()
                worker = self._worker
                assert worker is not None
                try:
                    if knowledge.device_ends and self._worked is not None:
                        self._check_device(worker)
                    well = worker.mark.well
                    is_there = short is not None and self._given is worker
                    result = self._ask(worker, short if is_there else task, knowledge)
                except WorkerEnded as ended:
                    if ended.mark.rows:
                        self._note(knowledge, worker, ended.mark, ended.cause)
                        self._judge(knowledge, ended.mark, DOUBTFUL_ENDS if ended.in_doubt else ENDS, ended.cause)
                        continue
                    without_row += 1
                    cause = self._ended_without_row("no row was labeled", worker, ended)
                    if without_row >= ENDS_WITHOUT_ROW:
                        raise ProcessError(f"{cause} ({ENDS_WITHOUT_ROW} times)") from None
                except DeviceError as error:
                    mark = worker.mark
                    self.close()
                    without_label = 0 if mark.well else without_label + 1
                    if not mark.rows or without_label >= ENDS_WITHOUT_ROW:
                        raise
                    self._note(knowledge, worker, mark, str(error))
                    knowledge.device_ends += 1
                    if mark.well:
                        self._judge(knowledge, mark, DEVICE_ENDS, str(error))
                else:
                    if self._on_gpu and worker.mark.well > well:
                        self._worked = task
                    return result
        except (InputError, WorkError):
            raise
        except BaseException:  # as KeyboardInterrupt, after which nobody reads the child's answer
            self.close()
            raise

    def _check_device(self, worker: Worker) -> None:
        """Repeat what went well before, which shows whether the device works for other rows. Raises DeviceError."""
        try:
            self._ask(worker, self._worked, Knowledge())
        except WorkerEnded as ended:
            self._worker = None
            raise DeviceError(f"rows that it labeled before: {ended.cause}") from None

    def _ask(self, worker: Worker, task: Any, knowledge: Knowledge) -> Any:
        worker.ask((task, knowledge))
        return self._answer(worker, self._read_timeout, knowledge)

    def _answer(self, worker: Worker, seconds: float, knowledge: Knowledge | None = None) -> Any:
        """The worker's answer; what it saves on the way goes to the knowledge."""
        while True:
            kind, value = worker.wait(seconds)
            if kind == "saved":
                assert knowledge is not None
                knowledge.saved[value[0]] = value[1]
            elif kind == "input":
                raise InputError(value)
            elif kind == "device":
                raise DeviceError(value)
            elif kind == "raised":
                _log.warning("%s", value[1])
                raise WorkError(*value)
            elif kind == "full":
                raise worker.end_for_memory()
            else:
                return value

    def _ended_without_row(self, during: str, worker: Worker, ended: WorkerEnded) -> str:
        self._worker = None
        remedy = "; give it more (memory_gb)" if "of memory" in ended.cause else ""
        cause = f"{self._name or 'labeling'}: while {during}, {ended.cause}{remedy}"
        _log.warning("%s\n%s", cause, worker.error_output)
        return cause

    def _note(self, knowledge: Knowledge, worker: Worker, mark: Mark, cause: str) -> None:
        """Note with which rows a process ended."""
        self._worker = None
        knowledge.ends.append((mark.group, mark.rows))
        shown = ", ".join(mark.rows[:3]) + (f" and {len(mark.rows) - 3} more" if len(mark.rows) > 3 else "")
        _log.warning("%s %s: %s\n%s", mark.group, shown, cause, worker.error_output)

    def _judge(self, knowledge: Knowledge, mark: Mark, ends: int, cause: str) -> None:
        """Give up a row that was alone when its process ended, where that many processes ended with it."""
        if len(mark.rows) == 1 and knowledge.suspicion(mark.group, mark.rows[0]) >= ends:
            knowledge.failures[mark.group, mark.rows[0]] = Failure(one_line(cause, LONGEST_REASON))

    def close(self) -> None:
        """End the child and everything that it has started."""
        worker, self._worker = self._worker, None
        if worker:
            worker.end()
