"""Freshness of shards: recipes against declarations and the columns read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from labeling.dataset import Dataset, GroupStatus, ShardInfo, dataset_status, expected_recipe, write_shard

SOURCE: dict[str, Any] = {"labeler": "ingest", "version": 1, "parameters": {}, "weights": "", "reads": []}
EDGES: dict[str, Any] = {**SOURCE, "labeler": "edges", "class": "old.module:Edges", "reads": ["images.image"]}


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Two shards of images, edges of the first."""
    dataset = Dataset(tmp_path)
    for shard in ("000000", "000001"):
        table = pa.table({"id": [shard], "image": [b"x"]})
        write_shard(dataset.store, "images", shard, table, [1], "from a source")
    dataset.describe("pictures", [ShardInfo("000000", 1), ShardInfo("000001", 1)], [])
    dataset.declare("images", SOURCE)
    dataset.declare("edges", EDGES)
    shard_recipe = expected_recipe(EDGES, "000000", {"images": dataset.footers("images")})
    assert shard_recipe is not None
    edges = pa.table({"id": ["000000"], "error": ["too dark"]})
    write_shard(dataset.store, "edges", "000000", edges, [1], shard_recipe)
    return dataset


def test_status_counts_fresh_missing_and_rows_in_error(dataset: Dataset) -> None:
    status = dataset_status(dataset)
    assert status == {
        "images": GroupStatus(fresh=2, rows=2),
        "edges": GroupStatus(fresh=1, missing=1, rows=1, errors=1),
    }


@pytest.mark.parametrize(
    ("change", "stale"),
    [({"version": 2}, 1), ({"parameters": {"low": 1}}, 1), ({"weights": "x"}, 1), ({"class": "new.module:Edges"}, 0)],
)
def test_declaration_makes_shards_stale_wherever_its_class_lies(
    dataset: Dataset, change: dict[str, Any], stale: int
) -> None:
    dataset.declare("edges", {**EDGES, **change})
    assert dataset_status(dataset)["edges"].stale == stale


def test_changed_values_of_a_column_read_make_a_shard_stale(dataset: Dataset) -> None:
    same_image = pa.table({"id": ["000000"], "image": [b"x"], "text": ["new"]})
    write_shard(dataset.store, "images", "000000", same_image, [1], "from a source")
    assert dataset_status(dataset)["edges"].fresh == 1
    write_shard(dataset.store, "images", "000000", pa.table({"id": ["000000"], "image": [b"y"]}), [1], "from a source")
    assert dataset_status(dataset)["edges"].stale == 1
