"""Running one labeler on the rows of one row group: what a labeling job does in its actors, without the job."""

from __future__ import annotations

import fcntl
import importlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from labeling.dataset import set_schema
from labeling.labeler import Labeler, Row, RowError


def import_packages(labeler: Labeler) -> None:
    """Import the packages that a labeler needs, one process of this machine at a time.

    yapf, which mmcv imports, writes a cache at its first import, and another process may read it half-written: its
    rows would be in error for nothing of theirs.
    """
    with Path(tempfile.gettempdir(), f"onediffusion-imports-{os.getuid()}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for package in labeler.packages:
            importlib.import_module(package)


def group_schema(labeler: Labeler, sets: bool) -> pa.Schema:
    """Schema of the shards a labeler fills. For rows that are sets every label is a list with one entry per view."""
    labels = pa.schema([*labeler.schema, pa.field("model", pa.string()), pa.field("version", pa.int32())])
    labels = set_schema(labels) if sets else labels
    return pa.schema([pa.field("id", pa.string()), *labels, pa.field("error", pa.string())])


def label_rows(labeler: Labeler, rows: Sequence[Row]) -> list[Row]:
    """Label rows in batches from the first row on. A row that fails keeps its place with nulls and its `error`."""
    labeled: list[Row] = []
    for start in range(0, len(rows), labeler.batch_size):
        batch = list(rows[start : start + labeler.batch_size])
        try:
            results = labeler.label(batch)
        except Exception:  # one row must not cost the other rows of its batch their labels
            results = [_label_alone(labeler, row) for row in batch]
        assert len(results) == len(batch), f"{labeler.name} gave {len(results)} results for {len(batch)} rows"
        labeled += [
            {**result, "model": labeler.model, "version": labeler.version, "error": result.get("error")}
            for result in results
        ]
    return labeled


def label_table(labeler: Labeler, rows: Sequence[Row], sets: bool) -> pa.Table:
    """The group's columns for these rows, as they are stored."""
    schema = group_schema(labeler, sets)
    if not sets:
        results = label_rows(labeler, rows)
        return pa.Table.from_pylist(
            [{"id": row["id"], **result} for row, result in zip(rows, results, strict=True)], schema
        )
    views = [_views(row) for row in rows]
    results = label_rows(labeler, [view for row in views for view in row])
    merged, start = [], 0
    for row, of_row in zip(rows, views, strict=True):
        merged.append(_merge(str(row["id"]), results[start : start + len(of_row)], labeler.schema.names))
        start += len(of_row)
    return pa.Table.from_pylist(merged, schema)


def _label_alone(labeler: Labeler, row: Row) -> Row:
    """The row's columns, or its `error` alone."""
    try:
        return labeler.label([row])[0]
    except RowError as error:
        return {"error": str(error)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def _views(row: Row) -> list[Row]:
    """One row for each view of a set; a column whose group is in error for the set is None in each of them."""
    count = max(len(value) for key, value in row.items() if key != "id" and value is not None)
    return [
        {
            key: f"{value}/{view}" if key == "id" else (None if value is None else value[view])
            for key, value in row.items()
        }
        for view in range(count)
    ]


def _merge(identity: str, results: Sequence[Row], columns: Sequence[str]) -> dict[str, Any]:
    """The row of a set, of the results for its views: every column is a list, and `error` names the views in error."""
    reasons = [f"view {index}: {result['error']}" for index, result in enumerate(results) if result["error"]]
    merged: dict[str, Any] = {key: [result.get(key) for result in results] for key in (*columns, "model", "version")}
    return {"id": identity, **merged, "error": "; ".join(reasons) or None}
