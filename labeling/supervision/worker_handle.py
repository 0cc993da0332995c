"""The parent's side of one worker process: started with a guard, spoken to, watched for hangs and memory, ended."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from labeling.supervision.messages import receive, send
from labeling.supervision.task_attempt import Mark

_TICK = 0.2  # seconds between looks at the mark and the memory
_LOOKS_AT_MEMORY_BELOW = 5.0  # seconds between looks at the processes that the worker has started
_ENDS_WITHIN = 30.0  # seconds for a guard to end what it guards
_STARTS = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from labeling.supervision.worker_main import main; main(sys.argv[2:])"
)
_LINES = 40  # of a worker's standard error that are kept
_LONGEST_LINE = 1000  # characters


class WorkerEnded(Exception):
    """The worker died, or was ended for hanging or for its memory.

    cause: in words for a row's reason. mark: what was under way. in_doubt: whether it may have happened to any row, as
    when the kernel ends a process because memory runs out, or earlier rows have left nothing of it.
    """

    def __init__(self, cause: str, mark: Mark, in_doubt: bool = False) -> None:
        super().__init__(cause)
        self.cause = cause
        self.mark = mark
        self.in_doubt = in_doubt


class Worker:
    """A worker process with a guard; not to be used by two threads at a time.

    The guard ends the worker and all that the worker has started when this object or this process ends, however it
    does. memory: bytes that the worker and its processes may hold together, 0 for no limit; bound_data: whether an
    allocation beyond it fails in the worker.
    """

    def __init__(self, factory: Callable[[], Any], memory: int = 0, bound_data: bool = True, name: str = "") -> None:
        self._memory = memory
        self._connection, theirs = socket.socketpair()
        lifeline, ours = os.pipe()
        status, status_writing = os.pipe()
        error, error_writing = os.pipe()
        self._marks = open(os.memfd_create("marks", 0), "rb", buffering=0)  # noqa: SIM115
        self._lifeline = open(ours, "wb", buffering=0)  # noqa: SIM115 (its end is the worker's)
        self._status = open(status, "rb", buffering=0)  # noqa: SIM115
        self._reports = b""
        self._process_below: tuple[float, list[int]] = (0.0, [])
        files = (theirs.fileno(), lifeline, status_writing, self._marks.fileno())
        try:
            self._launcher = subprocess.Popen(  # noqa: S603
                [sys.executable, "-P", "-c", _STARTS, json.dumps(sys.path), *map(str, files), name],
                stdin=subprocess.DEVNULL,
                stderr=error_writing,
                pass_fds=files,
                start_new_session=True,
            )
        finally:
            theirs.close()
            for file in (lifeline, status_writing, error_writing):
                os.close(file)
        self._error = _ErrorOutput(error)
        self._sending = threading.Lock()
        self._connection.settimeout(_ENDS_WITHIN)
        self.ask((memory if bound_data else 0, factory))

    def ask(self, value: Any) -> None:
        """Send a value to the worker; that the worker has ended shows when it is waited for.

        Raises what pickling the value raises.
        """
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, TimeoutError), self._sending:
            send(self._connection, value)

    def give(self, value: Any) -> None:
        """Send a value for a later task while the worker is busy; from another thread than the one that waits for it.

        Raises what pickling the value raises.
        """
        with contextlib.suppress(OSError), self._sending:
            send(self._connection, value, patient=True)

    @property
    def mark(self) -> Mark:
        """What is under way, or was when the worker ended."""
        return Mark.read(self._marks.fileno(), whole=True)

    @property
    def error_output(self) -> str:
        """The last lines of the worker's standard error."""
        return self._error.text

    def wait(self, seconds: float) -> Any:
        """The worker's next message. seconds: how long it may take while no row is marked.

        Raises WorkerEnded; the worker has been ended then, with everything that it has started.
        """
        last, since = Mark(), time.monotonic()
        while True:
            if _can_be_read(self._connection, _TICK):
                try:
                    return receive(self._connection)
                except (EOFError, OSError):
                    raise self._ended() from None
            mark = Mark.read(self._marks.fileno(), whole=False)
            if mark.number != last.number:
                last, since = mark, time.monotonic()
            limit = mark.timeout if mark.number % 2 else seconds
            if time.monotonic() - since > limit:
                raise self._end_for(f"no answer within {limit:g} s")
            if self._memory and self._held() > self._memory:
                raise self.end_for_memory()

    def end(self) -> int | None:
        """End the worker and everything that it has started; how it ended (as `os.wait` says it), None if untold."""
        how = self._stop()
        self._close()
        return how

    def _stop(self) -> int | None:
        """End the processes; the mark can still be read."""
        self._lifeline.close()
        deadline = time.monotonic() + _ENDS_WITHIN
        while (how := self._exit_status()) is None and _can_be_read(self._status, max(0, deadline - time.monotonic())):
            if not self._read_status():
                break
        try:
            self._launcher.wait(_ENDS_WITHIN if how is None else 5)
        except subprocess.TimeoutExpired:
            self._launcher.kill()
            self._launcher.wait()
        return how

    def _close(self) -> None:
        self._connection.close()
        self._status.close()
        self._error.close()
        self._marks.close()

    def end_for_memory(self) -> WorkerEnded:
        """End the worker because it has taken, or asked for, more memory than it may."""
        return self._end_for(f"more than {self._memory / 1e9:.1f} GB of memory", in_doubt=True)

    def _end_for(self, cause: str, in_doubt: bool = False) -> WorkerEnded:
        self._stop()
        mark = self.mark  # only now: a worker that runs may write it while it is read
        self._close()
        return WorkerEnded(cause, mark, in_doubt)

    def _ended(self) -> WorkerEnded:
        mark = self.mark
        how = self.end()
        if how is None or os.WIFSIGNALED(how):
            number = signal.SIGKILL if how is None else os.WTERMSIG(how)
            name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
            in_doubt = number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
            return WorkerEnded(f"the process died: {name}", mark, in_doubt)
        return WorkerEnded(f"the process died: exit code {os.WEXITSTATUS(how)}", mark)

    def _read_status(self) -> bool:
        data = self._status.read(4096)
        self._reports += data or b""
        return bool(data)

    def _exit_status(self) -> int | None:
        return next((int(line[6:]) for line in self._reports.splitlines() if line.startswith(b"ended ")), None)

    def _worker(self) -> int | None:
        if not self._reports and _can_be_read(self._status, 0):
            self._read_status()
        return next((int(line[7:]) for line in self._reports.splitlines() if line.startswith(b"worker ")), None)

    def _held(self) -> int:
        """Bytes of memory that are the worker's and its processes' own; the costly truth only where there are many."""
        worker = self._worker()
        if not worker:
            return 0
        looked, below = self._process_below
        if time.monotonic() - looked > _LOOKS_AT_MEMORY_BELOW:
            below = _processes_below(worker)
            self._process_below = time.monotonic(), below
        processes = [worker, *below]
        if sum(map(_resident, processes)) <= self._memory:
            return 0
        return sum(map(_own, processes))


class _ErrorOutput:
    """What a worker and its processes write to their standard error: passed on, but for the dump of a crash."""

    def __init__(self, file: int) -> None:
        self._lines: deque[str] = deque(maxlen=_LINES)
        self._thread = threading.Thread(target=self._read, args=(file,), daemon=True)
        self._thread.start()

    @property
    def text(self) -> str:
        return "".join(self._lines.copy())

    def close(self) -> None:
        """Wait for the last lines; the thread ends, and closes the file, when no process has it open any more."""
        self._thread.join(1)

    def _read(self, file: int) -> None:
        crashed = False
        with open(file, errors="replace") as stream:
            while line := stream.readline(_LONGEST_LINE):
                self._lines.append(line)
                crashed |= line.startswith("Fatal Python error")
                if not crashed:
                    with contextlib.suppress(Exception):  # whatever becomes of ours, a worker must not wait for it
                        sys.stderr.write(line)


def _can_be_read(file: Any, seconds: float) -> bool:
    """Whether a file, also one whose other end is closed, can be read within so many seconds."""
    poll = select.poll()  # select takes no file above 1023
    poll.register(file, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _processes_below(process: int) -> list[int]:
    import psutil

    try:
        return [child.pid for child in psutil.Process(process).children(recursive=True)]
    except psutil.Error:
        return []


def _resident(process: int) -> int:
    try:
        with open(f"/proc/{process}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _own(process: int) -> int:
    """Bytes of memory that no file backs; what processes share is divided among them."""
    try:
        with open(f"/proc/{process}/smaps_rollup") as file:
            sizes = {
                key: int(rest.split()[0]) for key, _, rest in (line.partition(":") for line in file) if "kB" in rest
            }
    except OSError:
        return 0
    return 1024 * (sizes.get("Pss_Anon", 0) + sizes.get("Pss_Shmem", 0))
