"""Digests of what columns hold: equal values give equal digests, whatever the layout in memory or on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from model.inputs import InputError


def json_text(value: Any) -> str:
    """The text of a JSON value that its digest is of: keys sorted, no blanks."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest_json(value: Any) -> str:
    """Digest of a JSON value (keys sorted)."""
    return hashlib.blake2b(json_text(value).encode(), digest_size=16).hexdigest()


def digest_column(column: pa.ChunkedArray | pa.Array) -> str:
    """Digest of a column's type and values. Raises InputError as `check_type`."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    digest = hashlib.blake2b(digest_size=16)
    _update(digest, column.type, chunks)
    return digest.hexdigest()


def check_type(kind: pa.DataType) -> None:
    """Raise InputError for a type whose values cannot be told apart by their bytes (large_string, dictionary, …)."""
    if pa.types.is_struct(kind):
        for field in kind:
            check_type(field.type)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        check_type(kind.value_type)
    elif not (
        any(test(kind) for test in (pa.types.is_string, pa.types.is_binary, pa.types.is_null))
        or (pa.types.is_primitive(kind) and not (pa.types.is_time(kind) or pa.types.is_interval(kind)))
    ):
        raise InputError(f"columns of type {kind} cannot be stored; use numbers, string, binary, list_ or struct")


def _update(digest: Any, kind: pa.DataType, chunks: Sequence[pa.Array]) -> None:
    # Arrow leaves undefined bytes behind nulls and may slice its buffers: hash validity, lengths and flattened values.
    # Parquet renames what a list's element is called, so only leaves count by their full type. Chunks stay as they are,
    # since one array cannot hold more than 2 GiB.
    if pa.types.is_struct(kind):
        digest.update(f"struct({','.join(field.name for field in kind)})".encode())
    else:
        digest.update(b"list" if pa.types.is_list(kind) else str(kind).encode())
    digest.update(sum(map(len, chunks)).to_bytes(8, "little"))
    digest.update(_packed([chunk.is_valid() for chunk in chunks]))
    if pa.types.is_struct(kind):
        fields = [chunk.flatten() for chunk in chunks]
        for index in range(kind.num_fields):
            _update(digest, kind.field(index).type, [each[index] for each in fields])
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        for chunk in chunks:
            digest.update(_lengths(chunk))
        _update(digest, kind.value_type, [chunk.flatten() for chunk in chunks])
    elif pa.types.is_string(kind) or pa.types.is_binary(kind):
        for chunk in chunks:
            digest.update(_lengths(chunk, "binary_length"))
        for chunk in chunks:
            for value in chunk.cast(pa.large_binary()).drop_null():
                digest.update(value.as_buffer())
    elif pa.types.is_boolean(kind):
        digest.update(_packed([chunk.drop_null() for chunk in chunks]))
    elif pa.types.is_null(kind):
        pass
    else:
        check_type(kind)  # others have no values here but pointers
        for chunk in chunks:
            values = np.ascontiguousarray(chunk.drop_null().to_numpy(zero_copy_only=False))
            digest.update(values.view(np.uint8).data)


def _packed(chunks: Sequence[pa.Array]) -> bytes:
    """Booleans as bits."""
    values = [chunk.to_numpy(zero_copy_only=False) for chunk in chunks]
    return np.packbits(np.concatenate(values)).tobytes() if values else b""


def _lengths(array: pa.Array, function: str = "list_value_length") -> bytes:
    import pyarrow.compute as pc

    return bytes(pc.call_function(function, [array]).drop_null().cast(pa.int64()).to_numpy().tobytes())
