"""Selecting rows by a condition in SQL, as `quality.sharpness > 0.4 and images.licence like 'CC%'`.

Nothing is copied: a selection is a bit for each row, with a fingerprint of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from labeling.dataset.dataset import Dataset
from labeling.dataset.footers import FooterTable
from labeling.dataset.sql import Mentioned, Tables, closed_connection, explained_sql, known_types, parse, quoted
from model.inputs import InputError, one_line

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

CHUNK_ROWS = 1 << 18  # rows that a condition is evaluated on at once


@dataclass(frozen=True)
class Condition:
    """A condition on rows. columns: that it reads, as "group.column", sorted; whole: whether other rows may decide."""

    where: str
    columns: Sequence[str]
    whole: bool

    @property
    def groups(self) -> list[str]:
        """The groups of its columns."""
        return list(dict.fromkeys(column.partition(".")[0] for column in self.columns))


@dataclass(frozen=True)
class Selection:
    """The rows of a dataset for which a condition is true.

    bits: of all rows in order, a byte for eight of them; starts: shard → (number of its first row, its rows).
    """

    condition: Condition
    bits: NDArray[np.uint8]
    starts: Mapping[str, tuple[int, int]]

    @property
    def rows(self) -> int:
        """How many rows are selected."""
        return int(np.bitwise_count(self.bits).sum(dtype=np.int64))

    @property
    def total(self) -> int:
        """How many rows there are."""
        return sum(rows for _, rows in self.starts.values())

    @property
    def fingerprint(self) -> str:
        """Digest of the shards' names and rows and of the bits: equal for selections of the same rows."""
        digest = hashlib.blake2b(digest_size=16)
        for shard, (_, rows) in self.starts.items():
            digest.update(f"{shard}:{rows}\n".encode())
        digest.update(self.bits.tobytes())
        return digest.hexdigest()

    def mask(self, shard: str) -> NDArray[np.bool_]:
        """(rows,) which rows of a shard are selected."""
        start, rows = self.starts[shard]
        first = start // 8
        return np.unpackbits(self.bits[first : -(-(start + rows) // 8)])[start - 8 * first :][:rows].view(bool)

    def numbers(self) -> NDArray[np.int64]:
        """(selected rows,) their numbers in the dataset."""
        return np.flatnonzero(np.unpackbits(self.bits, count=self.total))

    def facts(self) -> dict[str, Any]:
        """What is kept of it beside the bits."""
        return {"where": self.condition.where, "rows": self.rows, "fingerprint": self.fingerprint}


def read_condition(tables: Tables, where: str) -> Condition:
    """A condition and the columns that it reads. Raises InputError for bad SQL and for columns that are not there."""
    what = f"where {where!r}"
    if not where.strip():
        raise InputError("where '': give a condition, as in \"images.width >= 512\"")
    mentioned = parse(f"select 1 where ({where}\n)", what)
    try:
        columns = _columns(tables, mentioned)
    except InputError as error:
        raise InputError(f"{what}: {error}") from None
    condition = Condition(where, columns, mentioned.whole)
    only = tables.groups if condition.whole else condition.groups or tables.groups[:1]
    with tables.connect(0, 0, only) as connection, explained_sql(tables, what):
        # As a person's own WHERE, which refuses aggregates and windows.
        sql = f"select 1 from {_from(condition, tables)} where ({where}\n)"  # noqa: S608 (the person's own)
        connection.execute(sql).fetchall()
    return condition


def select_rows(dataset: Dataset, where: str, footers: Mapping[str, FooterTable] | None = None) -> Selection:
    """The rows of a dataset for which a condition is true. Labels that are missing, or in error, are null.

    footers: of all groups that the condition may name, where they are read already. Raises InputError as
    `read_condition`, and where a value cannot be computed.
    """
    tables = Tables(dataset, footers)
    condition = read_condition(tables, where)
    shards = dataset.shards
    counts = np.array([shard.rows for shard in shards], np.int64)
    ends = np.cumsum(counts)
    starts = {s.name: (int(end - rows), int(rows)) for s, end, rows in zip(shards, ends, counts, strict=True)}
    kept: list[NDArray[np.uint8]] = []
    rest = np.zeros(0, bool)  # less than a byte, of the rows before
    first = 0
    while first < len(shards):
        end = len(shards)
        if not condition.whole:
            before = int(ends[first - 1]) if first else 0
            end = max(first + 1, int(np.searchsorted(ends, before + CHUNK_ROWS, "right")))
        mask = np.concatenate([rest, _evaluate(tables, condition, first, end)])
        whole = len(mask) // 8 * 8
        kept.append(np.packbits(mask[:whole]))
        rest, first = mask[whole:], end
    bits = np.concatenate([*kept, np.packbits(rest)])
    return Selection(condition, bits, starts)


def _evaluate(tables: Tables, condition: Condition, first: int, end: int) -> NDArray[np.bool_]:
    """(rows of the shards [first, end),) where the condition is true."""
    only = tables.groups if condition.whole else condition.groups or tables.groups[:1]
    with tables.connect(first, end, only) as connection, explained_sql(tables, f"where {condition.where!r}"):
        mask = _mask(connection, condition.where, _from(condition, tables))
    rows = sum(shard.rows for shard in tables.dataset.shards[first:end])
    assert len(mask) == rows, f"{len(mask)} values for {rows} rows"
    return mask


def _mask(connection: duckdb.DuckDBPyConnection, where: str, tables: str) -> NDArray[np.bool_]:
    """Where a condition is true; null is not, as after WHERE."""
    sql = f"select coalesce(cast(({where}\n) as boolean), false) as selected from {tables}"  # noqa: S608
    return np.asarray(connection.execute(sql).fetchnumpy()["selected"], bool)


def evaluate(where: str, tables: Mapping[str, pa.Table]) -> NDArray[np.bool_]:
    """(rows,) where a condition on rows is true. tables: group → the columns that it reads, of the same rows.

    Raises InputError for a value that cannot be computed.
    """
    import duckdb

    with closed_connection({group: known_types(table) for group, table in tables.items()}) as connection:
        try:
            return _mask(connection, where, _beside(list(tables)))
        except duckdb.Error as error:
            raise InputError(f"where {where!r}: {one_line(error, 400)}") from None


def _from(condition: Condition, tables: Tables) -> str:
    return _beside(condition.groups or tables.groups[:1])


def _beside(groups: Sequence[str]) -> str:
    return " positional join ".join(map(quoted, groups))


def _columns(tables: Tables, mentioned: Mentioned) -> list[str]:
    columns = set()
    for path in sorted(mentioned.columns):
        try:
            found = tables.resolve(path)
            if found is None:
                raise tables.no_column(path)
            columns.add(".".join(found))
        except InputError:
            if not mentioned.whole:  # a subquery has names of its own, which DuckDB looks at
                raise
    return sorted(columns)
