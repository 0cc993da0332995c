"""The footers of a group's shards as columns of a table: 20 bytes a digest, so that 10⁵ shards fit in a process.

A digest is kept as its 16 bytes. What is no digest is kept as its text, with a zero byte after a text of 16 bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from labeling.dataset.digests import digest_column, digest_json
from labeling.dataset.shards import Footer
from labeling.dataset.storage import Entry

DIGEST_BYTES = 16
COLUMN = "column:"  # before the name of a group's column: its digests
SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("size", pa.int64()),
        ("tag", pa.string()),
        ("recipe", pa.binary()),
        ("content", pa.binary()),
        ("rows", pa.int64()),
        ("errors", pa.int64()),
        ("row_groups", pa.list_(pa.int32())),
    ]
)


def packed(digest: str) -> bytes:
    """A digest, or another text, as it is kept."""
    try:
        raw = bytes.fromhex(digest)
    except ValueError:
        raw = b""
    if len(raw) == DIGEST_BYTES and raw.hex() == digest:
        return raw
    text = digest.encode()
    return text + b"\0" if len(text) == DIGEST_BYTES else text


def unpacked(digest: bytes) -> str:
    """The digest or text that is kept so."""
    return digest.hex() if len(digest) == DIGEST_BYTES else digest.decode().removesuffix("\0")


class FooterTable(Mapping[str, Footer]):
    """Shard → footer, in the order of the dataset. Sent to another process, it costs what it holds: see `only`.

    table: the columns of SCHEMA, and the digests of each column of the group, null in a shard without that column.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __reduce__(self) -> tuple[type[FooterTable], tuple[pa.Table]]:
        return FooterTable, (self.table,)

    @classmethod
    def of(cls, footers: Mapping[str, Footer]) -> FooterTable:
        """The table of some footers."""
        if isinstance(footers, FooterTable):
            return footers
        values = list(footers.values())
        entries = [footer.entry or Entry(-1, "") for footer in values]
        columns = [
            list(footers),
            [entry.size for entry in entries],
            [entry.tag for entry in entries],
            [packed(footer.recipe) for footer in values],
            [packed(footer.content) for footer in values],
            [footer.rows for footer in values],
            [footer.errors for footer in values],
            [footer.row_groups for footer in values],
        ]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
        names = list(dict.fromkeys(name for footer in values for name in footer.columns))
        for name in names:
            digests = [packed(footer.columns[name]) if name in footer.columns else None for footer in values]
            arrays.append(pa.array(digests, pa.binary()))
        return cls(pa.table(arrays, [*SCHEMA.names, *(COLUMN + name for name in names)]))

    @classmethod
    def concatenated(cls, parts: Sequence[FooterTable]) -> FooterTable:
        """The rows of all parts, one after the other."""
        tables = [SCHEMA.empty_table(), *(part.table for part in parts)]
        return cls(pa.concat_tables(tables, promote_options="default"))

    def take(self, positions: Sequence[int] | NDArray[np.int64]) -> FooterTable:
        """The rows at these positions."""
        return FooterTable(self.table.take(pa.array(positions, pa.int64())).combine_chunks())

    def only(self, shards: Sequence[str]) -> FooterTable:
        """Keep the footers of some shards, as far as they are there."""
        positions = self.positions(shards)
        return self.take(positions[positions >= 0])

    def without(self, shards: Sequence[str]) -> FooterTable:
        """Leave some shards out."""
        removed_names = set(shards)
        return self.take([position for position, name in enumerate(self.names()) if name not in removed_names])

    def names(self) -> list[str]:
        """The shards, in order."""
        return list(self.table["name"].to_pylist())

    def positions(self, shards: Sequence[str]) -> NDArray[np.int64]:
        """(shards,) where each shard's footer is, -1 where it is missing."""
        positions = pc.index_in(pa.array(shards, pa.string()), value_set=self.table["name"].combine_chunks())
        return positions.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)

    def kept(self, field: str, positions: NDArray[np.int64]) -> list[bytes | None]:
        """What is kept of the recipe, of the content, or of a column ("column:NAME") at positions; None where absent.

        A position of -1 gives None.
        """
        if field not in self.table.column_names:
            return [None] * len(positions)
        return list(self.table[field].take(pa.array(positions, pa.int64(), mask=positions < 0)).to_pylist())

    def total(self, field: str, positions: NDArray[np.int64]) -> int:
        """Sum of `rows` or `errors` at positions, of those that are not -1."""
        return int(self.table[field].to_numpy()[positions[positions >= 0]].sum())

    def errors(self) -> dict[str, int]:
        """Shard → rows in error, of the shards that have some."""
        table = self.table.select(["name", "errors"]).filter(pc.greater(self.table["errors"], 0))
        return dict(zip(table["name"].to_pylist(), table["errors"].to_pylist(), strict=True))

    def row_groups(self, shard: str) -> list[int]:
        """Rows in each row group of a shard. Raises KeyError for a missing one."""
        return list(self.table["row_groups"][self._position[shard]].as_py())

    def files_digest(self) -> str:
        """Digest of the files that the footers are of, as listings show them."""
        return digest_json([digest_column(self.table[field]) for field in ("name", "size", "tag")])

    def __getitem__(self, shard: str) -> Footer:
        (row,) = self.table.slice(self._position[shard], 1).to_pylist()
        start = len(COLUMN)
        return Footer(
            recipe=unpacked(row["recipe"]),
            content=unpacked(row["content"]),
            columns={
                key[start:]: unpacked(value)
                for key, value in row.items()
                if key.startswith(COLUMN) and value is not None
            },
            rows=row["rows"],
            errors=row["errors"],
            row_groups=row["row_groups"],
            entry=Entry(row["size"], row["tag"]),
        )

    def __contains__(self, shard: object) -> bool:
        return shard in self._position

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, FooterTable):
            return self.table.equals(other.table) or dict(self) == dict(other)
        return super().__eq__(other)

    __hash__ = None  # type: ignore[assignment]

    @cached_property
    def _position(self) -> dict[str, int]:
        return {name: position for position, name in enumerate(self.names())}
