"""Selecting rows by a condition in SQL, as `quality.sharpness > 0.4 and images.licence like 'CC%'`.

Nothing is copied: a selection is a bit for each row, with a fingerprint of its own.
"""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from labeling.dataset.dataset import Dataset
from labeling.dataset.footers import FooterTable
from labeling.dataset.mentioned import Mentioned, parse
from labeling.dataset.sql import Tables, close_access, explained_sql, known_types, quoted
from model.inputs import InputError, one_line

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

CHUNK_ROWS = 1 << 18  # rows that a condition is evaluated on at once
_TIMES = {"current_date", "current_time", "current_timestamp", "localtime", "localtimestamp"}  # written like columns
_HIDDEN = {"query", "query_table"}  # functions that read tables which a condition does not name
_OWN = threading.local()


@dataclass(frozen=True)
class Condition:
    """A condition on rows.

    columns: that it reads of a row, as "group.column", sorted; whole: whether other rows may decide; tables: groups
    that its subqueries read.
    """

    where: str
    columns: Sequence[str]
    whole: bool
    tables: Sequence[str] = ()

    @property
    def groups(self) -> list[str]:
        """The groups of its columns."""
        return list(dict.fromkeys(column.partition(".")[0] for column in self.columns))

    @property
    def reads(self) -> list[str]:
        """All groups that decide which rows are selected."""
        return list(dict.fromkeys([*self.groups, *self.tables]))


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
    """A condition and the columns that it reads.

    Raises InputError for bad SQL, for columns that are not there, for a dataset without rows, and for functions such as
    `random`, which would select other rows each time.
    """
    what = f"where {where!r}"
    if not where.strip():
        raise InputError("where '': give a condition, as in \"images.width >= 512\"")
    if not tables.any_group():
        raise InputError(f"{what}: {tables.dataset.uri} has no rows yet")
    mentioned = parse(f"select 1 where {_boolean(where)}", what)
    # Their footers at once, and those of no other group unless a column is named without its own.
    tables.named({*mentioned.tables, *(path[0] for path in mentioned.columns if len(path) > 1)})
    _check_stable(tables, mentioned, what)
    try:
        columns = _columns(tables, mentioned)
    except InputError as error:
        raise InputError(f"{what}: {error}") from None
    condition = Condition(where, columns, mentioned.whole, tables.named(mentioned.tables))
    with tables.connect(0, 0, _needed(condition, tables)) as connection, explained_sql(tables, what):
        # The condition stands in a WHERE, which refuses aggregates and windows.
        sql = f"select 1 from {_from(condition, tables)} where {_boolean(where)}"  # noqa: S608 (the person's own)
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
    only = _needed(condition, tables)
    columns = {} if condition.whole else _small_columns(tables, condition)
    with explained_sql(tables, f"where {condition.where!r}"), tables.connect(first, end, only, columns) as connection:
        mask = _mask(connection, condition.where, _from(condition, tables))
    rows = sum(shard.rows for shard in tables.dataset.shards[first:end])
    assert len(mask) == rows, f"{len(mask)} values for {rows} rows"
    return mask


def _small_columns(tables: Tables, condition: Condition) -> dict[str, list[str]]:
    """The columns of a condition by group, those of groups of which it reads no bytes, as pictures are."""
    import pyarrow as pa

    columns: dict[str, list[str]] = {}
    for path in condition.columns:
        group, _, name = path.partition(".")
        columns.setdefault(group, []).append(name)
    return {
        group: names
        for group, names in columns.items()
        if not any(pa.types.is_binary(tables.schema(group).field(name).type) for name in names)
    }


def _mask(connection: duckdb.DuckDBPyConnection, where: str, tables: str) -> NDArray[np.bool_]:
    """Where a condition is true; null is not, as after WHERE."""
    sql = f"select coalesce({_boolean(where)}, false) as selected from {tables}"  # noqa: S608
    return np.asarray(connection.execute(sql).fetchnumpy()["selected"], bool)


def evaluate(where: str, tables: Mapping[str, pa.Table]) -> NDArray[np.bool_]:
    """(rows,) where a condition on rows is true. tables: group → the columns that it reads, of the same rows.

    Raises InputError for a value that cannot be computed.
    """
    import duckdb

    connection = _own_connection()
    try:
        for group, table in tables.items():
            connection.register(group, known_types(table))
        return _mask(connection, where, _beside(list(tables)))
    except duckdb.Error as error:
        raise InputError(f"where {where!r}: {one_line(error, 400)}") from None
    finally:
        for group in tables:
            connection.unregister(group)


def _own_connection() -> duckdb.DuckDBPyConnection:
    """The thread's connection for a few rows in memory: a new one for each few would take longer than they do."""
    import duckdb

    if not hasattr(_OWN, "connection"):
        connection = duckdb.connect(":memory:", config={"temp_directory": "", "threads": 1})
        close_access(connection)
        _OWN.connection = connection
    return _OWN.connection


def _boolean(where: str) -> str:
    """A condition as one value, which nothing but an expression can be. It may end in a comment."""
    return f"cast(({where}\n) as boolean)"


def _needed(condition: Condition, tables: Tables) -> list[str]:
    """The groups that are tables where a condition is evaluated."""
    return condition.reads if condition.groups else list(dict.fromkeys([*tables.any_group(), *condition.tables]))


def _from(condition: Condition, tables: Tables) -> str:
    return _beside(condition.groups or tables.any_group())


def _beside(groups: Sequence[str]) -> str:
    return " positional join ".join(map(quoted, groups))


def _check_stable(tables: Tables, mentioned: Mentioned, what: str) -> None:
    """Raise InputError where a condition would be true of other rows when it is asked again."""
    times = {path[0].lower() for path in mentioned.columns if len(path) == 1} & _TIMES
    if times:
        times -= {name.partition(".")[2].lower() for name in tables.columns()}
    if unstable := sorted(times | (mentioned.functions & _unstable_functions())):
        tenth = "md5_number_lower(images.id) % 10 = 0 is true of a tenth of the rows"
        raise InputError(f"{what}: {unstable[0]} selects other rows each time; write a constant ({tenth})")
    if hidden := sorted(mentioned.functions & _HIDDEN):
        raise InputError(f"{what}: {hidden[0]} cannot be in a condition; write the SELECT as a subquery")


@functools.cache
def _unstable_functions() -> frozenset[str]:
    """DuckDB's functions that give other values when they are called again. Some whose values depend on a setting, as
    of a time zone, do so for a few types only, and are not among them."""
    import duckdb

    sql = """select lower(function_name) from duckdb_functions() group by all
        having bool_or(stability = 'VOLATILE') or not bool_or(coalesce(stability, 'CONSISTENT') = 'CONSISTENT')
        or bool_or(regexp_matches(macro_definition, '\\b(random|uuid|now|current_[a-z]+)\\b'))"""
    with duckdb.connect(":memory:") as connection:
        names = {name for (name,) in connection.execute(sql).fetchall()}
    return frozenset(names - {"error"} | {"tablesample", "age until today"})


def _columns(tables: Tables, mentioned: Mentioned) -> list[str]:
    columns = set()
    for path in sorted(mentioned.columns):
        try:
            column = tables.resolve(path)
            if column is None:
                raise tables.no_column(path)
            columns.add(".".join(column))
        except InputError:
            if path not in mentioned.inner:  # a subquery has names of its own, which DuckDB looks at
                raise
    return sorted(columns)
