"""What a source holds: items (raw pictures and where they lie), as columns of a table, and how containers give them.

Each file of a source is a container of items. A plain picture is a container of a single one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from labeling.dataset import Entry, Store
from model.inputs import one_line

# A source may have 10⁸ items, so its listing is a table; an `Item` exists only where a shard is being made.
ITEM_SCHEMA = pa.schema(
    [
        ("name", pa.string()),  # in the source; unique, and what images.source says
        ("size", pa.int64()),  # bytes; an estimate where only reading tells
        ("tag", pa.string()),  # another one where the bytes, or what is said of them, may have changed
        ("file", pa.binary()),  # the file that it lies in, as the store names it (not always UTF-8); null: `name`
        ("place", pa.int64()),  # where in that file: offset in a tar, row of a table; null for a file that is the item
        ("together", pa.int64()),  # items of one file that are equal in it come at the price of one (a row group)
        ("beside", pa.string()),  # JSON, for the container alone: where else it finds what is said of the item
        ("described", pa.string()),  # JSON object: what a metadata table of the folder says of the item
    ]
)


@dataclass(frozen=True)
class Item:
    """One raw picture of a source; see ITEM_SCHEMA."""

    name: str
    size: int
    file: str
    place: int | None = None
    tag: str = ""
    beside: Any = None
    described: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reading:
    """What reading an item gave: its bytes and what its container says of it, or the reason why there are none.

    facts: column → value (text, author, licence, and any other that JSON can hold).
    """

    item: Item
    raw: bytes = b""
    facts: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True)
class Trouble:
    """A file of a source, or an entry of one, that can give no item; it becomes a row of rejected/.

    name: of the file, or of what in it is meant; size: bytes of the file, by which a later ingest sees a change.
    """

    name: str
    size: int
    reason: str


@dataclass(frozen=True)
class Contents:
    """The items of one container (ITEM_SCHEMA without `tag` and `described`, which may be null), and its troubles."""

    items: pa.Table
    troubles: Sequence[Trouble] = ()


class Container(Protocol):
    """A kind of file that holds items. Instances are sent to other processes."""

    def contents(self, store: Store, file: str, entry: Entry) -> Contents:
        """What is in the file, without reading it whole where its format allows.

        Raises InputError for a file that cannot be read at all: one line, which becomes the file's reason.
        """

    def read(self, store: Store, items: Sequence[Item]) -> Iterator[Reading]:
        """Read items of one file, each once, in whatever order is cheapest.

        Every item is yielded exactly once. What is wrong with one item is its reading's `reason`, never an exception.
        """


def items_table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """A table of ITEM_SCHEMA, of rows with its columns; a column that a row lacks is null.

    `file` may be text, and `beside` and `described` anything that JSON can hold.
    """
    encoded = []
    for row in rows:
        row = {**row, "name": printable(row["name"])}
        if isinstance(row.get("file"), str):
            row["file"] = row["file"].encode("utf-8", "surrogateescape")
        for key in ("beside", "described"):
            if row.get(key) is not None:
                # Names that are not UTF-8 stay in escapes, which JSON gives back.
                row[key] = json.dumps(row[key], ensure_ascii=key == "beside", separators=(",", ":"))
        encoded.append(row)
    return pa.Table.from_pylist(encoded, ITEM_SCHEMA)


def items_of(table: pa.Table) -> list[Item]:
    """The items of some rows of a listing."""
    return [
        Item(
            row["name"],
            row["size"] or 0,
            row["name"] if row["file"] is None else row["file"].decode("utf-8", "surrogateescape"),
            row["place"],
            row["tag"] or "",
            row["beside"] and json.loads(row["beside"]),
            json.loads(row["described"]) if row["described"] else {},
        )
        for row in table.to_pylist()
    ]


def printable(name: str) -> str:
    """A name as text that every file format takes: bytes that are not UTF-8 become \\xNN."""
    try:
        name.encode()
        return name
    except UnicodeEncodeError:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def trouble_of(error: Exception, longest: int | None = None) -> str:
    """What is wrong with a file, in one line without its path, which is another one elsewhere."""
    number = getattr(error, "errno", None)
    return os.strerror(number) if number else one_line(error, longest)
