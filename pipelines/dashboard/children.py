"""Dagster's processes, each started as `python -m pipelines.dashboard.children NAME …`.

Each ends with the process that started it, however that ends: it reads its standard input, which closes then.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from cluster.local import NAME

if TYPE_CHECKING:
    import psutil

NAMES = ("code", "web", "read", "daemon")
STOP_SECONDS = 10.0


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
        uvicorn.run(app, uds=socket, log_level="warning", ws="websockets-sansio")


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    import psutil

    family = started_by(psutil.Process())
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    os.kill(os.getpid(), signal.SIGTERM)
    for process in psutil.wait_procs(family, STOP_SECONDS)[1]:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def started_by(process: psutil.Process) -> list[psutil.Process]:
    """All that a process of the dashboard started, but for jobs on this machine: they are to outlive it.

    Dagster's code server would wait for the runs that follow jobs, and these for the jobs, so they have to be asked.
    """
    import psutil

    found = []
    with suppress(psutil.Error):
        for child in process.children():
            with suppress(psutil.Error):
                # Not by each one's own environment: Ray's processes write their titles over it.
                if NAME not in child.environ():
                    found += [child, *started_by(child)]
    return found


if __name__ == "__main__":
    main(*sys.argv[1:4])
