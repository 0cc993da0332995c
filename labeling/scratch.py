"""Numbers and texts of rows that are too many to hold: in files without a name, which end with the process.

They lie in the folder for temporary files (TMPDIR).
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_LENGTH = 4  # bytes that say how long a text is


class ScratchRows:
    """Rows of `width` numbers of one type, that come one after the other."""

    def __init__(self, dtype: DTypeLike, width: int) -> None:
        self.dtype, self.width = np.dtype(dtype), width
        self._rows = 0
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (it ends with this object)

    def __len__(self) -> int:
        return self._rows

    def append(self, rows: NDArray[Any]) -> None:
        """rows: (N, width)."""
        self._file.seek(0, os.SEEK_END)
        self._file.write(np.ascontiguousarray(rows, self.dtype).data)
        self._rows += len(rows)

    def skip(self, rows: int) -> None:
        """Append rows of zeros, which take no disk."""
        self._rows += rows
        self._file.truncate(self._rows * self.width * self.dtype.itemsize)

    def blocks(self, size: int) -> Iterator[NDArray[Any]]:
        """All rows, (N, width) with at most `size` of them at once."""
        bytes_a_row = self.dtype.itemsize * self.width
        self._file.flush()
        for start in range(0, self._rows, size):
            block = np.empty((min(size, self._rows - start), self.width), self.dtype)
            self._file.seek(start * bytes_a_row)
            self._file.readinto(block.data)
            yield block

    def mapped(self) -> NDArray[Any]:
        """(rows, width) as they are in the file now: the kernel holds what it has memory for."""
        self._file.flush()
        return _mapped(self._file.fileno(), (self._rows, self.width), self.dtype)


def scratch_array(rows: int, dtype: DTypeLike) -> NDArray[Any]:
    """(rows,) zeros in a file; the kernel holds what it has memory for."""
    with tempfile.TemporaryFile() as file:
        file.truncate(rows * np.dtype(dtype).itemsize)
        return _mapped(file.fileno(), (rows,), np.dtype(dtype))


class ScratchTexts:
    """Texts, each under the number of a row."""

    def __init__(self, rows: int) -> None:
        self._places = scratch_array(rows, np.int64)
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (it ends with this object)
        self._end = 0

    def __setitem__(self, row: int, text: str) -> None:
        data = text.encode()
        os.pwrite(self._file.fileno(), len(data).to_bytes(_LENGTH, "little") + data, self._end)
        self._places[row] = self._end
        self._end += _LENGTH + len(data)

    def __getitem__(self, row: int) -> str:
        place = int(self._places[row])
        length = int.from_bytes(os.pread(self._file.fileno(), _LENGTH, place), "little")
        return os.pread(self._file.fileno(), length, place + _LENGTH).decode()


def _mapped(descriptor: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    size = int(np.prod(shape)) * dtype.itemsize
    if not size:
        return np.empty(shape, dtype)
    return np.frombuffer(mmap.mmap(descriptor, size), dtype).reshape(shape)
