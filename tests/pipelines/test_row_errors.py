"""What people are told of rows without a label."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from labeling.dataset import Dataset, MissingParameter, ShardInfo, write_shard
from model.inputs import WorkFailed
from pipelines.row_errors import labeled_errors

NO_MODEL = MissingParameter("no depth model, stereo pair or true disparity", "depth.model").reason
NO_DEPTH = "no depth: depth.depth is missing"
READS = {"images": [], "depth": ["images.image"], "latents": ["depth.depth"], "drawn": ["latents.latents"]}


def dataset_with(folder: Path, **errors: list[list[str | None]]) -> str:
    """A dataset of these groups, by group the reason of each row in each shard."""
    dataset = Dataset(folder)
    counts = [len(shard) for shard in next(iter(errors.values()))]
    dataset.describe("pictures", [ShardInfo(f"{number:06d}", count) for number, count in enumerate(counts)], [])
    for group, shards in {"images": [[None] * count for count in counts], **errors}.items():
        dataset.declare(group, {"labeler": group, "version": 1, "parameters": {}, "weights": "", "reads": READS[group]})
        for number, reasons in enumerate(shards):
            ids = [f"{number}-{row}" for row in range(len(reasons))]
            table = pa.table({"id": ids, "error": pa.array(reasons, pa.string())})
            write_shard(dataset.store, group, f"{number:06d}", table, [len(ids)], "recipe")
    return str(folder)


def test_reasons_come_by_frequency_with_an_example(tmp_path: Path) -> None:
    reasons: list[str | None] = ["wide", "dark", "wide", None, *(f"once {number}" for number in range(6))]
    dataset = dataset_with(tmp_path, depth=[reasons, ["wide", None]])
    errors = labeled_errors(dataset, ["depth"])
    assert errors.lines() == [
        "depth: 10 of 12 rows in error",
        "  3 × wide (as 0-0)",
        "  1 × dark (as 0-1)",
        "  1 × once 0 (as 0-4)",
        "  1 × once 1 (as 0-5)",
        "  1 × once 2 (as 0-6)",
        "  3 × other reasons",
    ]
    errors.check()
    assert labeled_errors(dataset, ["depth"], (1, 2)).lines() == ["depth: 1 of 2 rows in error", "  1 × wide (as 1-0)"]


def test_group_in_error_as_a_whole_fails_the_command(tmp_path: Path) -> None:
    dataset = dataset_with(tmp_path, depth=[["dark", "dark"], ["dark", "wide"]])
    with pytest.raises(WorkFailed, match=r"^depth: every row is in error \(dark\); .* depth --only-errors$"):
        labeled_errors(dataset, ["depth"]).check()


def test_unavailable_rows_are_said_once_and_fail_nothing(tmp_path: Path) -> None:
    dataset = dataset_with(
        tmp_path,
        depth=[[NO_MODEL, NO_MODEL]],
        latents=[[NO_DEPTH, NO_DEPTH]],
        drawn=[["no latents", "no latents"]],
    )
    for groups in (["depth", "latents", "drawn"], ["drawn"]):
        errors = labeled_errors(dataset, groups)
        errors.check()
        [line] = errors.lines()
        assert line.startswith("2 rows cannot have depth, latents, drawn: no depth model")
        assert line.endswith(f"onediffusion label {dataset} depth latents drawn --set depth.model=NAME")
    shutil.rmtree(tmp_path / "depth")
    dataset_with(tmp_path, depth=[[NO_MODEL, "dark"]])
    with pytest.raises(WorkFailed, match="depth: every row is in error"):  # of those that can have a label
        labeled_errors(dataset, ["depth"]).check()
