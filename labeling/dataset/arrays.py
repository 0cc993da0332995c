"""Lists of float16 (latents, embeddings) as they are stored: raw bytes in binary columns.

A Parquet list pays levels for every number of it, which takes most of the time of reading a latent. What is read and
written through this package stays a list of float16, and so do digests: how a shard stores its lists is as little a
part of its content as compression is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

ARRAYS = "arrays"  # key of the footer: JSON object, column (fields of structs joined by dots) → type of its numbers
ITEM = np.dtype("<f2")
MAX_PAGE = 1 << 30  # bytes of a row group's values, which are one page; Parquet's limit is 2 GiB


class _UnsuitedError(Exception):
    """A column whose lists stay as they are."""


def with_bytes(table: pa.Table, row_groups: Sequence[int]) -> tuple[pa.Table, list[str]]:
    """The table with its lists of float16 as binary values, and the columns that are so now.

    Columns in which a number is null, or a row group has more than fits a page, stay lists.
    """
    paths: list[str] = []
    ends = np.cumsum(row_groups, dtype=np.int64).tolist()
    for index, name in enumerate(table.column_names):
        column = table[name]
        if of_column := array_paths(column.type, name):
            try:
                chunks = [
                    _converted(part, name, _to_bytes)
                    for rows, end in zip(row_groups, ends, strict=True)
                    for part in _whole(column.slice(end - rows, rows))
                ]
            except _UnsuitedError:
                continue
            chunks = chunks or [_converted(pa.array([], column.type), name, _to_bytes)]
            table = table.set_column(index, name, pa.chunked_array(chunks))
            paths += of_column
    return table, paths


def arrays_text(paths: Sequence[str]) -> str:
    """What the footer says of the columns that are stored as bytes."""
    return json.dumps(dict.fromkeys(sorted(paths), "float16"))


def with_lists(table: pa.Table, footer: Mapping[bytes, bytes] | None) -> pa.Table:
    """A table that was read from a file with this key-value metadata, its arrays as lists of float16."""
    paths = frozenset(json.loads((footer or {}).get(ARRAYS.encode(), b"{}")))
    names = {path.partition(".")[0] for path in paths}

    def convert(path: str, array: pa.Array) -> pa.Array:
        return _to_list(array) if path in paths and pa.types.is_binary(array.type) else array

    for index, name in enumerate(table.column_names):
        if name in names:
            column = table[name]
            kind = _converted(pa.array([], column.type), name, convert).type
            chunks = [_converted(chunk, name, convert) for chunk in column.chunks]
            table = table.set_column(index, name, pa.chunked_array(chunks, kind))
    return table


def array_paths(kind: pa.DataType, path: str) -> list[str]:
    """Where a type has lists of float16: the path and the names of fields below it, joined by dots."""
    if pa.types.is_struct(kind):
        return [inner for field in kind for inner in array_paths(field.type, f"{path}.{field.name}")]
    if not pa.types.is_list(kind):
        return []
    return [path] if pa.types.is_float16(kind.value_type) else array_paths(kind.value_type, path)


def _converted(array: pa.Array, path: str, convert: Callable[[str, pa.Array], pa.Array]) -> pa.Array:
    """The array with `convert` applied to what is in its lists and structs; lists of float16 are not entered."""
    kind = array.type
    if pa.types.is_list(kind) and not pa.types.is_float16(kind.value_type):
        values = _converted(array.flatten(), path, convert)
        return pa.ListArray.from_arrays(
            pa.array(_offsets(_lengths(array))),
            values,
            pa.list_(pa.field("element", values.type)),
            mask=array.is_null() if array.null_count else None,
        )
    if pa.types.is_struct(kind):
        fields = [_converted(array.field(index), f"{path}.{field.name}", convert) for index, field in enumerate(kind)]
        names = [field.name for field in kind]
        return pa.StructArray.from_arrays(fields, names, mask=array.is_null() if array.null_count else None)
    return convert(path, array)


def _to_bytes(_path: str, array: pa.Array) -> pa.Array:
    """A list of float16 as binary; others as they are."""
    if not pa.types.is_list(array.type):
        return array
    values = array.flatten()
    if values.null_count or values.nbytes + 4 * len(array) > MAX_PAGE:
        raise _UnsuitedError
    data = np.ascontiguousarray(values.to_numpy(zero_copy_only=False), ITEM)
    buffers = [_validity(array), pa.py_buffer(_offsets(_lengths(array) * ITEM.itemsize)), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.binary(), len(array), buffers)


def _to_list(array: pa.Array) -> pa.Array:
    """Binary as a list of float16, over the same bytes."""
    _, offsets, data = array.buffers()
    bounds = np.frombuffer(offsets, np.int32, len(array) + 1, 4 * array.offset) if len(array) else np.zeros(1, np.int32)
    values = pa.Array.from_buffers(pa.float16(), 0 if data is None else data.size // ITEM.itemsize, [None, data])
    buffers = [_validity(array), pa.py_buffer(bounds // ITEM.itemsize)]
    kind = pa.list_(pa.field("element", pa.float16()))
    return pa.Array.from_buffers(kind, len(array), buffers, children=[values])


def _whole(column: pa.ChunkedArray) -> list[pa.Array]:
    """Rows as one array, none where there are no rows."""
    return [column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)] if len(column) else []


def _validity(array: pa.Array) -> pa.Buffer | None:
    if not array.null_count:
        return None
    return pa.py_buffer(np.packbits(array.is_valid().to_numpy(zero_copy_only=False), bitorder="little"))


def _lengths(array: pa.Array) -> NDArray[np.int64]:
    return array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)


def _offsets(lengths: NDArray[np.int64]) -> NDArray[np.int32]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
