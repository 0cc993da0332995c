"""docs/dataset.md as another program would read it: digests and recipes computed by its words, without our code."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from labeling.dataset import open_store, recipe, write_shard

Value = Any
FORMATS = {"float": "f", "int32": "i", "int64": "q", "halffloat": "e", "double": "d"}


def blake(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def digest_of_json(value: Value) -> str:
    return blake(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())


def bits(flags: list[bool]) -> bytes:
    """One bit a flag, the first in the highest bit."""
    padded = flags + [False] * (-len(flags) % 8)
    return bytes(
        sum(flag << (7 - place) for place, flag in enumerate(padded[at : at + 8])) for at in range(0, len(padded), 8)
    )


def emit(kind: pa.DataType, values: list[Value]) -> bytes:
    """The bytes of a column of Python values, by the four steps of the page."""
    is_struct, is_list = pa.types.is_struct(kind), pa.types.is_list(kind)
    name = f"struct({','.join(field.name for field in kind)})" if is_struct else "list" if is_list else str(kind)
    valid = [value for value in values if value is not None]
    head = name.encode() + struct.pack("<q", len(values)) + bits([value is not None for value in values])
    if is_struct:
        parts = [emit(f.type, [None if value is None else value[f.name] for value in values]) for f in kind]
        return head + b"".join(parts)
    if is_list:
        flat = [item for value in valid for item in value]
        return head + struct.pack(f"<{len(valid)}q", *map(len, valid)) + emit(kind.value_type, flat)
    if name in ("string", "binary"):
        encoded = [value.encode() if isinstance(value, str) else value for value in valid]
        return head + struct.pack(f"<{len(valid)}q", *map(len, encoded)) + b"".join(encoded)
    if name == "bool":
        return head + bits(valid)
    return head + struct.pack(f"<{len(valid)}{FORMATS[name]}", *valid)


def test_a_footer_follows_from_the_page(tmp_path: Path) -> None:
    box = pa.struct([("x0", pa.float32()), ("name", pa.string())])
    table = pa.table(
        {
            "id": ["a", "b", "ü"],
            "image": pa.array([b"\x00\x01", None, b""], pa.binary()),
            "flag": pa.array([True, None, False]),
            "boxes": pa.array([[{"x0": 1.5, "name": None}, None], None, []], pa.list_(box)),
            "latent": pa.array([[0.5, -2.0], [], None], pa.list_(pa.float16())),
            "levels": pa.array([[[1], [2, 3]], [None], []], pa.list_(pa.list_(pa.int32()))),
            "error": pa.array([None, "no boxes", None], pa.string()),
        }
    )
    declaration = {"labeler": "mine", "version": 2, "parameters": {"low": 1.0, "name": "ü"}, "weights": "", "reads": []}
    read = {"images.image": "1" * 32, "images.id": "0" * 32}
    write_shard(open_store(tmp_path), "mine", "000000", table, [2, 1], recipe(declaration, read))
    parquet = pq.ParquetFile(tmp_path / "mine" / "000000.parquet")
    footer = {key.decode(): value.decode() for key, value in parquet.metadata.metadata.items()}
    stored = parquet.read()
    columns = {
        name: blake(emit(table.schema.field(name).type, stored[name].to_pylist())) for name in table.column_names
    }
    assert json.loads(footer["columns"]) == columns
    assert footer["content"] == digest_of_json(columns)
    stated = {key: declaration[key] for key in ("labeler", "version", "parameters", "weights")}
    assert footer["recipe"] == digest_of_json([stated, sorted([name, digest] for name, digest in read.items())])
    assert footer["errors"] == "1"
    assert [parquet.metadata.row_group(group).num_rows for group in range(2)] == [2, 1]


def test_binary_columns_are_stored_as_they_are_and_others_compressed(tmp_path: Path) -> None:
    table = pa.table({"id": ["a"], "image": pa.array([b"abc"]), "error": pa.array([None], pa.string())})
    write_shard(open_store(tmp_path), "images", "000000", table, [1], "r")
    group = pq.ParquetFile(tmp_path / "images" / "000000.parquet").metadata.row_group(0)
    kept = {group.column(index).path_in_schema: group.column(index) for index in range(group.num_columns)}
    assert {name: column.compression for name, column in kept.items()} == {
        "id": "ZSTD",
        "image": "UNCOMPRESSED",
        "error": "ZSTD",
    }
    assert not any(column.is_stats_set for column in kept.values())
