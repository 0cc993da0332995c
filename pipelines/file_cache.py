"""What was read of files, kept while they are listed unchanged: for callers that look again every few seconds."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from labeling.dataset.storage import Entry, Store

T = TypeVar("T")


class FileCache(Generic[T]):
    """Results of `read` for the `size` files that were asked for last. They are shared: nobody may change them."""

    def __init__(self, read: Callable[[Store, str], T], size: int) -> None:
        self._read = read
        self._size = size
        self._results: dict[tuple[str, str], tuple[Entry, T]] = {}
        self._lock = threading.Lock()

    def get(self, store: Store, name: str, entry: Entry) -> T:
        """The result for a file that is listed as `entry`; it is read where the last result is of another entry."""
        key = (store.uri, name)
        with self._lock:
            result = self._results.get(key)
        if result is None or result[0] != entry:
            result = entry, self._read(store, name)  # without the lock: one slow store must not hold up the others
        with self._lock:
            self._results.pop(key, None)
            self._results[key] = result
            if len(self._results) > self._size:
                del self._results[next(iter(self._results))]
        return result[1]
