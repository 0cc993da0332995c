"""Whole pages of arrays from a store with delay, kept while their rows are read one after another.

A request costs tens of milliseconds there, and money. A worker that will soon want all rows of a row group reads them
by one, as long as all that it has begun fit its memory.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Executor, Future
from threading import Lock

from labeling.dataset.array_file import ArrayFile, Want, pieces, read_arrays
from labeling.dataset.checksums import array_checksum
from labeling.dataset.places import LENGTH_BYTES
from model.inputs import InputError

_Key = tuple[str, int]


class PageCache:
    """The pages used last, up to a limit in bytes. Threads share it."""

    def __init__(self, pool: Executor, limit: int) -> None:
        """pool: where reads run beside each other."""
        self._pool, self._limit, self._used = pool, limit, 0
        self._pages: OrderedDict[_Key, tuple[Future[bytes | bytearray], int]] = OrderedDict()
        self._lock = Lock()

    def read(self, wants: Iterable[Want], most: int) -> None:
        """Fill all that is wanted: from its page where it has one of at most so many bytes, else by exact reads.

        Raises InputError for the first that cannot be read.
        """
        paged: list[tuple[Want, int, Future[bytes | bytearray]]] = []
        exact: list[Want] = []
        for want in wants:
            if want.page is not None and want.page[1] - want.page[0] <= most:
                paged.append((want, want.page[0], self._page(want.file, *want.page)))
            else:
                exact.append(want)
        read_arrays(exact, self._pool)
        for want, first, future in paged:
            try:
                content = future.result()
                start, checksum = want.start - first, 0
                length, values = content[start - LENGTH_BYTES : start], memoryview(content)
                for piece in pieces(want.target):
                    piece[:] = values[start : start + len(piece)]
                    start += len(piece)
                    if want.file.has_checksums:
                        checksum = array_checksum(piece, checksum)
                want.file.check(want, length, checksum)
            except (InputError, FileNotFoundError):  # the file may have been stored anew, or tells what is wrong
                self._forget((want.file.address, first))
                want.file.read([want])
            except BaseException:
                self._forget((want.file.address, first))  # it is asked for again by who tries again
                raise

    def _page(self, file: ArrayFile, first: int, end: int) -> Future[bytes | bytearray]:
        key = file.address, first
        with self._lock:
            if key in self._pages:
                self._pages.move_to_end(key)
                return self._pages[key][0]
            future = self._pool.submit(file.read_bytes, first, end)
            self._pages[key] = future, end - first
            self._used += end - first
            while self._used > self._limit and len(self._pages) > 1:
                self._used -= self._pages.popitem(last=False)[1][1]
            return future

    def _forget(self, key: _Key) -> None:
        with self._lock:
            if key in self._pages:
                self._used -= self._pages.pop(key)[1]
