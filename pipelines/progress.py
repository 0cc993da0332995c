"""Progress bars for long work, on standard error, so that output stays clean for machines."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Advance = Callable[[int], None]
LINE_SECONDS = 10.0  # between lines where nobody watches a terminal

# What this process is at, for the state that a submitted job keeps: {what, done, total, unit}.
under_way: dict[str, Any] = {}


@contextmanager
def progress(what: str, total: int, unit: str = "") -> Iterator[Advance]:
    """A bar for `total` units of work; call the value yielded with how many are done since the last call.

    In a log, which has no use for a bar, a line now and then.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    said = time.monotonic()
    under_way.update(what=what, done=0, total=total, unit=unit)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)

        def advance(count: int) -> None:
            nonlocal said
            under_way["done"] += count
            bar.update(task, advance=count)
            if not console.is_terminal and time.monotonic() - said > LINE_SECONDS:
                print(f"{what}: {under_way['done']} of {total} {unit}", file=sys.stderr, flush=True)
                said = time.monotonic()

        try:
            yield advance
        finally:
            under_way.clear()
