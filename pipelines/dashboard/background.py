"""Work that may wait forever, as for a network that is gone, on threads that nothing else waits for."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")
FRESH_SECONDS = 3.0  # that a result serves everyone who asks
ANSWER_SECONDS = 10.0  # that a caller waits for a result, before the last one serves
LOW_PRIORITY = 5  # the niceness of what pages go before; beside work on all cores it still gets a quarter of one


def in_background(work: Callable[[], T]) -> Future[T]:
    """Call `work` on a daemon thread of its own. It delays no other work (as in a pool), nor the end of the process."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()  # from here on it cannot be canceled, so that the thread can always settle it

    def run() -> None:
        try:
            future.set_result(work())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def at_low_priority(work: Callable[[], T]) -> T:
    """What `work` returns, called on a thread that gives way to pages where they need all cores.

    On Linux niceness is a thread's own, and a process may not lower it again: so it is a thread that ends then.
    """

    def call() -> T:
        with suppress(OSError):  # as on a system where it is a process's
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOW_PRIORITY)
        return work()

    return in_background(call).result()


class SharedResults:
    """Results for many callers at once: each is made once, is served for a few seconds, and while the next is late."""

    def __init__(self) -> None:
        self._results: dict[Any, tuple[float, Any]] = {}
        self._pending: dict[Any, asyncio.Future[Any]] = {}

    async def get(self, key: Any, make: Callable[[], T]) -> T:
        """What `make` returned at most FRESH_SECONDS ago, or last, while a new result takes over ANSWER_SECONDS.

        Raises what `make` raises, and TimeoutError where there is no result to serve.
        """
        made, result = self._results.get(key, (float("-inf"), None))
        if result is not None and time.monotonic() - made <= FRESH_SECONDS:
            return result
        pending = self._pending.get(key)
        if pending is None:
            pending = self._pending[key] = asyncio.wrap_future(in_background(make))
            pending.add_done_callback(lambda _: self._pending.pop(key))
        await asyncio.wait([pending], timeout=ANSWER_SECONDS)
        if pending.done():
            result = pending.result()
            self._results[key] = time.monotonic(), result
        elif result is None:
            raise TimeoutError
        return result
