"""What labelers gave, checked, and as the table that is stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from labeling.dataset import set_schema
from labeling.failures import LONGEST_REASON, Failure
from labeling.labeler import Labeler, Row
from model.inputs import nearest, one_line

Result = Row | Failure


class WrongCountError(Exception):
    """A labeler gave another number of results than it was given rows."""


@dataclass(frozen=True)
class LabeledTable:
    """Columns of a group as they are stored; rows in error, and those of them for which nobody can have planned."""

    table: pa.Table
    errors: int
    unexpected: int


def check_count(results: Any, count: int) -> list[Any]:
    """The results of a batch as a list. Raises WrongCountError."""
    if not isinstance(results, list | tuple):
        raise WrongCountError(f"the labeler gave {_kind(results)} instead of a list of results")
    if len(results) != count:
        raise WrongCountError(f"the labeler gave {len(results)} results for {count} row{'s'[: count > 1]}")
    return list(results)


def check_columns(result: Any, schema: pa.Schema) -> Result:
    """A labeler's result for one row, if it has exactly the columns of the schema, and the failure that it is else."""
    if isinstance(result, Failure):
        return result
    if not isinstance(result, Mapping):
        return Failure(f"the labeler gave {_kind(result)} instead of the columns of a row")
    missing = [name for name in schema.names if name not in result]
    unknown = [str(key) for key in result if key not in schema.names]
    if missing and unknown:
        return Failure(f"the labeler gave no column {missing[0]!r}, but {unknown[0]!r}")
    if missing:
        return Failure(f"the labeler gave no column {missing[0]!r}")
    if unknown:
        return Failure(
            f"the labeler gave {unknown[0]!r}, which is no column of its schema{nearest(unknown[0], schema.names)}"
        )
    return dict(result)


def check_values(results: Sequence[Result], schema: pa.Schema) -> list[Result]:
    """The results, failures where Arrow cannot take a value as the type of its column."""
    rows = [result for result in results if not isinstance(result, Failure)]
    if all(_problem([row[field.name] for row in rows], field) is None for field in schema):
        return list(results)
    return [result if isinstance(result, Failure) else _check_row(result, schema) for result in results]


def _check_row(row: Row, schema: pa.Schema) -> Result:
    for field in schema:
        if problem := _problem([row[field.name]], field):
            return Failure(one_line(f"column {field.name!r}: {problem}", LONGEST_REASON))
    return row


def _problem(values: list[Any], field: pa.Field) -> str | None:
    try:
        pa.array(values, field.type)
    except Exception as error:  # Arrow raises errors of its own, TypeError, OverflowError and more
        return one_line(error)
    return None


def _kind(value: Any) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"


def group_schema(labeler: Labeler, sets: bool) -> pa.Schema:
    """Schema of the shards a labeler fills. For rows that are sets every label is a list with one entry per view."""
    labels = pa.schema([*labeler.schema, pa.field("model", pa.string()), pa.field("version", pa.int32())])
    labels = set_schema(labels) if sets else labels
    return pa.schema([pa.field("id", pa.string()), *labels, pa.field("error", pa.string())])


def split_sets(rows: Sequence[Row]) -> tuple[list[Row], list[int]]:
    """Split rows that are sets: one row for each view ("ID/VIEW"), and how many views each set has.

    A column whose group is in error for the set is None in each of them; a set of which every column is has no views.
    """
    views = [_views(row) for row in rows]
    return [view for of_row in views for view in of_row], [len(of_row) for of_row in views]


def make_table(
    labeler: Labeler, ids: Sequence[str], results: Sequence[Result], views: Sequence[int] | None = None
) -> LabeledTable:
    """The group's columns for these rows, as they are stored.

    ids: of the rows. results: for each row; of sets, for each view of each row, `views` being their numbers.
    """
    stored = [stored_row(labeler, result) for result in results]
    schema = group_schema(labeler, views is not None)
    unexpected = [isinstance(result, Failure) and not result.expected for result in results]
    if views is None:
        rows = [{"id": identity, **row} for identity, row in zip(ids, stored, strict=True)]
    else:
        rows, start, merged_unexpected = [], 0, []
        for identity, count in zip(ids, views, strict=True):
            rows.append(_merge(identity, stored[start : start + count], labeler.schema.names))
            merged_unexpected.append(any(unexpected[start : start + count]))
            start += count
        unexpected = merged_unexpected
    errors = sum(row["error"] is not None for row in rows)
    return LabeledTable(pa.Table.from_pylist(rows, schema), errors, sum(unexpected))


def stored_row(labeler: Labeler, result: Result) -> dict[str, Any]:
    """A row as it is stored, without its id."""
    columns = {"error": result.reason} if isinstance(result, Failure) else {**result, "error": None}
    return {**columns, "model": labeler.model, "version": labeler.version}


def _views(row: Row) -> list[Row]:
    count = max((len(value) for key, value in row.items() if key != "id" and value is not None), default=0)
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
