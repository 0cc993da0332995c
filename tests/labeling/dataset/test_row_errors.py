"""Rows without a label: errors, and labels that nothing could make."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from labeling.dataset import Dataset, Footer, MissingParameter, read_row_errors, write_shard
from labeling.labeler import MissingParameterError

NO_MODEL = "no depth model, stereo pair or true disparity: set depth.model=NAME"
READS = {"depth": ["images.image"], "latents-64-depth": ["depth.depth"], "edges": ["images.image"]}


def footers(dataset: Dataset, shard: str, errors: dict[str, list[str | None]]) -> dict[str, dict[str, Footer]]:
    """Write groups of one shard with these errors and declare them."""
    for group, reasons in errors.items():
        dataset.declare(group, {"reads": READS[group]})
        table = pa.table({"id": [f"{i}" for i in range(len(reasons))], "error": pa.array(reasons, pa.string())})
        write_shard(dataset.store, group, shard, table, [len(reasons)], "r")
    return {group: {shard: dataset.footer(group, shard)} for group in errors}


@pytest.mark.parametrize(
    ("reason", "parameter"),
    [
        (NO_MODEL, "depth.model"),
        (f"view 0: {NO_MODEL}; view 1: {NO_MODEL}", "depth.model"),
        (f"view 0: {NO_MODEL}; view 1: truncated", None),
        ("truncated JPEG file", None),
        ("wider than 700: set brightness.refuse_wider_than=900", None),
        ("no caption: caption.caption is missing", None),
    ],
)
def test_missing_parameter_is_no_error(reason: str, parameter: str | None) -> None:
    missing = MissingParameter.of(reason)
    assert (missing and missing.parameter) == parameter


def test_stored_reason_of_depth_is_unchanged() -> None:
    assert str(MissingParameterError("no depth model, stereo pair or true disparity", "depth.model")) == NO_MODEL


def test_rows_that_need_an_unavailable_label_are_unavailable(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)
    errors = {
        "latents-64-depth": ["no depth: depth.depth is missing", "no depth: depth.depth is missing", None],
        "depth": [NO_MODEL, "right picture of another size", None],
        "edges": ["broken", None, None],
    }
    sorted_errors = read_row_errors(dataset, footers(dataset, "000000", errors))
    assert sorted_errors.reasons == {
        "latents-64-depth": {"no depth: depth.depth is missing": ["1"]},
        "depth": {"right picture of another size": ["1"]},
        "edges": {"broken": ["0"]},
    }
    [unavailable] = sorted_errors.unavailable
    assert list(unavailable.rows.items()) == [("depth", 1), ("latents-64-depth", 1)]
    command = "onediffusion label data/d depth latents-64-depth --set depth.model=NAME"
    assert unavailable.command("data/d") == command
    assert (sorted_errors.unavailable_rows("depth"), sorted_errors.unavailable_rows("edges")) == (1, 0)


@pytest.mark.parametrize(("others", "unread"), [(None, 0), ("broken", 2)])
def test_unread_shards_count_like_those_read(tmp_path: Path, others: str | None, unread: int) -> None:
    dataset = Dataset(tmp_path)
    first = footers(dataset, "000000", {"depth": [NO_MODEL, others or NO_MODEL]})
    second = footers(dataset, "000001", {"depth": [NO_MODEL, NO_MODEL]})
    errors = read_row_errors(dataset, {"depth": first["depth"] | second["depth"]}, max_shards=1)
    assert errors.unread.get("depth", 0) == unread
    assert errors.unavailable_rows("depth") == (4 if others is None else 1)
