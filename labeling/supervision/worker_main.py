"""The processes below a supervisor (`labeling.supervision.supervisor`): a guard, and the worker that it watches.

`main` imports nothing heavy before it forks. The guard ends the worker with everything that the worker has started when
the supervisor goes or asks for it, and tells how the worker ended. The worker does what the supervisor sends.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_KILL_SECONDS = 10.0  # a process that the kernel holds does not end before that


def main(arguments: list[str]) -> None:
    """Start a guard and a worker. arguments: files of the connection, lifeline, status and marks, see `worker`.

    This process itself only waits: Ray ends the children of a process that it ends, and must not find the guard.
    """
    connection, lifeline, status, marks = map(int, arguments[:4])
    libc = ctypes.CDLL(None, use_errno=True)
    if guard := os.fork():
        for file in (connection, lifeline, status, marks):
            os.close(file)
        os.waitpid(guard, 0)
        os._exit(0)
    wake = _wake_by_children()
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # what the worker's own processes leave behind comes to the guard
    guard = os.getpid()
    worker = os.fork()
    if worker:
        os.close(connection)
        _guard(worker, lifeline, status, wake)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != guard:
        os._exit(1)
    for file in (lifeline, status, *wake):
        os.close(file)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _work(socket.socket(fileno=connection), marks)


def _wake_by_children() -> tuple[int, int]:
    """A pipe that can be read when a child has ended."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    os.set_blocking(reading, False)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    return reading, writing


def _guard(worker: int, lifeline: int, status: int, wake: tuple[int, int]) -> None:
    """Wait for the worker's end or the supervisor's, end all processes, tell how the worker ended, and exit."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    launcher = os.getppid()
    _tell(status, f"worker {worker}\n")
    poll = select.poll()
    poll.register(lifeline, select.POLLIN)
    poll.register(wake[0], select.POLLIN)
    ended: dict[int, int] = {}
    while worker not in ended and os.getppid() == launcher:
        ready = {file for file, _ in poll.poll(5000)}
        if lifeline in ready:
            break
        if wake[0] in ready:
            os.read(wake[0], 4096)
        _reap(ended)
    deadline = time.monotonic() + _KILL_SECONDS
    while _reap(ended) and time.monotonic() < deadline:
        for process in _descendants(os.getpid()):
            _kill(process)
        time.sleep(0.005)
    _tell(status, f"ended {ended.get(worker, signal.SIGKILL)}\n")
    os._exit(0)


def _reap(ended: dict[int, int]) -> bool:
    """Note how children ended; whether there are others."""
    try:
        while (child := os.waitpid(-1, os.WNOHANG))[0]:
            ended[child[0]] = child[1]
    except ChildProcessError:
        return False
    return True


def _descendants(process: int) -> list[int]:
    """Processes that a process has started, and those that they have."""
    parents: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    parent = int(file.read().rpartition(b")")[2].split()[1])
            except OSError:
                continue
            parents.setdefault(parent, []).append(int(name))
    below = parents.get(process, [])
    for child in below:
        below.extend(parents.get(child, []))
    return below


def _kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def _tell(status: int, text: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(status, text.encode())


def _work(connection: socket.socket, marks_file: int) -> None:
    """Make the work and do what the supervisor sends, to the end of the process."""
    import faulthandler

    from labeling.failures import is_memory_error
    from labeling.supervision.messages import receive, send
    from labeling.supervision.task_attempt import Marks, MemoryLimit

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    memory, factory = receive(connection)
    _come_first_when_memory_runs_out()
    limit = MemoryLimit(memory)
    try:
        work = factory()
    except BaseException as error:
        if is_memory_error(error):
            send(connection, ("full", None))
        else:
            _raised(connection, error)
        _exit(1)
    send(connection, ("ready", None))
    marks = Marks(marks_file)
    messages = _messages_beside(connection, work.ahead) if hasattr(work, "ahead") else None
    while True:
        try:
            message = receive(connection) if messages is None else messages.get()
        except (EOFError, OSError):
            _exit(0)
        _do(connection, work, marks, limit, *message)
        del message


def _messages_beside(connection: socket.socket, ahead: Callable[[Any], None]) -> queue.SimpleQueue[Any]:
    """The tasks that come, received by a thread of its own; what comes for later tasks goes to `ahead` at once."""
    import traceback

    from labeling.supervision.messages import Ahead, receive

    tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def read() -> None:
        try:
            while True:
                message = receive(connection)
                if isinstance(message, Ahead):
                    ahead(message.value)
                else:
                    tasks.put(message)
                del message
        except (EOFError, OSError):
            _exit(0)
        except BaseException:  # without what came ahead its task cannot be done
            traceback.print_exc()
            _exit(1)

    threading.Thread(target=read, daemon=True).start()
    return tasks


def _do(connection: socket.socket, work: Callable[..., Any], marks: Any, limit: Any, task: Any, knowledge: Any) -> None:
    from labeling.failures import DeviceError
    from labeling.supervision.messages import send
    from labeling.supervision.task_attempt import ProcessFullError, SupervisedAttempt

    attempt = SupervisedAttempt(knowledge, marks, lambda *saved: send(connection, ("saved", saved)), limit)
    try:
        result = work(task, attempt)
        try:
            send(connection, ("result", result))
        except (BrokenPipeError, ConnectionResetError):
            _exit(0)
    except DeviceError as error:
        send(connection, ("device", str(error)))
        _exit(1)
    except ProcessFullError:
        send(connection, ("full", None))
        _exit(1)
    except BaseException as error:
        _raised(connection, error)


def _raised(connection: socket.socket, error: BaseException) -> None:
    """Tell the supervisor what was raised, in words that it can read without the packages of the worker."""
    import traceback

    from labeling.failures import Failure, device_error
    from labeling.supervision.messages import send
    from model.inputs import input_error_behind

    if input_error := input_error_behind(error):
        send(connection, ("input", str(input_error)))
    elif failed := device_error(error):
        send(connection, ("device", str(failed)))
    else:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        line = f"{Failure.of(error).reason} ({os.path.basename(frame.filename)}, line {frame.lineno})"
        send(connection, ("raised", (line, "".join(traceback.format_exception(error)))))


def _come_first_when_memory_runs_out() -> None:
    """Let the kernel take the worker before its supervisor."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def _exit(code: int) -> None:
    """End without waiting for threads that labelers started."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)
