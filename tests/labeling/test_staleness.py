"""Why shards are stale, from declarations and footers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from labeling.dataset import Dataset, ShardInfo, expected_recipe, write_shard
from labeling.staleness import GroupPlan, plan_errors, plan_groups, plan_lines, ranges

NAMES = [f"{number:06d}" for number in range(6)]
SOURCE: dict[str, Any] = {"labeler": "ingest", "version": 1, "parameters": {}, "weights": "", "reads": []}
EDGES: dict[str, Any] = {
    "labeler": "edges",
    "version": 1,
    "parameters": {"low": 40, "high": 90},
    "weights": "a",
    "reads": ["images.image"],
}
DRAWN: dict[str, Any] = {**SOURCE, "labeler": "drawn", "reads": ["edges.edges", "images.image"]}
DECLARATIONS = {"edges": EDGES, "drawn": DRAWN}


def write_images(dataset: Dataset, shards: list[str], image: bytes = b"x") -> None:
    for shard in shards:
        table = pa.table({"id": [f"{shard}a", f"{shard}b"], "image": [image, image]})
        write_shard(dataset.store, "images", shard, table, [2], "from a source")


def make(dataset: Dataset, group: str, declaration: dict[str, Any], shards: list[str], errors: int = 0) -> None:
    """Label shards of a group as it is declared."""
    dataset.declare(group, declaration)
    for shard in shards:
        footers = {name: dataset.footers(name) for name in ("images", "edges")}
        recipe = expected_recipe(declaration, shard, footers)
        assert recipe is not None
        error = ["too dark"] * errors + [None] * (2 - errors)
        table = pa.table({"id": [f"{shard}a", f"{shard}b"], group: [b"e", b"e"], "error": pa.array(error, pa.string())})
        write_shard(dataset.store, group, shard, table, [2], recipe)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Six shards of two images each, with edges and what is drawn of them."""
    dataset = Dataset(tmp_path)
    write_images(dataset, NAMES)
    dataset.describe("pictures", [ShardInfo(name, 2) for name in NAMES], [])
    dataset.declare("images", SOURCE)
    make(dataset, "edges", EDGES, NAMES)
    make(dataset, "drawn", DRAWN, NAMES)
    return dataset


def plans(dataset: Dataset, **changed: dict[str, Any]) -> dict[str, GroupPlan]:
    declarations = {group: {**DECLARATIONS[group], **changed.get(group, {})} for group in DECLARATIONS}
    declared = {group: dataset.declaration(group) for group in declarations}
    footers = {group: dataset.footers(group) for group in ("images", *declarations)}
    return plan_groups(declared, declarations, NAMES, footers)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": 2}, "version 1 → 2"),
        ({"parameters": {"low": 50, "high": 90}}, "parameter low 40 → 50"),
        ({"parameters": {"low": 40, "kernel": 3}}, "parameter high is no longer 90, parameter kernel is now 3"),
        ({"weights": "b"}, "weights changed"),
        ({"version": 2, "weights": "b"}, "version 1 → 2, weights changed"),
        ({"reads": ["images.image", "images.width"]}, "reads images.width"),
        ({"reads": ["images.id", "images.image"]}, ""),  # the id is read anyway
    ],
)
def test_change_of_a_declaration_is_the_reason(dataset: Dataset, change: dict[str, Any], reason: str) -> None:
    plan = plans(dataset, edges=change)
    if not reason:
        assert plan["edges"] == GroupPlan(fresh=6)
        return
    assert plan["edges"] == GroupPlan(shards=6, rows=12, why={reason: [0, 1, 2, 3, 4, 5]})
    assert plan["drawn"] == GroupPlan(waiting=6)  # it may come out with the same values


def test_new_and_missing_shards_are_missing(dataset: Dataset) -> None:
    assert plans(dataset) == {"edges": GroupPlan(fresh=6), "drawn": GroupPlan(fresh=6)}
    dataset.store.delete("edges/000001.parquet")
    dataset.store.delete("drawn/000004.parquet")
    assert plans(dataset) == {
        "edges": GroupPlan(shards=1, rows=2, fresh=5, why={"missing": [1]}),
        "drawn": GroupPlan(shards=1, rows=2, waiting=1, fresh=4, why={"missing": [4]}),
    }


def test_other_images_are_told_from_another_declaration(dataset: Dataset) -> None:
    write_images(dataset, NAMES[3:], b"retouched")
    plan = plans(dataset)
    assert plan["edges"].why == {"images changed": [3, 4, 5]}
    assert plan["drawn"].why == {"edges or images changed": [3, 4, 5]}
    # A job that was killed: two shards of its declaration, the others of the one before.
    later = {**EDGES, "parameters": {"low": 50, "high": 90}}
    make(dataset, "edges", later, NAMES[:2])
    assert plans(dataset, edges=later)["edges"].why == {"parameter low 40 → 50": [2], "images changed": [3, 4, 5]}
    both = plans(dataset, edges={**later, "version": 2})["edges"].why
    assert both == {
        "version 1 → 2": [0, 1],
        "version 1 → 2, parameter low 40 → 50": [2],
        "images changed; version 1 → 2": [3, 4, 5],
    }


def test_earlier_declarations_are_kept_without_repetition(dataset: Dataset) -> None:
    for low in (50, 40, 50, 40):
        dataset.declare("edges", {**EDGES, "parameters": {"low": low, "high": 90}})
    declaration = dataset.declaration("edges") or {}
    assert [one["parameters"]["low"] for one in declaration["earlier"]] == [50, 40]
    for version in range(20):
        dataset.declare("edges", {**declaration, "version": version})
    assert len((dataset.declaration("edges") or {})["earlier"]) == 8
    assert "earlier" not in (dataset.declaration("images") or {})


def test_rows_in_error_are_what_is_tried_again(dataset: Dataset) -> None:
    make(dataset, "edges", EDGES, NAMES[2:4], errors=1)
    footers = {group: dataset.footers(group) for group in ("edges", "drawn")}
    plan = plan_errors(["edges", "drawn"], NAMES[:3], footers)
    assert plan["edges"] == GroupPlan(shards=1, rows=1, fresh=2, why={"rows in error": [2]})
    assert plan["drawn"] == GroupPlan(fresh=3)


def test_plan_is_a_line_for_each_group_and_reason() -> None:
    plan = {"edges": GroupPlan(4, 8, 1, 2, {"missing": [0], "images changed": [3, 4, 5]}), "text": GroupPlan(fresh=7)}
    assert plan_lines(plan) == [
        "edges: 4 shards to label, 8 rows, 2 shards fresh",
        "  missing: shard 0",
        "  images changed: shards 3–5",
        "  1 shards more if what they read comes out with other values",
        "text: nothing to label, 7 shards fresh",
    ]
    assert ranges([0, 1, 2, 4, 6, 8, 9, 11, 12]) == "0–2, 4, 6, 8–9 and 2 others"
