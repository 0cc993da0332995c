"""Many requests at a time: a store far away answers each after tens of milliseconds."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_parallel(work: Callable[[T], R], items: Iterable[T], most: int, ahead: int | None = None) -> Iterator[R]:
    """Results of a function for each item, in order, at most `most` at a time.

    ahead: items begun before the first of them is taken; by default twice `most`, and with one at a time none.
    Raises what the function raises for the first item that fails.
    """
    if most <= 1 and ahead is None:
        yield from map(work, items)
        return
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(most) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) >= (ahead or 2 * most):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
