"""`evaluate DATASET`: figures that can be told in advance, of labels beside what is true."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from commands import onediffusion

from labeling.dataset import IMAGE_SCHEMA, Dataset, ShardInfo, write_shard
from labeling.registry import load_labeler
from model.inputs import InputError
from model.pictures import decode_picture, encode_png
from pipelines.truth import evaluate_dataset, figure_lines


def write(dataset: Dataset, group: str, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    reads = ["images.image"] if group != "images" else []
    dataset.declare(group, {"labeler": group, "version": 1, "parameters": {}, "weights": "", "reads": reads})
    named = [{"id": str(number), **row} for number, row in enumerate(rows)]
    write_shard(dataset.store, group, "000000", pa.Table.from_pylist(named, schema), [len(rows)], "recipe")


def stereo() -> dict[str, Any]:
    """A pair of noise before a plane and a nearer square, with its true disparity."""
    random = np.random.default_rng(0)
    left = np.repeat(np.repeat(random.integers(0, 256, (60, 80, 3), np.uint8), 2, axis=0), 2, axis=1)
    disparity = np.full(left.shape[:2], 4, np.uint16)
    disparity[30:90, 50:120] = 10
    right = left.copy()
    for shift in (4, 10):  # the nearer one hides the other
        rows, columns = np.nonzero(disparity == shift)
        right[rows, np.maximum(columns - shift, 0)] = left[rows, columns]
    truth = {"right": encode_png(right), "disparity": encode_png(disparity), "disparity_scale": 1.0}
    return {"image": encode_png(left), "width": 160, "height": 120, **truth}


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    dataset = Dataset(tmp_path / "dataset")
    pair = stereo()
    masks = [np.zeros((8, 8), np.uint8) for _ in range(2)]
    masks[0][:4], masks[1][2:6] = 255, 255  # 16 of 48 pixels in common
    mask = {"mask": base64.b64encode(encode_png(masks[0])).decode()}
    people = ["Ada", "Ada", "Bob", "Bob", None]
    # Rows 0 to 2 are copies, and 3 and 4; found are 0 and 1, and 2 and 3.
    said = [{"same": same, "person": person} for same, person in zip("aaabb", people, strict=True)]
    said[4] |= mask
    images = [{"image": pair["image"], "width": 160, "height": 120, "metadata": json.dumps(one)} for one in said]
    images[0] |= pair
    write(dataset, "images", images, IMAGE_SCHEMA)
    row = {f"images.{name}": value for name, value in pair.items()} | {"images.image": decode_picture(pair["image"])}
    labeler = load_labeler("depth", {})
    labeler.load()
    depth = [labeler.label_row(row), *({} for _ in range(4))]
    write(dataset, "depth", depth, pa.schema([("id", pa.string()), *labeler.schema, ("error", pa.string())]))
    segmented = [{} for _ in range(4)] + [{"mask": encode_png(masks[1] // 255)}]
    write(dataset, "segmentation", segmented, pa.schema([("id", pa.string()), ("mask", pa.binary())]))
    groups = [{"group": group} for group in "00224"]
    write(dataset, "duplicates", groups, pa.schema([("id", pa.string()), ("group", pa.string())]))
    vectors = [[[0.0, 0.0]], [[0.3, 0.0]], [[0.0, 2.0]], [[2.0, 2.0]], [[9.0, 9.0]]]
    kind = pa.list_(pa.list_(pa.float32()))
    write(
        dataset, "faces", [{"embeddings": v} for v in vectors], pa.schema([("id", pa.string()), ("embeddings", kind)])
    )
    dataset.describe("pictures", [ShardInfo("000000", 5)], [])
    return Dataset.open(dataset.uri)


def test_labels_are_compared_with_what_is_true(dataset: Dataset) -> None:
    figures = evaluate_dataset(dataset.uri)
    assert figures["duplicates"] == {"rows": 5, "precision": 1 / 2, "recall": 1 / 4}
    assert figures["faces"] == {"rows": 4, "same, found": 1 / 2, "others, told apart": 1.0}
    assert figures["segmentation"] == {"rows": 1, "IoU": pytest.approx(1 / 3), "IoU, median": pytest.approx(1 / 3)}
    assert figures["depth"]["rows"] == 1
    assert figures["depth"]["correlation"] > 0.9 and figures["depth"]["within 10 %"] > 0.9
    assert 0.5 < figures["depth"]["covered"] <= 1
    done = onediffusion("evaluate", dataset.uri)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == figure_lines(figures)
    assert onediffusion("report", dataset.uri).returncode == 0
    page = (Path(dataset.uri) / "report.html").read_text()
    assert "Beside what is true" in page and "precision 0.50, recall 0.25" in page
    assert "known to be bad at: copies cut to another shape" in page


def test_dataset_without_truth_names_what_is_needed(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path / "dataset")
    write(dataset, "images", [{"image": b"", "width": 1, "height": 1}], IMAGE_SCHEMA)
    dataset.describe("pictures", [ShardInfo("000000", 1)], [])
    with pytest.raises(InputError, match=r"nothing is known to be true of its pictures \(images.disparity, or same"):
        evaluate_dataset(dataset.uri)
