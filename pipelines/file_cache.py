"""Contents of files that many look at again every few seconds: read once for as long as a listing shows no change."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from labeling.dataset import Entry, Store

T = TypeVar("T")


class FileCache(Generic[T]):
    """What `read(store, name)` makes of files, for the `capacity` files that were asked for last.

    Threads share it and the values it gives, which nobody may change.
    """

    def __init__(self, read: Callable[[Store, str], T], capacity: int) -> None:
        self._read = read
        self._capacity = capacity
        self._values: dict[tuple[str, str], tuple[Entry, T]] = {}  # the one used last comes last
        self._lock = threading.Lock()

    def get(self, store: Store, name: str, entry: Entry) -> T:
        """The value of the file that a listing shows as `entry`, read again only where the entry has changed."""
        key = (store.uri, name)
        with self._lock:
            cached = self._values.get(key)
        if cached is None or cached[0] != entry:
            cached = entry, self._read(store, name)  # without the lock: one slow store must not hold up the others
        with self._lock:
            self._values.pop(key, None)
            self._values[key] = cached
            if len(self._values) > self._capacity:
                del self._values[next(iter(self._values))]
        return cached[1]
