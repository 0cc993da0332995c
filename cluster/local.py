"""The target `local`: a process of its own in the background, which outlives the terminal."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from cluster.checkout import CHECKOUT
from cluster.target import LocalTarget
from cluster.user_data import data_folder, one_at_a_time
from cluster.work import WORK_VARIABLE, AlreadySubmitted, Finding, TargetState, Work


class LocalBackend:
    """Processes of this user. Work is found by its name in their environment, so nothing else has to be recorded."""

    sees_all = False  # it sees neither processes of other users nor those of other machines

    def __init__(self, target: LocalTarget) -> None:
        self.target = target

    def plan(self, work: Work) -> dict[str, str]:
        """The command; see `Backend.plan`."""
        variables = [f"{key}={value}" for key, value in self._variables(work).items()]
        return {"command": shlex.join([*variables, *_command(work)]) + "\n"}

    def examine(self, work: Work) -> list[Finding]:
        """Nothing: whoever may start this process may start the work; see `Backend.examine`."""
        return []

    def remarks(self, work: Work) -> list[str]:
        """See `Backend.remarks`."""
        return []

    def submit(self, work: Work) -> None:
        """Start it in a session of its own; see `Backend.submit`."""
        with one_at_a_time("local"):
            if work_processes(work.name):
                raise AlreadySubmitted(f"{work.name}: runs on this machine already")
            with _log(work.name).open("ab") as log:
                started = subprocess.Popen(  # noqa: S603 - our own command
                    _command(work),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, **self._variables(work)},
                    start_new_session=True,
                )
            # Until the system has set up the new process's environment, its name cannot be found there.
            while started.poll() is None and not any(one.pid == started.pid for one in work_processes(work.name)):
                time.sleep(0.01)

    def state(self, name: str) -> TargetState:
        """Running or absent; see `Backend.state`."""
        return TargetState("running" if _leader(name) else "absent")

    def stop(self, name: str) -> None:
        """Interrupt it, wait for it to end by itself, and end what is left; see `Backend.stop`."""
        leader = _leader(name)
        if leader:
            with suppress(psutil.NoSuchProcess):
                leader.send_signal(signal.SIGTERM)
            psutil.wait_procs([leader], timeout=60)
        for _ in range(3):  # a killed process may have started another just before
            remaining = work_processes(name)
            for process in remaining:
                with suppress(psutil.NoSuchProcess):  # Ray's processes end by themselves when one of them does
                    process.kill()
            psutil.wait_procs(remaining, timeout=10)

    def scale(self, name: str, work: Work) -> bool:
        """Nothing to do: the job itself starts or ends workers, as far as this machine allows; see `Backend.scale`."""
        return True

    def logs(self, name: str) -> Iterator[str]:
        """What it printed; see `Backend.logs`."""
        if _log(name).exists():
            yield from _log(name).read_text(errors="replace").splitlines()

    def _variables(self, work: Work) -> dict[str, str]:
        """Environment variables of the work, over those of this process."""
        # Our packages must be found from any working directory.
        python_path = os.pathsep.join([str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])])
        return {**self.target.environment, WORK_VARIABLE: work.name, "PYTHONPATH": python_path}


def _command(work: Work) -> list[str]:
    return [sys.executable, "-m", "pipelines", *work.arguments]


def _log(name: str) -> Path:
    folder = data_folder() / "logs"
    folder.mkdir(exist_ok=True)
    return folder / f"{name}.log"


def work_processes(name: str) -> list[psutil.Process]:
    """All processes of the work: it, and what it started."""
    processes = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(WORK_VARIABLE) == name:
                processes.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return processes


def _leader(name: str) -> psutil.Process | None:
    """The process that was started, if it still runs."""
    for process in work_processes(name):
        try:
            if os.getsid(process.pid) == process.pid and process.cmdline()[1:3] == ["-m", "pipelines"]:
                return process
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue
    return None
