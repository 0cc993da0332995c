"""docs/dataset.md as another program would read it: digests and recipes computed by its words, without our code."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import zlib
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


def numbers_of(value: bytes) -> list[float]:
    return list(struct.unpack(f"<{len(value) // 2}e", value))


def test_footer_follows_from_the_page(tmp_path: Path) -> None:
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
    assert json.loads(footer["arrays"]) == {"latent": "float16"}
    assert stored["latent"].to_pylist() == [struct.pack("<2e", 0.5, -2.0), b"", None]
    numbers = [None if value is None else numbers_of(value) for value in stored["latent"].to_pylist()]
    stored = stored.set_column(stored.column_names.index("latent"), "latent", pa.array(numbers, table["latent"].type))
    columns = {
        name: blake(emit(table.schema.field(name).type, stored[name].to_pylist())) for name in table.column_names
    }
    assert json.loads(footer["columns"]) == columns
    assert footer["content"] == digest_of_json(columns)
    stated = {key: declaration[key] for key in ("labeler", "version", "parameters", "weights")}
    assert footer["recipe"] == digest_of_json([stated, sorted([name, digest] for name, digest in read.items())])
    assert footer["errors"] == "1"
    assert [parquet.metadata.row_group(group).num_rows for group in range(2)] == [2, 1]


def test_places_of_arrays_follow_from_the_page(tmp_path: Path) -> None:
    entry = pa.struct([("task", pa.string()), ("tokens", pa.int32()), ("embedding", pa.list_(pa.float16()))])
    entries = [[("", 1, [1.0, 2.0]), ("depth", 2, [3.0] * 4)], None, [("", 1, [5.0, 6.0])]]
    rows = [row and [dict(zip(entry.names, values, strict=True)) for values in row] for row in entries]
    tables = {
        "text": pa.table({"entries": pa.array(rows, pa.list_(entry))}),
        "latents-16": pa.table(
            {
                "latent": pa.array([[0.5] * 32, None, [-1.0] * 64], pa.list_(pa.float16())),
                "latent_height": pa.array([1, None, 2], pa.int32()),
                "latent_width": pa.array([2, None, 2], pa.int32()),
            }
        ),
    }
    for group, table in tables.items():
        write_shard(open_store(tmp_path), group, "000000", table, [2, 1], "r")
        path = tmp_path / group / "000000.parquet"
        metadata = pq.ParquetFile(path).metadata
        places = json.loads(zlib.decompress(base64.b64decode(metadata.metadata[b"places"])))
        if group == "text":
            assert places == {
                "views": [1, 1, 1],
                "counts": [2, 0, 1],
                "tasks": ["", "depth"],
                "task": [0, 1, 0],
                "tokens": [1, 2, 1],
                "width": 2,
            }
            sizes = [[4, 8], [4]]
            expected = [[1.0, 2.0], [3.0] * 4, [5.0, 6.0]]
        else:
            assert places == {"height": [1, 0, 2], "width": [2, 0, 2], "views": [1, 1, 1]}
            sizes = [[64], [128]]
            expected = [one for one in table["latent"].to_pylist() if one is not None]
        found = []
        for number, of_group in enumerate(sizes):
            group_metadata = metadata.row_group(number)
            columns = map(group_metadata.column, range(group_metadata.num_columns))
            chunk = next(c for c in columns if c.path_in_schema.rpartition(".")[2] in ("latent", "embedding"))
            end = chunk.data_page_offset + chunk.total_compressed_size
            page = path.read_bytes()[end - sum(of_group) - 4 * len(of_group) : end]
            for size in of_group:
                assert struct.unpack("<I", page[:4]) == (size,)
                found.append(numbers_of(page[4 : 4 + size]))
                page = page[4 + size :]
        assert found == expected


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
