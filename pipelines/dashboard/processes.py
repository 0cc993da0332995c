"""Dagster's processes, each started as `python -m pipelines.dashboard.processes NAME SOCKET WORKSPACE`.

Each ends together with the process that started it, however that one ends: its standard input is a pipe from there,
and closes then.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.dashboard.background import LOW_PRIORITY
from pipelines.dashboard.dagster_internals import console_script, import_web_server, web_application

if TYPE_CHECKING:
    import psutil

CODE_SOCKET = "code.sock"  # beside the workspace file
STOP_SECONDS = 10.0
KEEP_SECONDS = 75  # that an idle connection is kept; far longer than the proxy keeps one, or it would use closed ones


def main(name: str, socket: str, workspace: str) -> None:
    """Run the process `name` until its standard input ends.

    name: "code" (the definitions), "web" and "read" (web servers, for each role one) or "daemon" (sensors and queue);
    socket: the file that it listens on (the daemon listens on nothing); workspace: the file that names the code server.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    code_socket = Path(workspace).with_name(CODE_SOCKET)
    if name == "code":
        run = console_script("dagster")
        arguments = ["--socket", socket, "--module-name", "pipelines.dashboard.definitions", "--attribute", "defs"]
        arguments += ["--use-python-environment-entry-point", "--log-level", "warning"]
        run(["code-server", "start", *arguments])
    elif name == "daemon":
        os.nice(LOW_PRIORITY)  # it starts no processes that would inherit this: the code server does
        run = console_script("dagster-daemon")
        _wait_for(code_socket)
        run(["run", "--workspace", workspace, "--log-level", "warning"])
    else:
        import_web_server()
        _wait_for(code_socket)
        serve(socket, workspace, read_only=name == "read")


def serve(socket: str, workspace: str, read_only: bool) -> None:
    """Dagster's web server on a socket file, which only this user can open."""
    import uvicorn

    logging.getLogger("dagster").setLevel(logging.WARNING)
    with web_application(workspace, read_only) as application:
        uvicorn.run(
            application, uds=socket, log_level="warning", ws="websockets-sansio", timeout_keep_alive=KEEP_SECONDS
        )


def _wait_for(code_socket: Path) -> None:
    """Wait until the code server listens: Dagster looks for it once, and then not again for a minute."""
    while not code_socket.exists():
        time.sleep(0.05)


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    end_sessions([os.getsid(0)], STOP_SECONDS, lambda: os.kill(os.getpid(), signal.SIGTERM))


def end_sessions(sessions: Iterable[int], seconds: float, then: Callable[[], None] = lambda: None) -> None:
    """End all processes of these sessions except this one: first terminate them, then call `then`, then kill the rest.

    Each process of the dashboard leads a session, and what it starts stays in that session even when its parent was
    killed. Jobs on this machine have sessions of their own, because they outlive the dashboard. All processes are
    terminated at once: Dagster's code server would wait for the runs that follow jobs, and these for the jobs.
    """
    import psutil

    ended = set(sessions)
    processes = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError, PermissionError):
            if os.getsid(process.pid) in ended and process.pid != os.getpid():
                processes.append(process)
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    then()
    deadline = time.monotonic() + seconds
    while any(is_alive(process) for process in processes):
        if time.monotonic() > deadline:
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            return
        time.sleep(0.1)


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs. A zombie does not; in a container, nobody may ever collect one."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


if __name__ == "__main__":
    main(*sys.argv[1:4])
