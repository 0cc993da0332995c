"""Starting Dagster's processes, starting those again that die, and ending them all."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from model.inputs import InputError, one_line
from pipelines.dashboard.instance import SETTINGS, end_lost_runs, environment
from pipelines.dashboard.jobs_page import LOCATION
from pipelines.dashboard.processes import end_sessions
from pipelines.dashboard.tokens import Role
from pipelines.dashboard.tracked_assets import state_folder

STOP_SECONDS = 15.0
MAX_DEATHS, DEATH_SECONDS = 5, 120.0  # a process that dies more often than that is not started again
MAX_LOG_BYTES = 10 << 20
_WEB_SERVERS: dict[Role, str] = {"operate": "web", "read": "read"}


@dataclass
class Supervisor:
    """Keeps Dagster's processes running: its code server, a web server for each role, its daemon.

    folder: of their sockets, for this user alone; its path must be short, since sockets' paths are limited in length.
    roles: those that get a web server; say: called with a line for each process that died.
    """

    folder: Path
    roles: Sequence[Role]
    say: Callable[[str], None]
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _deaths: dict[str, list[float]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The processes, in the order of their start."""
        return ["code", *(_WEB_SERVERS[role] for role in self.roles), "daemon"]

    @property
    def web_sockets(self) -> dict[Role, Path]:
        """The socket file of each role's web server."""
        return {role: self.socket(_WEB_SERVERS[role]) for role in self.roles}

    def socket(self, name: str) -> Path:
        """The socket file of a process."""
        return self.folder / f"{name}.sock"

    @property
    def _workspace(self) -> Path:
        return self.folder / "workspace.yaml"

    def prepare(self) -> None:
        """Write the settings and the workspace file that the processes read."""
        (state_folder() / "dagster.yaml").write_text(SETTINGS)
        self._workspace.write_text(
            f"load_from:\n  - grpc_server:\n      socket: {self.socket('code')}\n      location_name: {LOCATION}\n"
        )

    def start(self, name: str) -> None:
        """Start the process `name`; its output goes to a log in the dashboard's folder."""
        self.socket(name).unlink(missing_ok=True)
        logs = state_folder() / "logs"
        logs.mkdir(exist_ok=True)
        with (logs / f"{name}.txt").open("ab") as log:
            if log.tell() > MAX_LOG_BYTES:
                log.truncate(0)
            # A session of its own: Ctrl-C reaches only this process, which then ends the others in order. The pipe to
            # its standard input closes when this process ends in any way.
            self.running[name] = subprocess.Popen(  # noqa: S603 - our own interpreter and modules
                [sys.executable, "-m", "pipelines.dashboard.processes", name, self.socket(name), self._workspace],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, **environment()},
                start_new_session=True,
            )

    def restart_dead(self) -> None:
        """Start the processes again that have died. Raises InputError for one that keeps dying."""
        for name, process in list(self.running.items()):
            if process.poll() is None:
                continue
            now = time.monotonic()
            deaths = [at for at in self._deaths.get(name, []) if now - at < DEATH_SECONDS] + [now]
            self._deaths[name] = deaths
            log = state_folder() / "logs" / f"{name}.txt"
            if len(deaths) > MAX_DEATHS:
                raise InputError(f"the dashboard's process {name!r} dies again and again; its log is {log}")
            self.say(f"the dashboard's process {name!r} died ({process.returncode}), started again; its log is {log}")
            end_sessions([process.pid], STOP_SECONDS)  # processes that it started may live on
            if name == "code":
                self.fail_lost_runs("the process that followed it was lost")
            self.start(name)

    def fail_lost_runs(self, reason: str) -> None:
        """Report Dagster runs as failed whose process is gone; without that, the dashboard works all the same."""
        try:
            end_lost_runs(reason)
        except Exception as error:  # as where the database is locked
            self.say(f"dashboard: runs are left as they are: {one_line(error)}")

    def stop(self) -> None:
        """End all processes, with those that they started."""
        end_sessions([process.pid for process in self.running.values()], STOP_SECONDS)
        for process in self.running.values():
            process.wait()
            assert process.stdin
            process.stdin.close()
        self.running.clear()
