"""Joining groups of a shard: the same rows side by side."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from labeling.dataset import Dataset, ShardInfo, entry_columns, write_shard
from model.inputs import InputError

IDS = ["a", "b", "c"]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Three rows in two row groups: images, edges, and groups of other rows."""
    dataset = Dataset(tmp_path)
    entries = [[{"task": "edges", "prompt": name, "embedding": [1.0]}] for name in IDS]
    for group, table, row_groups in (
        ("images", pa.table({"id": IDS, "width": [1, 2, 3]}), [2, 1]),
        ("edges", pa.table({"id": IDS, "edges": [b"x", None, b"z"]}), [2, 1]),
        ("text", pa.table({"id": IDS, "entries": entries}), [2, 1]),
        ("shuffled", pa.table({"id": IDS[::-1], "value": [1, 2, 3]}), [2, 1]),
        ("recut", pa.table({"id": IDS, "value": [1, 2, 3]}), [1, 2]),
    ):
        write_shard(dataset.store, group, "000000", table, row_groups, "recipe")
    dataset.describe("pictures", [ShardInfo("000000", 3)], [])
    return dataset


def test_join_reads_rows_of_several_groups(dataset: Dataset) -> None:
    table = dataset.join("000000", {"edges": ["edges"], "images": None})
    assert table.column_names == ["images.id", "images.width", "edges.edges"]
    assert table.to_pylist()[2] == {"images.id": "c", "images.width": 3, "edges.edges": b"z"}
    assert dataset.join("000000", {"images": ["id"], "edges": None}, [1])["edges.id"].to_pylist() == ["c"]


def test_joined_rows_go_through_all_shards(dataset: Dataset) -> None:
    rows = list(dataset.joined_rows({"images": ["width"], "edges": ["edges"], "depth": None}))
    assert rows[2] == {"images.width": 3, "edges.edges": b"z"} and len(rows) == 3


def test_join_reads_entries_without_embeddings(dataset: Dataset) -> None:
    rows = dataset.join("000000", {"text": entry_columns(False, "task", "prompt")}).to_pylist()
    assert rows[0] == {"text.entries": [{"task": "edges", "prompt": "a"}]}


@pytest.mark.parametrize("group", ["shuffled", "recut"])
def test_join_refuses_other_rows_or_skips_them(dataset: Dataset, group: str) -> None:
    columns = {"images": ["id"], group: None}
    with pytest.raises(InputError, match=f"{group}/000000: other rows"):
        dataset.join("000000", columns)
    assert dataset.join("000000", columns, skip_missing=True).column_names == ["images.id"]


def test_join_raises_for_a_missing_shard_or_skips_it(dataset: Dataset) -> None:
    columns = {"images": ["id"], "depth": None}
    with pytest.raises(FileNotFoundError):
        dataset.join("000000", columns)
    assert dataset.join("000000", columns, skip_missing=True).num_rows == 3


def test_missing_shard_on_s3_is_skipped(s3: str, tmp_path: Path) -> None:
    dataset = Dataset(f"{s3}/{tmp_path.name}")
    write_shard(dataset.store, "images", "000000", pa.table({"id": IDS}), [3], "recipe")
    dataset.describe("pictures", [ShardInfo("000000", 3), ShardInfo("000001", 3)], [])
    columns = {"images": ["id"], "depth": None}
    assert dataset.join("000000", columns, skip_missing=True).column_names == ["images.id"]
    with pytest.raises(FileNotFoundError, match=r"depth/000000\.parquet"):
        dataset.join("000000", columns)
