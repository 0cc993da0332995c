"""Work for a supervised process: a labeler on rows, and other things that a child may be asked."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from labeling.labeler import Labeler, Row
from labeling.resources import Resources
from labeling.run import LabelerRun
from labeling.supervision.task_attempt import Attempt


@dataclass(frozen=True)
class LabelWork:
    """Makes work that gives the columns of rows, or their failures."""

    labeler: Labeler
    timeout: float = 60.0

    def __call__(self) -> Callable[[list[Row], Attempt], list[Any]]:
        self.labeler.load()
        return LabelerRun(self.labeler, Resources(timeout=self.timeout)).label


class OtherWork:
    """Does what a task names."""

    def __call__(self) -> Callable[[tuple[str, Any], Attempt], Any]:
        self.calls = 0
        return lambda task, attempt: getattr(self, task[0])(task[1])

    def state(self, _: Any) -> tuple[int, int, int]:
        self.calls += 1
        return os.getpid(), self.calls, os.getpriority(os.PRIO_PROCESS, 0)

    def array(self, size: int) -> Any:
        return {"zeros": np.zeros(size, np.uint8), "number": 1}

    def echo(self, value: Any) -> Any:
        return value

    def unpicklable(self, _: Any) -> Any:
        return lambda: None

    def fail(self, text: str) -> None:
        raise KeyError(text)

    def exit(self, code: int) -> None:
        os._exit(code)

    def start_processes(self, _: Any) -> list[int]:
        """Pids of this process and of two that it leaves running, one of them in a session of its own."""
        return [
            os.getpid(),
            *(subprocess.Popen(["sleep", "1000"], start_new_session=new).pid for new in (False, True)),
        ]

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class AheadWork:
    """Makes work that gets values for later tasks while it is at one."""

    def __call__(self) -> Callable[[tuple[str, str, Any], Attempt], Any]:
        return _AheadWork()


class _AheadWork:
    def __init__(self) -> None:
        self.there: dict[str, Any] = {}
        self.came = threading.Event()

    def ahead(self, values: dict[str, Any]) -> None:
        self.there |= values
        self.came.set()

    def __call__(self, task: tuple[str, str, Any], attempt: Attempt) -> Any:
        kind, key, value = task
        if kind == "wait":
            return self.came.wait(60)
        if kind == "exit":
            os._exit(3)
        return self.there.pop(key) if value is None else value
