"""The command line in a process of its own, as a person has it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def onediffusion(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command from the checkout to its end, whatever its exit code. environment: over this process's."""
    return subprocess.run(
        [sys.executable, "-m", "pipelines", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        timeout=240,
    )


def said_on(stderr: str) -> list[str]:
    """The lines of a command's standard error, without those by which long work says how far it is."""
    return [line for line in stderr.splitlines() if not re.fullmatch(r"[\w :.-]+: \d+ of \d+ \w+", line)]
