"""Dagster's processes, each started as `python -m pipelines.dashboard.processes NAME …`.

Each ends with the process that started it, however that ends: it reads its standard input, which closes then.
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
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

NAMES = ("code", "web", "read", "daemon")
STOP_SECONDS = 10.0
KEEP_SECONDS = 75  # that a connection may rest; far longer than the proxy keeps one, or it would use closed ones


def main(name: str, socket: str, workspace: str) -> None:
    """Run one of them until its standard input ends. socket: what it listens on; the daemon on nothing."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if name == "code":
        from dagster._cli.code_server import start_command

        arguments = ["--socket", socket, "--module-name", "pipelines.dashboard.definitions", "--attribute", "defs"]
        arguments += ["--use-python-environment-entry-point", "--log-level", "warning"]
        start_command.main(arguments)
    elif name == "daemon":
        from dagster._daemon.cli import run_command

        run_command.main(["--workspace", workspace, "--log-level", "warning"])
    else:
        serve(socket, workspace, read_only=name == "read")


def serve(socket: str, workspace: str, read_only: bool) -> None:
    """Dagster's web server on a socket. Its own command listens on ports only, where all of this machine get in."""
    import uvicorn
    from dagster import DagsterInstance
    from dagster._core.workspace.context import WorkspaceProcessContext
    from dagster._core.workspace.load_target import WorkspaceFileTarget
    from dagster_webserver.app import create_app_from_workspace_process_context
    from dagster_webserver.version import __version__

    logging.getLogger("dagster").setLevel(logging.WARNING)
    with (
        DagsterInstance.get() as instance,
        WorkspaceProcessContext(
            instance, WorkspaceFileTarget([workspace]), version=__version__, read_only=read_only
        ) as context,
    ):
        app = create_app_from_workspace_process_context(context, "", None)
        uvicorn.run(app, uds=socket, log_level="warning", ws="websockets-sansio", timeout_keep_alive=KEEP_SECONDS)


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    end_sessions([os.getsid(0)], STOP_SECONDS, lambda: os.kill(os.getpid(), signal.SIGTERM))


def end_sessions(sessions: Iterable[int], seconds: float, then: Callable[[], None] = lambda: None) -> None:
    """End all processes of these sessions but this one itself: first ask, then call `then`, and kill what is left.

    Each process of the dashboard leads a session, and what it starts stays in it, also where its parent was killed.
    Jobs on this machine have sessions of their own: they are to outlive the dashboard. Dagster's code server would wait
    for the runs that follow jobs, and these for the jobs, so they have to be asked.
    """
    import psutil

    wanted = set(sessions)
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError, PermissionError):
            if os.getsid(process.pid) in wanted and process.pid != os.getpid():
                found.append(process)
    for process in found:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    then()
    deadline = time.monotonic() + seconds
    while any(lives(process) for process in found):
        if time.monotonic() > deadline:
            for process in found:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            return
        time.sleep(0.1)


def lives(process: psutil.Process) -> bool:
    """Whether it still runs; one that nobody has asked about since it ended does not (in a container, for long)."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


if __name__ == "__main__":
    main(*sys.argv[1:4])
