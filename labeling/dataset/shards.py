"""The dataset of aligned column groups: Parquet shards with the same rows in the same order in every group.

    dataset.json              schema version, kind of rows, the shards with their row counts, sources
    GROUP/group.json          what is wanted: labeler, version, parameters, weights digest, columns read
    GROUP/000000.parquet      the group's columns; its footer says how they came to be
    GROUP/index.parquet       cache of footers, harmless to delete

A shard is written under its final name, whole or absent, and is done when the `recipe` in its footer is the expected
one. This module is the contract that the other folders may import.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from labeling.dataset.digests import digest_column, digest_json
from labeling.dataset.storage import Entry, Store, open_store
from model.inputs import InputError

__all__ = ["SCHEMA_VERSION", "Dataset", "Footer", "ShardInfo", "open_store", "recipe", "write_shard"]

SCHEMA_VERSION = 1
INDEX = "index.parquet"


@dataclass(frozen=True)
class ShardInfo:
    """One shard: its name, its rows, and the source (index into dataset.json's sources) it was cut from."""

    name: str
    rows: int
    source: int = 0


@dataclass(frozen=True)
class Footer:
    """What a shard says of itself.

    recipe: digest of labeler, version, parameters, weights and the content of the columns read; content: digest of
    all columns; columns: digest of each; errors: rows with a reason in `error`; row_groups: rows in each row group.
    """

    recipe: str
    content: str
    columns: dict[str, str]
    rows: int
    errors: int
    row_groups: list[int]


def recipe(declaration: Mapping[str, Any], read: Mapping[str, str]) -> str:
    """Recipe of a shard: what its group declares, and the digest of each column read ("group.column" → digest)."""
    wanted = {key: declaration[key] for key in ("labeler", "version", "parameters", "weights")}
    return digest_json([wanted, sorted(read.items())])


class Dataset:
    """A dataset on disk or S3, read lazily: opening costs one small file."""

    def __init__(self, uri: str | Path) -> None:
        self.store: Store = open_store(uri)
        self.uri = self.store.uri

    @classmethod
    def open(cls, uri: str | Path) -> Dataset:
        """The dataset at `uri`. Raises InputError when there is none or it has another schema version."""
        dataset = cls(uri)
        version = dataset.description["schema"]
        if version != SCHEMA_VERSION:
            raise InputError(f"{uri}: dataset of schema version {version}, this program reads {SCHEMA_VERSION}")
        return dataset

    def __reduce__(self) -> tuple[type[Dataset], tuple[str]]:
        return Dataset, (self.uri,)

    @cached_property
    def description(self) -> dict[str, Any]:
        """dataset.json. Raises InputError when it is not there."""
        try:
            return dict(json.loads(self.store.read("dataset.json")))
        except FileNotFoundError:
            raise InputError(f"{self.uri}: no dataset there (no dataset.json); make it with `ingest`") from None

    @property
    def kind(self) -> str:
        """ "pictures" (a row is a picture) or "sets" (a row is a set of views, its columns are lists)."""
        return str(self.description["kind"])

    @cached_property
    def shards(self) -> list[ShardInfo]:
        """The shards, in order."""
        return [ShardInfo(**shard) for shard in self.description["shards"]]

    def groups(self) -> list[str]:
        """Declared column groups, `images` first, the others by name."""
        names = [name for name in self.store.folders() if self.store.exists(f"{name}/group.json")]
        return sorted(names, key=lambda name: (name != "images", name))

    def declaration(self, group: str) -> dict[str, Any] | None:
        """group.json of a group, None where it is not declared."""
        try:
            return dict(json.loads(self.store.read(f"{group}/group.json")))
        except FileNotFoundError:
            return None

    def declare(self, group: str, declaration: Mapping[str, Any]) -> None:
        """Say what is wanted of a group."""
        self.store.put(f"{group}/group.json", json.dumps(declaration, indent=1, sort_keys=True).encode() + b"\n")

    def footers(self, group: str, save: bool = False) -> dict[str, Footer]:
        """Footers of the group's shards that are there, by shard name: one listing, and the footers that changed.

        save: keep what was learned in GROUP/index.parquet, where one may write there.
        """
        listing = self.store.files(group)
        names = [shard.name for shard in self.shards if f"{shard.name}.parquet" in listing]
        known = self._load_index(group) if INDEX in listing else {}
        found, changed = {}, False
        for name in names:
            entry = listing[f"{name}.parquet"]
            cached = known.get(name)
            if cached and cached[0] == entry:
                found[name] = cached[1]
            else:
                found[name] = self.footer(group, name)
                changed = True
        if save and (changed or len(known) != len(found)):
            with suppress(InputError, OSError):  # only a cache, and one may read where one may not write
                self._save_index(group, {name: (listing[f"{name}.parquet"], footer) for name, footer in found.items()})
        return found

    def footer(self, group: str, shard: str) -> Footer:
        """Footer of one shard. Raises FileNotFoundError, InputError for a file this project did not write."""
        with self.store.open(f"{group}/{shard}.parquet") as file:
            return _footer(pq.ParquetFile(file).metadata, f"{self.uri}/{group}/{shard}.parquet")

    def read(
        self, group: str, shard: str, columns: Sequence[str] | None = None, row_groups: Sequence[int] | None = None
    ) -> pa.Table:
        """Columns of a shard (all by default), of some of its row groups (all by default)."""
        with self.store.open(f"{group}/{shard}.parquet") as file:
            parquet = pq.ParquetFile(file)
            chosen = list(columns) if columns is not None else None
            if row_groups is None:
                return parquet.read(columns=chosen)
            return parquet.read_row_groups(list(row_groups), columns=chosen)

    def rows(self, group: str, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """All rows of a group in order, as Python values: for small datasets and reports."""
        for shard in self.shards:
            if self.store.exists(f"{group}/{shard.name}.parquet"):
                yield from self.read(group, shard.name, columns).to_pylist()

    def _load_index(self, group: str) -> dict[str, tuple[Entry, Footer]]:
        try:
            with self.store.open(f"{group}/{INDEX}") as file:
                rows = pq.read_table(file).to_pylist()
            return {row["name"]: (Entry(row["size"], row["tag"]), Footer(**json.loads(row["footer"]))) for row in rows}
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
            return {}  # only a cache: an unreadable one is made anew

    def _save_index(self, group: str, footers: Mapping[str, tuple[Entry, Footer]]) -> None:
        rows = [
            {"name": name, "size": entry.size, "tag": entry.tag, "footer": json.dumps(asdict(footer), sort_keys=True)}
            for name, (entry, footer) in footers.items()
        ]
        name = f"{group}/{INDEX}"
        path = self.store.scratch(name)
        pq.write_table(pa.Table.from_pylist(rows), path)
        self.store.put_file(name, path)


def write_shard(
    store: Store, group: str, shard: str, table: pa.Table, row_groups: Sequence[int], shard_recipe: str
) -> Footer:
    """Write one shard of a group, whole or absent, with the row boundaries given.

    The local temporary file is read back and compared before it gets its name. The same table gives the same bytes.
    Raises OSError when what was read back is not what was written.
    """
    assert sum(row_groups) == table.num_rows, "row groups must cover the table"
    columns = {name: digest_column(table[name]) for name in table.column_names}
    errors = table.num_rows - table["error"].null_count if "error" in table.column_names else 0
    footer = Footer(shard_recipe, digest_json(columns), columns, table.num_rows, errors, list(row_groups))
    metadata = {
        "recipe": footer.recipe,
        "content": footer.content,
        "columns": json.dumps(columns, sort_keys=True),
        "errors": str(errors),
    }
    # Pictures are compressed already; other columns gain from zstd. No reader uses statistics or dictionaries.
    compression = {name: "none" if _holds_pictures(table.schema.field(name).type) else "zstd" for name in columns}
    name = f"{group}/{shard}.parquet"
    path = store.scratch(name)
    schema = table.schema.remove_metadata()
    with pq.ParquetWriter(
        path, schema, compression=_by_leaf(schema, compression), use_dictionary=False, write_statistics=False
    ) as writer:
        start = 0
        for rows in row_groups:
            writer.write_table(table.slice(start, rows), row_group_size=max(rows, 1))
            start += rows
        writer.add_key_value_metadata(metadata)
    written = pq.read_table(path)
    if {column: digest_column(written[column]) for column in written.column_names} != columns:
        raise OSError(f"{store.uri}/{name}: what was written reads back differently; is the disk sound?")
    store.put_file(name, path)
    return footer


def _footer(metadata: pq.FileMetaData, place: str) -> Footer:
    values = metadata.metadata or {}
    if b"recipe" not in values:
        raise InputError(f"{place}: not a shard of this project (no recipe in its footer); move it away")
    return Footer(
        values[b"recipe"].decode(),
        values[b"content"].decode(),
        json.loads(values[b"columns"]),
        metadata.num_rows,
        int(values[b"errors"]),
        [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)],
    )


def _holds_pictures(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or (pa.types.is_list(kind) and _holds_pictures(kind.value_type))


def _by_leaf(schema: pa.Schema, compression: Mapping[str, str]) -> dict[str, str]:
    """Parquet names nested columns by their leaves (a.list.element, …), so spell those out."""
    leaves = {}

    def visit(path: str, kind: pa.DataType, codec: str) -> None:
        if pa.types.is_list(kind):
            visit(f"{path}.list.element", kind.value_type, codec)
        elif pa.types.is_struct(kind):
            for field in kind:
                visit(f"{path}.{field.name}", field.type, codec)
        else:
            leaves[path] = codec

    for field in schema:
        visit(field.name, field.type, compression[field.name])
    return leaves
