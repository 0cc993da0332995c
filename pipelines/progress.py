"""Progress bars for long work, on standard error, so that output stays clean for machines."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol


class Advance(Protocol):
    """Says that `count` more are done; before: they were done earlier, and tell nothing of the speed."""

    def __call__(self, count: int, before: bool = False) -> None: ...


LINE_SECONDS = 10.0  # between lines where nobody watches a terminal

# What this process is doing, for the state that a submitted job keeps: {what, done, total, unit}, and when it began
# (Unix time) with how many done before, as a training that continues has.
current_progress: dict[str, Any] = {}


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
    printed = time.monotonic()
    current_progress.update(what=what, done=0, total=total, unit=unit, began=time.time(), before=0)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)

        def advance(count: int, before: bool = False) -> None:
            nonlocal printed
            current_progress["done"] += count
            if before:
                current_progress.update(before=current_progress["done"], began=time.time())
            bar.update(task, advance=count)
            if not console.is_terminal and time.monotonic() - printed > LINE_SECONDS:
                print(f"{what}: {current_progress['done']} of {total} {unit}", file=sys.stderr, flush=True)
                printed = time.monotonic()

        try:
            yield advance
        finally:
            current_progress.clear()
