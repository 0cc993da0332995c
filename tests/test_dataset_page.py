"""docs/dataset.md suffices to read the format: a reader written from it alone agrees with every stored digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

STORED = Path(__file__).parent / "compatibility"


def blake(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def json_digest(value: Any) -> str:
    return blake(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())


def integers(numbers: Sequence[int]) -> bytes:
    return np.array(numbers, "<i8").tobytes()


def emitted(kind: pa.DataType, values: list[Any]) -> bytes:
    """The bytes of the page's procedure for a column, from plain Python values."""
    valid = [value for value in values if value is not None]
    name, tail = str(kind), b""
    if pa.types.is_struct(kind):
        name = f"struct({','.join(field.name for field in kind)})"
        tail = b"".join(emitted(field.type, [value and value[field.name] for value in values]) for field in kind)
    elif pa.types.is_list(kind):
        name = "list"
        tail = integers([len(value) for value in valid])
        tail += emitted(kind.value_type, [element for value in valid for element in value])
    elif pa.types.is_string(kind) or pa.types.is_binary(kind):
        encoded = [value.encode() if isinstance(value, str) else value for value in valid]
        tail = integers([len(value) for value in encoded]) + b"".join(encoded)
    elif not pa.types.is_null(kind):
        tail = np.array(valid, np.dtype(kind.to_pandas_dtype()).newbyteorder("<")).tobytes()
    validity = np.packbits(np.array([value is not None for value in values], bool)).tobytes()
    return name.encode() + len(values).to_bytes(8, "little") + validity + tail


@pytest.mark.parametrize("name", ["dataset", "views"])
def test_a_reader_written_from_the_page_agrees_with_stored_digests(name: str) -> None:
    folder = STORED / name
    description = json.loads((folder / "dataset.json").read_text())
    assert description["schema"] == 1
    for shard in (entry["name"] for entry in description["shards"]):
        digests: dict[str, str] = {}
        footers: dict[str, dict[str, str]] = {}
        for path in sorted(folder.glob(f"*/{shard}.parquet")):
            group, file = path.parent.name, pq.ParquetFile(path)
            table, metadata = file.read(), file.metadata.metadata
            footers[group] = {
                key: metadata[key.encode()].decode() for key in ("recipe", "content", "columns", "errors")
            }
            columns = {
                column: blake(emitted(table.schema.field(column).type, table[column].to_pylist()))
                for column in table.column_names
            }
            assert columns == json.loads(footers[group]["columns"]), group
            assert json_digest(columns) == footers[group]["content"], group
            errors = table["error"].to_pylist() if "error" in columns else []
            assert int(footers[group]["errors"]) == sum(error is not None for error in errors), group
            digests |= {f"{group}.{column}": digest for column, digest in columns.items()}
        for declared in sorted(folder.glob("*/group.json")):
            declaration = json.loads(declared.read_text())
            if declaration["reads"]:
                made_by = {key: declaration[key] for key in ("labeler", "version", "parameters", "weights")}
                read = sorted([column, digests[column]] for column in {"images.id", *declaration["reads"]})
                assert json_digest([made_by, read]) == footers[declared.parent.name]["recipe"], declared
