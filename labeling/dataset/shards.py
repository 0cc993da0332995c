"""One shard of a column group: a Parquet file whose footer says how it came to be.

A shard is written under its final name, whole or absent. It is done when the `recipe` in its footer is as expected.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from labeling.dataset.arrays import ARRAYS, MAX_PAGE, arrays_text, with_bytes, with_lists
from labeling.dataset.checksums import CHECKSUMS, checksums_text, damaged_shard, read_checksums, read_table
from labeling.dataset.digests import digest_column, digest_json
from labeling.dataset.images import IMAGES
from labeling.dataset.places import IMAGE, PLACES, SIZES, places_text, sizes_text
from labeling.dataset.storage import Entry, Ranges, Store
from model.inputs import InputError, one_line

SUFFIX = ".parquet"
FOOTER_BYTES = 1 << 17  # read from a shard's end at once; that of 1,024 texts for ten tasks has 80 KB
_PAGE_ROWS = 20_000  # Parquet's limit where no other is asked for
RECIPE_FIELDS = ("labeler", "version", "parameters", "weights")  # of a group's declaration: what makes shards stale


@dataclass(frozen=True)
class Footer:
    """What a shard says of itself.

    recipe: digest of labeler, version, parameters, weights and the content of the columns read; content: digest of
    all columns; columns: digest of each; errors: rows with a reason in `error`; row_groups: rows in each row group;
    entry: the file that says so, as a listing shows it.
    """

    recipe: str
    content: str
    columns: dict[str, str]
    rows: int
    errors: int
    row_groups: list[int]
    entry: Entry | None = dataclasses.field(default=None, compare=False)


def shard_file(group: str, shard: str) -> str:
    """Name of a shard's file in its dataset."""
    return f"{group}/{shard}{SUFFIX}"


def recipe(declaration: Mapping[str, Any], read: Mapping[str, str]) -> str:
    """Recipe of a shard: what its group declares, and the digest of each column read ("group.column" → digest)."""
    made_by = {key: declaration[key] for key in RECIPE_FIELDS}
    return digest_json([made_by, sorted(read.items())])


def write_shard(
    store: Store,
    group: str,
    shard: str,
    table: pa.Table,
    row_groups: Sequence[int],
    shard_recipe: str,
    content: str | None = None,
) -> Footer:
    """Write one shard of a group, whole or absent, with the row boundaries given.

    The local temporary file is read back and compared before it gets its name. The same table gives the same bytes.
    content: of the shard that the table was read from, to store it again. Raises OSError when what was read back is not
    what was written, InputError, and leaves the file alone, when the table is not what that shard says that it holds.
    """
    assert sum(row_groups) == table.num_rows, "row groups must cover the table"
    columns = {name: digest_column(table[name]) for name in table.column_names}
    errors = table.num_rows - table["error"].null_count if "error" in table.column_names else 0
    footer = Footer(shard_recipe, digest_json(columns), columns, table.num_rows, errors, list(row_groups))
    if content is not None and content != footer.content:
        raise damaged_shard(f"{store.uri}/{shard_file(group, shard)}", None)
    stored, arrays = with_bytes(table, row_groups)
    metadata = _metadata(footer, table, stored, arrays)
    name = shard_file(group, shard)
    path = store.scratch(name)
    try:
        _write_parquet(path, stored, row_groups, bool(arrays) or SIZES in metadata, metadata)
        with pq.ParquetFile(path) as parquet:
            written = with_lists(read_table(parquet), parquet.metadata.metadata)
        if {column: digest_column(written[column]) for column in written.column_names} != columns:
            raise OSError(f"{store.uri}/{name}: what was written reads back differently; is the disk sound?")
        return replace(footer, entry=store.put_file(name, path))
    finally:
        store.discard(path)


def _metadata(footer: Footer, table: pa.Table, stored: pa.Table, arrays: list[str]) -> dict[str, str]:
    """What a shard's file says of itself. stored, arrays: the table as bytes, and how its arrays are read from them."""
    metadata = {
        "recipe": footer.recipe,
        "content": footer.content,
        "columns": json.dumps(footer.columns, sort_keys=True),
        "errors": str(footer.errors),
    }
    if arrays:
        metadata[ARRAYS] = arrays_text(arrays)
        if places := places_text(table, arrays):
            metadata[PLACES] = places
    if sizes := sizes_text(table, footer.row_groups):
        metadata[SIZES] = sizes
    metadata[CHECKSUMS] = checksums_text(stored, arrays if PLACES in metadata else [IMAGE] if sizes else [])
    return metadata


def _write_parquet(
    path: Path, stored: pa.Table, row_groups: Sequence[int], has_values: bool, metadata: Mapping[str, str]
) -> None:
    """Write a Parquet file.

    Images are compressed already, and single images and arrays are read from the one page of a row group; other columns
    gain from zstd. No reader uses statistics or dictionaries.
    """
    schema = stored.schema.remove_metadata()
    with pq.ParquetWriter(
        path,
        schema,
        compression=_compression(schema),
        use_dictionary=False,
        write_statistics=False,
        write_page_checksum=True,
        data_page_size=MAX_PAGE if has_values else None,
        max_rows_per_page=max(_PAGE_ROWS, *row_groups, 0),
    ) as writer:
        start = 0
        for rows in row_groups:
            writer.write_table(stored.slice(start, rows), row_group_size=max(rows, 1))
            start += rows
        writer.add_key_value_metadata(metadata)


def read_footer(store: Store, group: str, shard: str, listed: int | None = None) -> Footer:
    """Footer of one shard, by one request in most cases: of two only where the footer is larger than usual.

    listed: the size of the file in bytes, where it is known. Raises FileNotFoundError, InputError for a file that this
    project did not write.
    """
    metadata, entry = read_metadata(store, group, shard, listed)
    return footer_of(metadata, entry, f"{store.uri}/{shard_file(group, shard)}")


def footer_of(metadata: pq.FileMetaData, entry: Entry, address: str) -> Footer:
    """What the metadata of a shard says of it. Raises InputError for a file that this project did not write."""
    values = metadata.metadata or {}
    if b"recipe" not in values:
        raise InputError(f"{address}: not a shard of this project (no recipe in its footer); move it away")
    return Footer(
        values[b"recipe"].decode(),
        values[b"content"].decode(),
        json.loads(values[b"columns"]),
        metadata.num_rows,
        int(values[b"errors"]),
        row_groups_of(metadata),
        entry,
    )


def read_metadata(
    store: Store, group: str, shard: str, listed: int | None = None, opened: Ranges | None = None
) -> tuple[pq.FileMetaData, Entry]:
    """What a shard's end says of it, as `read_footer` reads it, and its file. opened: the file, where it is.

    Raises FileNotFoundError, InputError.
    """
    name = shard_file(group, shard)
    tail, entry = opened.read_tail(FOOTER_BYTES) if opened else store.read_tail(name, FOOTER_BYTES, listed)
    length = int.from_bytes(tail[-8:-4], "little") + 8  # Parquet ends with the footer's length and "PAR1"
    if len(tail) < length <= entry.size:
        tail, entry = opened.read_tail(length) if opened else store.read_tail(name, length, entry.size)
    try:
        metadata = pq.read_metadata(pa.BufferReader(tail))
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{store.uri}/{name}: not a Parquet file, or cut off ({one_line(error)}); move it away"
        ) from None
    return metadata, entry


def is_stored_as_now(store: Store, group: str, shard: str) -> bool:
    """Whether a shard has checksums, and one of images their sizes; those without may have lists of float16 too.

    Raises as `read_footer`.
    """
    metadata, _ = read_metadata(store, group, shard)
    return read_checksums(metadata)[0] and (group != IMAGES or SIZES.encode() in metadata.metadata)


def row_groups_of(metadata: pq.FileMetaData) -> list[int]:
    """Rows in each row group of a Parquet file."""
    return [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]


def _compression(schema: pa.Schema) -> dict[str, str]:
    """Compression by the leaves of columns: Parquet names nested columns by them (a.list.element, …)."""
    leaves = {}

    def visit(path: str, kind: pa.DataType) -> None:
        if pa.types.is_list(kind):
            visit(f"{path}.list.element", kind.value_type)
        elif pa.types.is_struct(kind):
            for field in kind:
                visit(f"{path}.{field.name}", field.type)
        else:
            leaves[path] = "none" if pa.types.is_binary(kind) else "zstd"

    for field in schema:
        visit(field.name, field.type)
    return leaves
