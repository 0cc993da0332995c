"""Running one labeler on the rows of one row group: what a labeling job does in its processes, without the job.

A row for which no label can be made keeps its place, as a `Failure`. Only errors of a device leave these functions, as
DeviceError: they are nothing of a row.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from labeling.failures import DeviceError, DeviceMemoryError, Failure, device_error, is_memory_error
from labeling.labeler import Labeler, Prepared, Row
from labeling.resources import Resources
from labeling.results import check_columns, check_count, check_values, make_table, split_sets, stored_row
from labeling.supervision.task_attempt import TIMEOUT, Attempt

Failures = Mapping[str, Failure]  # by row id


def import_packages(labeler: Labeler) -> None:
    """Import the packages that a labeler needs, one process of this machine at a time.

    yapf, which mmcv imports, writes a cache at its first import, and another process may read it half-written: its
    rows would be in error for nothing of theirs.
    """
    with Path(tempfile.gettempdir(), f"onediffusion-imports-{os.getuid()}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for package in labeler.packages:
            importlib.import_module(package)


class LabelerRun:
    """A labeler at work in one process: batches, failures of rows, and batches that a device is too small for.

    `label` takes rows to columns. Where the steps of a labeler with a network run in different processes, each of
    them has a LabelerRun and calls `prepare`, `infer` or `finish`; failures take the place of what failed, and travel
    along. Whoever makes it loads the labeler.
    """

    def __init__(self, labeler: Labeler, resources: Resources | None = None) -> None:
        self.labeler = labeler
        self.batch = (resources and resources.batch) or labeler.batch_size  # less after the device had no memory
        self.timeout = resources.timeout if resources else TIMEOUT

    def label(
        self, rows: Sequence[Row], attempt: Attempt | None = None, failures: Failures | None = None
    ) -> list[Row | Failure]:
        """The columns of each row, in batches from the first row on; of a labeler that is deterministic, give the rows
        of one row group.

        failures: of rows for which there is nothing to call the labeler with. Raises DeviceError.
        """
        attempt = attempt or Attempt()
        ids = [row["id"] for row in rows]
        label_is_own = type(self.labeler).label is not Labeler.label
        if self.labeler.has_network and not label_is_own:
            prepared = self.prepare(rows, attempt, failures)
            outputs = self.infer(ids, prepared, attempt)
            return self.finish(ids, outputs, prepared, attempt)
        results: list[Any]
        if label_is_own:
            results = self._in_batches("label", ids, rows, failures or {}, self.labeler.label, attempt)
        else:
            results = self._one_by_one("label", ids, rows, failures or {}, self.labeler.label_row, attempt)
        return self._checked(results)

    def prepare(
        self, rows: Sequence[Row], attempt: Attempt | None = None, failures: Failures | None = None
    ) -> list[Prepared | Failure]:
        """What the network takes of each row."""
        ids = [row["id"] for row in rows]
        return self._one_by_one("prepare", ids, rows, failures or {}, self.labeler.prepare, attempt or Attempt())

    def infer(
        self, ids: Sequence[str], prepared: Sequence[Prepared | Failure], attempt: Attempt | None = None
    ) -> list[Any]:
        """The network's output for each row, or the row's failure. Raises DeviceError."""
        failures = {row: one for row, one in zip(ids, prepared, strict=True) if isinstance(one, Failure)}
        inputs = [None if isinstance(one, Failure) else one.inputs for one in prepared]
        return self._in_batches("infer", ids, inputs, failures, self.labeler.infer, attempt or Attempt())

    def finish(
        self,
        ids: Sequence[str],
        outputs: Sequence[Any],
        prepared: Sequence[Prepared | Failure],
        attempt: Attempt | None = None,
    ) -> list[Row | Failure]:
        """The columns of each row, of what `infer` gave and of the context of what `prepare` gave."""
        failures = {row: one for row, one in zip(ids, outputs, strict=True) if isinstance(one, Failure)}
        pairs = list(zip(outputs, prepared, strict=True))
        results = self._one_by_one(
            "finish",
            ids,
            pairs,
            failures,
            lambda pair: self.labeler.finish(pair[0], pair[1].context),
            attempt or Attempt(),
        )
        return self._checked(results)

    def _checked(self, results: Sequence[Any]) -> list[Row | Failure]:
        return check_values([check_columns(one, self.labeler.schema) for one in results], self.labeler.schema)

    def _one_by_one(
        self,
        step: str,
        ids: Sequence[str],
        values: Sequence[Any],
        failures: Failures,
        call: Callable[[Any], Any],
        attempt: Attempt,
    ) -> list[Any]:
        return [
            failures.get(row) or self.call_alone(step, row, partial(call, value), attempt)
            for row, value in zip(ids, values, strict=True)
        ]

    def call_alone(self, step: str, row: str, call: Callable[[], Any], attempt: Attempt) -> Any:
        """What a call with one row gives, or the row's failure."""

        def make() -> Any:
            if failure := attempt.failure(self.labeler.group, row):
                return failure
            try:
                return self.call(step, [row], call, attempt)
            except DeviceError:
                raise
            except attempt.caught as error:
                failure, no_memory = Failure.of(error), is_memory_error(error)
            if no_memory:  # and what the call had allocated is let go
                with attempt.mark(self.labeler.group, [row], self.timeout):
                    attempt.end_if_low_on_memory()
            return failure

        return attempt.keep((self.labeler.group, step, row), make)

    def call(self, step: str, rows: Sequence[str], call: Callable[[], Any], attempt: Attempt) -> Any:
        """Call the labeler for rows. What it raises for the sake of a device becomes a DeviceError."""
        # On a CPU a network takes the rows of a batch one after another.
        timeout = self.timeout * (len(rows) if step == "infer" and self.labeler.device == "cpu" else 1)
        with attempt.mark(self.labeler.group, rows, timeout, on_device=step in ("label", "infer")):
            try:
                return call()
            except attempt.caught as error:
                if failed := device_error(error):
                    raise failed from error
                raise

    def _in_batches(
        self,
        step: str,
        ids: Sequence[str],
        values: Sequence[Any],
        failures: Failures,
        call: Callable[[list[Any]], Any],
        attempt: Attempt,
    ) -> list[Any]:
        batches = _Batches(self, step, ids, values, call, attempt)
        batches.results.update({index: failures[row] for index, row in enumerate(ids) if row in failures})
        size = self.batch  # boundaries stay where they are when the device has no memory for a whole batch
        for start in range(0, len(ids), size):
            batches.run(range(start, min(start + size, len(ids))))
        return [batches.results[index] for index in range(len(ids))]


@dataclass
class _Batches:
    """Calls of one step with batches of values. Results are by the rows' indices."""

    of: LabelerRun
    step: str
    ids: Sequence[str]
    values: Sequence[Any]
    call: Callable[[list[Any]], Any]
    attempt: Attempt
    results: dict[int, Any] = field(default_factory=dict)

    def run(self, indices: Sequence[int]) -> None:
        """Fill the results of one batch, which is tried row by row where it does not work."""
        group = self.of.labeler.group
        known = {index: self.attempt.failure(group, self.ids[index]) for index in indices if index not in self.results}
        self.results.update({index: failure for index, failure in known.items() if failure})
        indices = [index for index, failure in known.items() if not failure]
        if len(indices) > 1 and any(self.attempt.suspicion(group, self.ids[index]) for index in indices):
            indices = self._run_alone(indices)
        if len(indices) > 1:
            self._run_together(indices)
        elif indices and indices[0] not in self.results:
            self._run_alone(indices)

    def _run_together(self, indices: Sequence[int]) -> None:
        """One call, or several where the device has memory for no more; some rows may have results of calls alone."""
        if len(indices) > self.of.batch:
            self._run_together(indices[: self.of.batch])
            self._run_together(indices[self.of.batch :])
            return
        rows = [self.ids[index] for index in indices]
        group = self.of.labeler.group
        if len(indices) == 1 or self.attempt.ends(group, rows) > 1:  # together they end processes
            self._run_alone([index for index in indices if index not in self.results])
            return
        # What is tried next comes after the handlers: an error holds what the failed call had on the device.
        outputs, no_memory = None, False
        try:
            outputs = self.attempt.keep((group, self.step, tuple(rows)), lambda: self._call(indices))
        except DeviceMemoryError:
            no_memory = True
        except DeviceError:
            raise
        except self.attempt.caught:
            pass
        if no_memory:
            self.of.batch = max(1, len(indices) // 2)
            self._run_together(indices)
        elif outputs is not None:
            self.results.update(zip(indices, outputs, strict=True))
        elif not self.results.keys() >= set(indices):  # otherwise they have results of calls alone, which work
            # The rows that do not fail alone are a batch again: labels depend on the rows that have one, and on
            # nothing else. Where none fails alone, they stay as they are.
            rest = self._run_alone(indices)
            if 1 < len(rest) < len(indices):
                self._run_together(rest)

    def _run_alone(self, indices: Sequence[int]) -> list[int]:
        """Each row in a call of its own; the indices of those that have a result then.

        The least suspicious come first, to show whether the device works.
        """
        for index in sorted(indices, key=lambda index: self.attempt.suspicion(self.of.labeler.group, self.ids[index])):
            call = partial(self._call_one, index)
            self.results[index] = self.of.call_alone(self.step, self.ids[index], call, self.attempt)
        return [index for index in indices if not isinstance(self.results[index], Failure)]

    def _call_one(self, index: int) -> Any:
        return check_count(self.call([self.values[index]]), 1)[0]

    def _call(self, indices: Sequence[int]) -> list[Any]:
        rows = [self.ids[index] for index in indices]
        values = [self.values[index] for index in indices]
        return check_count(self.of.call(self.step, rows, lambda: self.call(values), self.attempt), len(indices))


def decode_images(
    ids: Sequence[str], encoded: Sequence[Any], attempt: Attempt | None = None, timeout: float = TIMEOUT
) -> list[Any]:
    """The picture of each row, (H, W, 3) uint8 RGB, or its failure; of a set, the list of its views' pictures."""
    from model.pictures import decode_picture

    attempt = attempt or Attempt()
    images: list[Any] = []
    for row, data in zip(ids, encoded, strict=True):
        if failure := attempt.failure("images", row):
            images.append(failure)
            continue
        try:
            with attempt.mark("images", [row], timeout):
                views = [decode_picture(one) for one in (data if isinstance(data, list) else [data])]
                images.append(views if isinstance(data, list) else views[0])
        except attempt.caught as error:
            images.append(Failure.of(error))
    return images


def label_table(labeler: Labeler, rows: Sequence[Row], sets: bool) -> pa.Table:
    """The group's columns for these rows, as they are stored; in this process, with a labeler that is loaded."""
    views, counts = split_sets(rows) if sets else (list(rows), None)
    results = LabelerRun(labeler).label(views)
    return make_table(labeler, [row["id"] for row in rows], results, counts).table


def label_rows(labeler: Labeler, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The columns of each row with `model`, `version` and `error`; in this process, with a labeler that is loaded."""
    return [stored_row(labeler, result) for result in LabelerRun(labeler).label(rows)]
