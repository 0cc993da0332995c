"""What was read of files, kept while they stay as a listing shows them: for those who look again every few seconds."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from labeling.dataset import Entry, Store

T = TypeVar("T")


class KeptFiles(Generic[T]):
    """What `read` makes of files, of the `most` that were asked for last. It is shared: nobody may change it."""

    def __init__(self, read: Callable[[Store, str], T], most: int) -> None:
        self._read = read
        self._most = most
        self._kept: dict[tuple[str, str], tuple[Entry, T]] = {}
        self._lock = threading.Lock()

    def get(self, store: Store, name: str, entry: Entry) -> T:
        """Of the file that is listed as `entry`; read where it was not, or was another."""
        key = (store.uri, name)
        with self._lock:
            kept = self._kept.get(key)
        if kept is None or kept[0] != entry:
            kept = entry, self._read(store, name)  # without the lock: one slow place must not hold up the others
        with self._lock:
            self._kept.pop(key, None)
            self._kept[key] = kept
            if len(self._kept) > self._most:
                del self._kept[next(iter(self._kept))]
        return kept[1]
