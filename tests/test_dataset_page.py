"""docs/dataset.md suffices for the format: a reader written from it agrees with every stored digest, and what a writer
written from it makes is a dataset."""

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

from labeling.dataset import Dataset, GroupStatus, dataset_status

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
def test_reader_written_from_the_page_agrees_with_stored_digests(name: str) -> None:
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


def write_group(folder: Path, declaration: dict[str, Any], table: pa.Table, read: list[list[str]]) -> dict[str, str]:
    """Write group.json and shard 000000 of one row group by the page; the digests of the columns."""
    folder.mkdir(parents=True)
    (folder / "group.json").write_text(json.dumps(declaration))
    columns = {field.name: blake(emitted(field.type, table[field.name].to_pylist())) for field in table.schema}
    made_by = {key: declaration[key] for key in ("labeler", "version", "parameters", "weights")}
    errors = len(table) - table["error"].null_count if "error" in columns else 0
    with pq.ParquetWriter(folder / "000000.parquet", table.schema) as writer:
        writer.write_table(table)
        footer = {"recipe": json_digest([made_by, sorted(read)]), "content": json_digest(columns)}
        writer.add_key_value_metadata({**footer, "columns": json.dumps(columns), "errors": str(errors)})
    return columns


def test_writer_written_from_the_page_makes_a_dataset(tmp_path: Path) -> None:
    images = pa.table({"id": ["a", "b"], "image": [b"1", b"2"], "width": pa.array([4, 4], pa.int32())})
    source: dict[str, Any] = {"labeler": "ingest", "version": 1, "parameters": {}, "weights": "", "reads": []}
    columns = write_group(tmp_path / "images", source, images, [["source", "any"]])
    error = pa.array([None, "too dark"], pa.string())
    labels = pa.table({"id": ["a", "b"], "caption": ["a cat", None], "model": ["m", "m"], "error": error})
    caption = {**source, "labeler": "caption", "parameters": {"threshold": 0.25}, "reads": ["images.image"]}
    read = [["images.id", columns["id"]], ["images.image", columns["image"]]]
    write_group(tmp_path / "caption", caption, labels, read)
    shards = [{"name": "000000", "rows": 2, "source": 0}]
    description = {"schema": 1, "kind": "pictures", "shards": shards, "sources": [{"uri": "/pictures"}]}
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    dataset = Dataset.open(tmp_path)
    assert dataset_status(dataset) == {
        "images": GroupStatus(fresh=1, rows=2),
        "caption": GroupStatus(fresh=1, rows=2, errors=1),
    }
    joined = dataset.join("000000", {"images": ["id", "image"], "caption": ["id", "caption"]}).to_pylist()
    assert [(row["images.image"], row["caption.caption"]) for row in joined] == [(b"1", "a cat"), (b"2", None)]
