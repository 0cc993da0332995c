"""SQL over a dataset, by DuckDB: a table for each column group, whose files are read as far as a query needs them.

The rows of all groups have one order, so groups lie side by side without a join by key (`positional join`).
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from labeling.dataset.dataset import Dataset
from labeling.dataset.footers import FooterTable
from labeling.dataset.images import IMAGES, REJECTED
from labeling.dataset.mentioned import Mentioned
from labeling.dataset.shards import shard_file
from model.inputs import InputError, nearest, one_line

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

    from labeling.dataset.arrow_shards import Places

ROWS = "rows"  # a row of every group side by side: a column for each group, with its columns as fields
_COMMON = ("id", "model", "version", "error")
_COLUMN, _TABLE = re.compile(r"[Cc]olumn|Could not find key"), re.compile(r"[Tt]able")  # in errors about names
_STREAM = "stream to be stored"
_SHOWS = ("query", "duckdb_", "pragma_")  # functions that show tables which a statement does not name begin so
MAX_NAMES = 40  # of columns that an error lists


@contextmanager
def closed_connection(tables: Mapping[str, Any]) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection with these tables, of Arrow: SQL on it reads neither files nor the network, nor changes settings."""
    import duckdb
    import pyarrow as pa

    with tempfile.TemporaryDirectory(prefix="onediffusion-sql-") as folder:
        connection = duckdb.connect(":memory:", config={"temp_directory": folder, "threads": 2})
        with connection:
            for name, table in tables.items():
                if isinstance(table, pa.RecordBatchReader):
                    connection.register(_STREAM, table)
                    sql = f"create table {quoted(name)} as select * from {quoted(_STREAM)}"  # noqa: S608 (names of ours)
                    connection.execute(sql)
                    connection.unregister(_STREAM)
                else:
                    connection.register(name, table)
            close_access(connection)
            yield connection


def close_access(connection: duckdb.DuckDBPyConnection) -> None:
    """Have SQL on a connection read neither files nor the network, nor change settings, for good."""
    connection.execute("set enable_external_access = false")
    connection.execute("set lock_configuration = true")


class Tables:
    """The groups of a dataset as tables. A group that lacks a shard has nulls in its place.

    footers: of each group that may be named. By default any declared group may, and what was rejected, and the footers
    are read of those alone that a statement needs: of many shards a listing takes seconds.
    """

    def __init__(self, dataset: Dataset, footers: Mapping[str, FooterTable] | None = None) -> None:
        self.dataset = dataset
        self.names = [*dataset.groups(), REJECTED] if footers is None else list(footers)
        self._footers = dict(footers or {})
        self._schemas: dict[str, pa.Schema] = {}
        self._places: dict[str, Places] = {}

    def with_rows(self, groups: Iterable[str]) -> list[str]:
        """Those of some groups that have rows. Footers that were not read yet are read together."""
        groups = list(groups)
        if unread := [group for group in groups if group not in self._footers]:
            self._footers |= self.dataset.all_footers(unread)
        return [group for group in groups if len(self._footers[group])]

    def named(self, names: Iterable[str]) -> list[str]:
        """The groups of rows that are called by one of these names, as SQL takes them, and have rows."""
        lower = {name.lower() for name in names}
        return self.with_rows(group for group in self.names if group != REJECTED and group.lower() in lower)

    @property
    def groups(self) -> list[str]:
        """Every group that has a row for each of the dataset's."""
        return self.with_rows(group for group in self.names if group != REJECTED)

    def any_group(self) -> list[str]:
        """A group that tells how many rows there are; none where there are no rows."""
        return self.named([IMAGES]) or self.groups[:1]

    def schema(self, group: str) -> pa.Schema:
        """The columns of a group: of its first shard and of its last one, which a newer program may have written."""
        if group not in self._schemas:
            import pyarrow as pa
            import pyarrow.parquet as pq

            names, store, schemas = self._footers[group].table["name"], self.dataset.store, []
            for shard in dict.fromkeys([names[-1].as_py(), names[0].as_py()]):
                name = shard_file(group, shard)
                with store.open(name) as file, store.explained(name):
                    schemas.append(pq.read_schema(file).remove_metadata())
            fields = [pa.field(field.name, _known_type(field.type)) for field in _unified(schemas)]
            self._schemas[group] = pa.schema(fields)
        return self._schemas[group]

    def columns(self, groups: Sequence[str] | None = None) -> list[str]:
        """Every column, as "group.column"."""
        return [f"{group}.{name}" for group in groups or self.groups for name in self.schema(group).names]

    def resolve(self, path: Sequence[str], among: Sequence[str] | None = None) -> tuple[str, str] | None:
        """(group, column) that a path in SQL means, None where it means none of them.

        among: the groups whose columns may be named alone, all by default. Raises InputError for a name that columns of
        several groups have.
        """
        if len(path) > 1 and (of_name := self.named([path[0]])):
            group = of_name[0]
            name = next((name for name in self.schema(group).names if name.lower() == path[1].lower()), None)
            return None if name is None else (group, name)
        owners = [
            (group, name)
            for group in (self.groups if among is None else among)
            for name in self.schema(group).names
            if name.lower() == path[0].lower()
        ]
        if len(owners) > 1:
            raise InputError(f"column {path[0]!r} is ambiguous; write {' or '.join('.'.join(o) for o in owners[:3])}")
        return owners[0] if owners else None

    def no_column(self, path: Sequence[str]) -> InputError:
        """The line about a name that means no column."""
        name, known = ".".join(path), self.columns()
        group = path[0] if len(path) > 1 and path[0] in self.groups else None
        choices = self.columns([group]) if group else self.telling_columns()
        return InputError(f"no column {name!r}{nearest(name, known)}; there are {listed(choices)}")

    def telling_columns(self) -> list[str]:
        """Every column, those that each group has named once."""
        return [
            name for name in self.columns() if name.startswith(f"{IMAGES}.") or name.partition(".")[2] not in _COMMON
        ]

    @contextmanager
    def connect(
        self,
        first: int = 0,
        end: int | None = None,
        only: Sequence[str] | None = None,
        columns: Mapping[str, Sequence[str]] | None = None,
    ) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection with the rows of some shards, [first, end).

        only: the groups that are tables there; columns: of them that SQL reads, which where the store is far away are
        read before, from many files at a time: DuckDB has four of them read, whatever the delay.
        """
        groups = self.with_rows(self.names if only is None else only)
        tables = {group: self._arrow(group, first, end) for group in groups}
        for group, names in (columns or {}).items():
            if self.dataset.store.gap and group in tables:
                tables[group] = self._read(tables[group], names)
        with closed_connection(tables) as connection:
            yield connection

    def _read(self, rows: Any, names: Sequence[str]) -> pa.RecordBatchReader:
        """Columns of an Arrow dataset, to be read once."""
        import pyarrow as pa

        parallel = self.dataset.store.parallel
        pa.set_io_thread_count(max(parallel, pa.io_thread_count()))
        scanner = rows.scanner(columns=list(names), fragment_readahead=parallel, batch_readahead=parallel)
        return scanner.to_reader()

    def needed(self, mentioned: Mentioned) -> list[str]:
        """The groups that a statement reads, and what was rejected where it does: all where that is not sure."""
        known = {ROWS, *(group.lower() for group in self.names)}
        tables = {table.lower() for table in mentioned.tables}
        shows = any(name.startswith(_SHOWS) for name in mentioned.functions)
        if shows or not tables <= known or (ROWS in tables and _reads_all_groups(mentioned)):
            return self.with_rows(self.names)
        names = tables | {name.lower() for path in mentioned.columns for name in path}
        names |= {field.lower() for field in mentioned.fields}
        groups = self.with_rows(group for group in self.names if group.lower() in names)
        return groups if ROWS not in tables or groups not in ([], [REJECTED]) else [*self.any_group(), *groups]

    def read_columns(self, mentioned: Mentioned, groups: Sequence[str]) -> dict[str, list[str]]:
        """The columns that a statement reads of the groups that it needs; nothing where it may need others, or a few
        rows only."""
        import pyarrow as pa

        renames = any(alias != table for table, alias in mentioned.aliases)
        if mentioned.star or mentioned.fields or mentioned.limited or renames:
            return {}
        named = {name.lower() for path in mentioned.columns for name in path}
        columns: dict[str, list[str]] = {}
        for path in mentioned.columns:
            try:
                found = self.resolve(path, groups)
            except InputError:
                return {}
            if found is None or (len(path) == 1 and path[0].lower() in map(str.lower, groups)):
                return {}  # such a name may be a whole group of `rows`
            columns[found[0]] = [name for name in self.schema(found[0]).names if name.lower() in named]
        return {
            group: names
            for group, names in columns.items()
            if not any(pa.types.is_binary(self.schema(group).field(name).type) for name in names)
        }

    def view_rows(self, connection: duckdb.DuckDBPyConnection, mentioned: Mentioned, groups: Sequence[str]) -> None:
        """Add the table `rows`, with the columns of a statement that names it: DuckDB would read all of them.

        groups: that it needs, which are tables of the connection. A `*` has all columns but those of binary values,
        which are pictures.
        """
        import pyarrow as pa

        paths = {tuple(name.lower() for name in path) for path in mentioned.columns}
        used_names = {name for path in paths for name in path} | {field.lower() for field in mentioned.fields}
        own = {alias for table, alias in mentioned.aliases if table == ROWS}
        every = _reads_all_groups(mentioned)
        parts, sides = [], []
        for group in self.names:
            name = group.lower()
            if group == REJECTED or (group not in groups and (every or name in used_names)):  # it has no rows
                continue
            if not every and name not in used_names:  # it stays a column, so that an error about its name lists it
                parts.append(f"struct_pack(id := null::varchar) as {quoted(group)}")
                continue
            # `caption.caption` is a column, unless that is what the statement calls the table.
            bare = every or any(path[-1] == name and (path != (name, name) or name in own) for path in paths)
            names = [
                field.name
                for field in self.schema(group)
                if field.name.lower() in used_names or (bare and not pa.types.is_binary(field.type))
            ]
            fields = ", ".join(f"{quoted(name)} := {quoted(group)}.{quoted(name)}" for name in names or ["id"])
            parts.append(f"struct_pack({fields}) as {quoted(group)}")
            sides.append(quoted(group))
        sides = sides or [quoted(group) for group in groups if group != REJECTED][:1]
        if sides:
            joined = " positional join ".join(sides)
            connection.execute(f"create view {ROWS} as select {', '.join(parts)} from {joined}")  # noqa: S608

    def _arrow(self, group: str, first: int, end: int | None) -> Any:
        """An Arrow dataset of a group's rows, in order, with nulls for shards that are missing."""
        from labeling.dataset.arrow_shards import arrow_shards

        places, is_aligned = self._places_of(group), group != REJECTED
        return arrow_shards(self.dataset, group, self.schema(group), places, first, end, is_aligned)

    def _places_of(self, group: str) -> Places:
        """Kept: a condition is evaluated on some hundred shards at a time, and to look all of them up each time would
        take longer than to evaluate it."""
        from labeling.dataset.arrow_shards import Places

        if group not in self._places:
            table = self._footers[group]
            rows, sizes = table.table["rows"].to_numpy(), table.table["size"].to_numpy()
            self._places[group] = Places(table.positions(self.dataset.shard_names), rows, sizes)
        return self._places[group]


@contextmanager
def explained_sql(tables: Tables, what: str) -> Iterator[None]:
    """DuckDB's errors as an InputError of one line, with the columns there are where a name is wrong."""
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        if "halffloat" in str(error):
            again = f"`label {tables.dataset.uri} --store-again` stores them alike"
            raise InputError(f"{what}: a column of arrays is stored in two ways in its shards; {again}") from None
        text = re.split(r"\n\s*LINE \d+:|Candidate \w+:", str(error))[0].partition(" Error: ")[2]
        there = ""
        if _COLUMN.search(text):
            there = f"; there are {listed(tables.telling_columns())}"
        elif _TABLE.search(text):
            there = f"; there are {listed([ROWS, *tables.with_rows(tables.names)])}"
        raise InputError(f"{what}: {one_line(text, 400).rstrip('.!')}{there}") from None


def _reads_all_groups(mentioned: Mentioned) -> bool:
    """Whether a statement that names `rows` takes all of its columns."""
    own = {alias for table, alias in mentioned.aliases if table == ROWS}
    return mentioned.star or any(path[-1].lower() in own for path in mentioned.columns)


def quoted(name: str) -> str:
    """A name in SQL."""
    return '"' + name.replace('"', '""') + '"'


def listed(names: Sequence[str]) -> str:
    """Names in a line, many of them cut short."""
    rest = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f" and {rest} others" if rest > 0 else "")


def _unified(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """The columns of all. Of arrays that some shards store as lists the type is that of the first: others are read."""
    import pyarrow as pa

    try:
        return pa.unify_schemas(schemas)
    except pa.ArrowException:
        return pa.schema({field.name: field.type for schema in reversed(schemas) for field in schema})


def _known_type(kind: pa.DataType) -> pa.DataType:
    """The type as which DuckDB takes a column: it has no numbers of 16 bits."""
    import pyarrow as pa

    if pa.types.is_float16(kind):
        return pa.float32()
    if pa.types.is_list(kind):
        return pa.list_(_known_type(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _known_type(field.type)) for field in kind])
    return kind


def known_types(table: pa.Table) -> pa.Table:
    """The table with the types that DuckDB takes."""
    import pyarrow as pa

    return table.cast(pa.schema([pa.field(field.name, _known_type(field.type)) for field in table.schema]))
