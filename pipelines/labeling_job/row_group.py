"""The rows of one row group on their way through the labelers: columns read, images decoded once, labels made."""

from __future__ import annotations

import pickle
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from labeling.dataset import (
    ID_COLUMN,
    IMAGE_COLUMN,
    NOT_SELECTED,
    MissingParameter,
    groups_of,
    missing_parameter,
)
from labeling.failures import Failure
from labeling.labeler import Labeler, Prepared, Row
from labeling.results import LabeledTable, make_table, split_sets
from labeling.run import decode_images
from labeling.supervision.task_attempt import Attempt
from pipelines.labeling_job.loaded_labelers import Labelers
from pipelines.labeling_job.parts import Part
from pipelines.labeling_job.tally import Errors, Tally

Requests = Mapping[str, Mapping[str, bytes]]  # group → row id → what its network takes, pickled
Outputs = Mapping[str, Mapping[str, Any]]  # group → row id → what its network gave, pickled, or the row's failure


@dataclass
class _Rows:
    """The rows that a labeler is called with.

    indices: of rows of the row group; rows: those rows, or of sets a row for each view; failures: of rows without an
    image; views: how many views each set has, None where rows are no sets; prepared: for the network, once done.
    """

    indices: list[int]
    rows: list[Row]
    failures: dict[str, Failure]
    views: list[int] | None
    prepared: list[Prepared | Failure] | None = None

    @property
    def ids(self) -> list[str]:
        return [row["id"] for row in self.rows]


class RowGroup:
    """One row group. `labeled` has the finished groups."""

    def __init__(self, part: Part, stored: pa.Table, before: Mapping[str, pa.Table], sets: bool) -> None:
        """stored: the columns read, as "group.column"; before: labels there are, where only rows in error are tried."""
        self.part = part
        self.sets = sets
        self.ids: list[str] = stored[ID_COLUMN].to_pylist()
        self.stored = stored
        self.before = before
        self.labeled: dict[str, LabeledTable] = {}
        self._values: dict[str, list[Any]] = {}  # columns as Python values
        self._images: list[Any] | None = None  # decoded, or failures
        self._waiting: dict[str, _Rows] = {}  # prepared for a network

    def advance(self, labelers: Labelers, attempt: Attempt, outputs: Outputs, tally: Tally) -> Requests:
        """Label what can be labeled with the outputs of networks there are; what the networks are to be asked."""
        requests: dict[str, dict[str, bytes]] = {}
        for group in self.part.groups:
            reads = labelers[group].needs
            if group in self.labeled or not self._has(reads):
                continue
            if hasattr(labelers[group], "label_table"):
                self.labeled[group] = self._label_table(labelers[group])
                continue
            if IMAGE_COLUMN in reads and group not in self._waiting:
                with tally.timed("decoding"):
                    self._decode(attempt)
            with tally.timed(group):
                self._label(group, labelers, attempt, outputs.get(group, {}), requests)
            if group in self.labeled and tally.first_label is None:
                tally.first_label = time.time()
        left = [g for g in self.part.groups if g not in self.labeled and g not in self._waiting]
        if not any(IMAGE_COLUMN in labelers[group].reads for group in left):
            self._images = None
            self._values.pop(IMAGE_COLUMN, None)
        return requests

    def count(self, labelers: Labelers, tally: Tally) -> None:
        """Count the rows, and those in error by reason."""
        upstream = {group: groups_of(labelers[group].needs) for group in self.part.groups}
        errors_of = {group: labeled.table["error"].to_pylist() for group, labeled in self.labeled.items()}
        for name in self.stored.column_names:
            if name.endswith(".error"):
                errors_of[name.removesuffix(".error")] = self.stored[name].to_pylist()
        for group, labeled in self.labeled.items():
            tally.rows[group] = tally.rows.get(group, 0) + len(self.ids)
            if not labeled.errors:
                continue
            errors = tally.errors.setdefault(group, Errors())
            errors.unexpected += labeled.unexpected
            for index, reason in enumerate(errors_of[group]):
                if reason and missing_parameter(group, {g: all_[index] for g, all_ in errors_of.items()}, upstream):
                    errors.unavailable += 1
                elif reason:
                    errors.add(reason, self.ids[index])

    def _has(self, reads: Sequence[str]) -> bool:
        """Whether the groups that are labeled in this job, and read here, are."""
        return all(group in self.labeled for group in groups_of(reads) if group in self.part.groups)

    def _label(
        self,
        group: str,
        labelers: Labelers,
        attempt: Attempt,
        outputs: Mapping[str, Any],
        requests: dict[str, dict[str, bytes]],
    ) -> None:
        run = labelers.run_of(group)
        rows = self._waiting.get(group) or self._rows(group, run.labeler)
        if group not in labelers.networks:
            results = run.label(rows.rows, attempt, rows.failures)
        else:
            if rows.prepared is None:
                rows.prepared = run.prepare(rows.rows, attempt, rows.failures)
            known = dict(zip(rows.ids, rows.prepared, strict=True))
            to_infer = {
                row: one.inputs for row, one in known.items() if isinstance(one, Prepared) and row not in outputs
            }
            if to_infer:
                requests[group] = {row: pickle.dumps(inputs, protocol=5) for row, inputs in to_infer.items()}
                rows.prepared = [_without_inputs(one) for one in rows.prepared]
                self._waiting[group] = rows
                return
            group_outputs = [one if isinstance(one, Failure) else _loaded(outputs[row]) for row, one in known.items()]
            results = run.finish(rows.ids, group_outputs, rows.prepared, attempt)
            self._waiting.pop(group, None)
        ids = [self.ids[index] for index in rows.indices]
        labeled = make_table(run.labeler, ids, results, rows.views)
        if run.labeler.selection and group not in self.before:
            self.labeled[group] = self._with_unselected(run.labeler, labeled, rows.indices)
        else:
            self.labeled[group] = self._with_labels_before(group, labeled, rows.indices)

    def _rows(self, group: str, labeler: Labeler) -> _Rows:
        """The rows of a labeler: all of them, or those in error, whatever they lack for want of a parameter aside."""
        indices = list(range(len(self.ids)))
        if group in self.before:
            reasons = self.before[group]["error"].to_pylist()
            indices = [index for index in indices if _is_tried(reasons[index])]
        if labeler.selection:
            selected = self._column(labeler.selection)
            indices = [index for index in indices if selected[index]]
        names = ("id", *labeler.reads)
        columns = [self.ids, *(self._column(name) for name in labeler.reads)]
        rows = [dict(zip(names, (column[index] for column in columns), strict=True)) for index in indices]
        undecoded = {row["id"]: row[IMAGE_COLUMN] for row in rows if isinstance(row.get(IMAGE_COLUMN), Failure)}
        if not self.sets:
            return _Rows(indices, rows, undecoded, None)
        for row, index in zip(rows, indices, strict=True):
            if row["id"] in undecoded:  # it keeps its views, for the reason to stand in each of them
                row[IMAGE_COLUMN] = [None] * len(self.stored[IMAGE_COLUMN][index])
        by_view, views = split_sets(rows)
        owners = [row["id"] for row, count in zip(rows, views, strict=True) for _ in range(count)]
        failures = {
            view["id"]: undecoded[owner] for view, owner in zip(by_view, owners, strict=True) if owner in undecoded
        }
        return _Rows(indices, by_view, failures, views)

    def _column(self, name: str) -> list[Any]:
        """A column as Python values, from the labels made here or from what is stored."""
        if name not in self._values:
            group, _, column = name.partition(".")
            if name == IMAGE_COLUMN:
                assert self._images is not None, "images are dropped after the last labeler that reads them"
                self._values[name] = self._images
            elif group in self.labeled:
                self._values[name] = self.labeled[group].table[column].to_pylist()
            else:
                self._values[name] = self.stored[name].to_pylist()
        return self._values[name]

    def _decode(self, attempt: Attempt) -> None:
        if self._images is None:
            self._images = decode_images(self.ids, self.stored[IMAGE_COLUMN].to_pylist(), attempt)

    def _label_table(self, labeler: Any) -> LabeledTable:
        """The columns of a labeler that takes all rows at once, as a table."""
        columns = {ID_COLUMN: self.stored[ID_COLUMN]}
        for name in labeler.reads:
            group, _, column = name.partition(".")
            columns[name] = self.labeled[group].table[column] if group in self.labeled else self.stored[name]
        return make_table(labeler, self.ids, labeler.label_table(pa.table(columns)))

    def _with_unselected(self, labeler: Labeler, labeled: LabeledTable, indices: Sequence[int]) -> LabeledTable:
        """The labels of the selected rows, with the others in their places."""
        others = sorted(set(range(len(self.ids))) - set(indices))
        reasons = [Failure(NOT_SELECTED, expected=True)] * len(others)
        unselected = make_table(labeler, [self.ids[index] for index in others], reasons)
        order = sorted(range(len(self.ids)), key=[*indices, *others].__getitem__)
        table = pa.concat_tables([labeled.table, unselected.table]).take(order)
        return LabeledTable(table, labeled.errors + unselected.errors, labeled.unexpected)

    def _with_labels_before(self, group: str, labeled: LabeledTable, indices: Sequence[int]) -> LabeledTable:
        """The labels there are, with those made now in the places of rows that were in error."""
        if group not in self.before:
            return labeled
        order = list(range(len(self.ids)))
        for number, index in enumerate(indices):
            order[index] = len(self.ids) + number
        table = pa.concat_tables([self.before[group].cast(labeled.table.schema), labeled.table]).take(order)
        return LabeledTable(table, len(table) - table["error"].null_count, labeled.unexpected)


def _is_tried(reason: str | None) -> bool:
    """Whether a row in error is tried again: not where it lacks a parameter."""
    return bool(reason) and (reason == NOT_SELECTED or not MissingParameter.of(str(reason)))


def _without_inputs(prepared: Prepared | Failure) -> Prepared | Failure:
    """What `finish` needs of it: inputs are large, and go to the network."""
    return prepared if isinstance(prepared, Failure) else Prepared(None, prepared.context)


def _loaded(output: Any) -> Any:
    return output if isinstance(output, Failure) else pickle.loads(output)  # noqa: S301 (of our own processes)
