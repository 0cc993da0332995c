"""What benchmarks share: timing what is compared in turn, so that a machine's moods meet all of it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def alternate(
    work: list[Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Median seconds of each, in rounds that take them in turn; a first round warms up."""
    seconds: list[list[float]] = [[] for _ in work]
    for number in range(rounds + 1):
        for times, one in zip(seconds, work, strict=True):
            started = clock()
            one()
            if number:
                times.append(clock() - started)
    return [statistics.median(times) for times in seconds]
