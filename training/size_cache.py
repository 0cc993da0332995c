"""Values kept up to a limit of their sizes, and how many files may be open."""

from __future__ import annotations

import resource
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Any


class SizeCache:
    """The values used last, up to a limit of their sizes. Threads share it; two may make the same value."""

    def __init__(self, limit: int, size: Callable[[Any], int] = lambda value: int(value.nbytes)) -> None:
        """limit: in bytes, as `size` gives those of a value."""
        self._limit, self._size, self._used = limit, size, 0
        self._values: OrderedDict[tuple[Any, ...], Any] = OrderedDict()
        self._lock = Lock()

    def __contains__(self, key: tuple[Any, ...]) -> bool:
        return key in self._values

    def get(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """The value of the key, made if it is not there."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        with self._lock:
            if key not in self._values:
                self._values[key] = value
                self._used += self._size(value)
            while self._used > self._limit and len(self._values) > 1:
                self._used -= self._size(self._values.popitem(last=False)[1])
        return value


def allow_files(count: int) -> int:
    """How many of that many files may be open: a third of what this process may have, which is raised as far as it
    goes. The reader of validation has another third, at the same time.

    One worker reads in all lanes, each of which has a few shards open: at a batch of 256 more than 1,024 files.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = 3 * count if hard == resource.RLIM_INFINITY else min(3 * count, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        soft = allowed
    return count if soft == resource.RLIM_INFINITY else min(count, soft // 3)
