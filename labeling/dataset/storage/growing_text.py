"""Text that grows, as a log does, in a store where nothing can be appended to: FOLDER/000001.txt, 000002.txt, ….

The last part is written again whole until it is full, so a reader always finds whole lines of what was written.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from labeling.dataset.storage.store import Store

PART = re.compile(r"[0-9]{6}\.txt")
PART_BYTES = 256_000
PAUSE_SECONDS = 2.0  # between two writes, and between two looks
_LAST_TRIES = 5


def text_parts(store: Store, folder: str) -> list[str]:
    """Names of the parts in a folder; other files there are none."""
    return [name for name in store.files(folder) if PART.fullmatch(name)]


def stored_lines(
    store: Store, folder: str, over: Callable[[], bool] = lambda: True, seconds: float = PAUSE_SECONDS
) -> Iterator[str]:
    """Lines of the text; then, every few seconds, new ones, until `over` (asked before each last look)."""
    yield from (line for _, line in lines_of_many({"": store}, folder, over, seconds))


def lines_of_many(
    stores: Mapping[str, Store], folder: str, over: Callable[[], bool] = lambda: True, seconds: float = PAUSE_SECONDS
) -> Iterator[tuple[str, str]]:
    """`stored_lines` of texts in several stores: (name of the store, line), as they come."""
    reading = {name: _Reading(store, folder) for name, store in stores.items()}
    while True:
        last = over()
        for name, text in reading.items():
            yield from ((name, line) for line in text.new_lines())
        if last:
            break
        time.sleep(seconds)
    for name, text in reading.items():
        if text.rest:
            yield name, text.rest.decode(errors="replace")


class _Reading:
    """A text as far as it was read. rest: what was read after the last whole line."""

    def __init__(self, store: Store, folder: str) -> None:
        self._store, self._folder = store, folder
        self._sizes_read: dict[str, int] = {}  # bytes of each part that were given out
        self.rest = b""

    def new_lines(self) -> list[str]:
        sizes = self._store.files(self._folder)
        for name in filter(PART.fullmatch, sizes):
            given = self._sizes_read.get(name, 0)
            if sizes[name].size > given:
                content = self._store.read(f"{self._folder}/{name}")
                self.rest += content[given:]
                self._sizes_read[name] = len(content)
        *lines, self.rest = self.rest.split(b"\n")
        return [line.decode(errors="replace") for line in lines]


class GrowingText:
    """Writes what is added as parts, after those that are there; with `most`, only so many of the last are kept."""

    def __init__(self, store: Store, folder: str, most: int | None = None) -> None:
        self.over = threading.Event()
        self._store, self._folder, self._most = store, folder, most
        parts = text_parts(store, folder)
        self._number = 1 + max((int(name[:6]) for name in parts), default=0)
        self._first = min((int(name[:6]) for name in parts), default=1)
        self._part, self._written = bytearray(), 0
        self._lock = threading.Lock()

    def add(self, data: bytes) -> None:
        with self._lock:
            self._part += data

    def write_until_over(self) -> None:
        """Write what was added, every few seconds. An error of the storage shows in the work itself."""
        while not self.over.wait(PAUSE_SECONDS):
            self.put()
        for _ in range(_LAST_TRIES):
            if self.put():
                return

    def put(self) -> bool:
        """Whether everything that was added is written."""
        while True:
            with self._lock:
                part = bytes(self._part[:PART_BYTES])
            if len(part) == self._written:
                return True
            try:
                self._store.put(f"{self._folder}/{self._number:06d}.txt", part)
                while self._most and self._first <= self._number - self._most:
                    self._store.delete(f"{self._folder}/{self._first:06d}.txt")
                    self._first += 1
            except Exception:
                return False
            self._written = len(part)
            if self._written == PART_BYTES:
                with self._lock:
                    del self._part[:PART_BYTES]
                self._number, self._written = self._number + 1, 0
