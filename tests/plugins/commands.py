"""The command line in a process of its own, as a person has it."""

from __future__ import annotations

import atexit
import os
import re
import subprocess
import tempfile
from contextlib import ExitStack
from functools import cache
from pathlib import Path

from warm_processes import Warm, warm_processes

ROOT = Path(__file__).parents[2]
_ENVIRONMENT = dict(os.environ)  # as it is before tests change it


@cache
def warm() -> Warm:
    """What forks the processes of this test process, to its end."""
    stack = ExitStack()
    atexit.register(stack.close)
    data = stack.enter_context(tempfile.TemporaryDirectory(prefix="data-"))
    return stack.enter_context(warm_processes({**_ENVIRONMENT, "XDG_DATA_HOME": data}))


def onediffusion(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command from the checkout to its end, whatever its exit code. environment: over this process's."""
    return subprocess.run(
        [warm().commands / "onediffusion", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        timeout=240,
    )


def said_on(stderr: str) -> list[str]:
    """The lines of a command's standard error, without those by which long work says how far it is."""
    return [line for line in stderr.splitlines() if not re.fullmatch(r"[\w :.-]+: \d+ of \d+ \w+", line)]
