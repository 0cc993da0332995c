"""The process that runs an attempt: it writes a heartbeat, answers signals, and reads what others ask of it."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from types import FrameType
from typing import Any

from pipelines.jobs.attempt import AttemptState, Control
from pipelines.jobs.folder import JobFolder
from pipelines.jobs.specification import WorkersSpec
from pipelines.progress import current_progress

HEARTBEAT_SECONDS = 20.0
CONTROL_SECONDS = 2.0


class Interrupted(KeyboardInterrupt):
    """A signal asked the job to end. While Ray waits in C++, it passes on exceptions of this kind only."""


class RunningAttempt:
    """This process as an attempt at a job: its heartbeat, and what others ask of it.

    interrupted: a signal asked it to end. stopped: the control file did, by such a signal. workers: what a training is
    asked to go on with, None without such a request. polls: whether the work looks at `interrupted` by itself;
    otherwise a signal raises `Interrupted`.
    """

    def __init__(self, folder: JobFolder, number: int) -> None:
        self.folder = folder
        now = time.time()
        self.state = AttemptState(number, "running", socket.gethostname(), os.getpid(), now, now)
        self.interrupted = False
        self.stopped = False
        self.workers: WorkersSpec | None = None
        self.polls = True
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> RunningAttempt:
        self._put(self.state)
        for signal_number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM):
            signal.signal(signal_number, self._interrupt)
        self._default_hook = sys.unraisablehook
        sys.unraisablehook = self._raise_again
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._over.set()
        self._thread.join()
        sys.unraisablehook = self._default_hook

    def end(self, phase: str, reason: str = "", result: dict[str, Any] | None = None) -> None:
        """Write how it ended. Nothing is written after that."""
        self._over.set()
        self._thread.join()
        self.state = replace(self.state, phase=phase, reason=reason, result=result or {}, time=time.time())
        self._put(self.state)

    def _put(self, state: AttemptState) -> None:
        """Write the state, unless a later attempt has begun: this one was taken for dead, and is asked to end."""
        last = self.folder.state()
        if last is None or last.attempt <= state.attempt:
            self.folder.put_state(state)

    def _interrupt(self, signal_number: int, frame: FrameType | None) -> None:
        if self.interrupted:
            return
        self.interrupted = True
        if not self.polls:
            raise Interrupted

    def _raise_again(self, lost: sys.UnraisableHookArgs) -> None:
        """Python drops what is raised in a finalizer: then it is raised again, a moment later."""
        if lost.exc_type is Interrupted:
            self.interrupted = False
            signal.setitimer(signal.ITIMER_REAL, 0.1)
        else:
            self._default_hook(lost)

    def _watch(self) -> None:
        heartbeat = time.monotonic()
        while not self._over.wait(CONTROL_SECONDS):
            with suppress(Exception):  # the next look makes up for it, and the job's own writes show real trouble
                self._obey(self.folder.control())
                if time.monotonic() - heartbeat > HEARTBEAT_SECONDS:
                    self._put(replace(self.state, time=time.time(), progress=dict(current_progress)))
                    heartbeat = time.monotonic()

    def _obey(self, control: Control) -> None:
        """Do what is asked of this attempt. A request to a later one means that this one is to end."""
        if control.attempt == self.state.attempt:
            self.workers = WorkersSpec(**control.workers) if control.workers else None
        superseded = control.attempt > self.state.attempt
        if (superseded or (control.stop and control.attempt == self.state.attempt)) and not self.stopped:
            self.stopped = True
            os.kill(os.getpid(), signal.SIGUSR1)
