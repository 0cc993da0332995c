"""How raw images lie in files: each file of a source is a container of items, a plain image file of a single one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from labeling.dataset import Entry, Store


@dataclass(frozen=True)
class Item:
    """A raw file: its name in the source, size in bytes, the file that it lies in, and its place there.

    place: offset in a tar, row in a Parquet file, None of a file that is the item itself.
    """

    name: str
    size: int
    file: str
    place: int | None = None


class Container(Protocol):
    """A kind of file that holds items."""

    def items(self, store: Store, file: str, entry: Entry) -> list[Item]:
        """What is in the file, without reading it whole. Raises InputError for a file that cannot be read."""

    def read(self, store: Store, item: Item) -> tuple[bytes, dict[str, Any]]:
        """The bytes of an item, and what the container says of it (text, author, licence)."""
