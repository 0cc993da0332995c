"""Rows of lists, the ranges of them that become shards, and what every file of a list can do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class RowRange:
    """Consecutive rows of a file: those of one shard.

    first: number of the first one, from 0; offset, size: bytes in the file, of a file of lines; digest: changes with
    what the rows say.
    """

    file: str
    first: int
    rows: int
    digest: str
    offset: int = 0
    size: int = 0


@dataclass(frozen=True)
class Cut:
    """A file cut into ranges from some row on. rows: of the whole file; digest: of all its rows; earlier: of the rows
    before the first range, "" where that cannot be told."""

    ranges: list[RowRange]
    rows: int
    digest: str
    earlier: str


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be read, with the reason."""

    reason: str


Row = Mapping[str, Any] | BadRow


class ListFile(Protocol):
    """A file of a list, opened lazily. It may be sent to other processes."""

    name: str
    address: str  # for people

    @property
    def columns(self) -> list[str]:
        """Names of all columns."""

    @property
    def holds_pictures(self) -> bool:
        """Whether there are encoded pictures in it: then it is no list."""

    def cut(self, first: int, shard_rows: int) -> Cut:
        """The ranges of at most `shard_rows` rows from row `first` on."""

    def read(self, ranges: Sequence[RowRange]) -> Iterator[list[Row]]:
        """The rows of each of these ranges, which are consecutive; read in one pass."""
