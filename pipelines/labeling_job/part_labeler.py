"""What a process of a labeling job does on CPUs: read a part of a shard, decode its images once, label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa

from labeling.dataset import IMAGES, Dataset
from labeling.labeler import Labeler
from labeling.resources import Resources
from labeling.supervision.task_attempt import Attempt
from pipelines.labeling_job.loaded_labelers import Labelers
from pipelines.labeling_job.parts import Part
from pipelines.labeling_job.row_group import Outputs, Requests, RowGroup
from pipelines.labeling_job.tables import to_bytes
from pipelines.labeling_job.tally import Tally

MOST_AHEAD = 4  # parts: one for each call, where they wait for networks
Key = tuple[str, int]  # shard and first row group of a part


@dataclass(frozen=True)
class Step:
    """How far a part has come.

    requests: what networks are to be asked before the next step; tables: columns of each group as an Arrow stream, once
    nothing is left to do.
    """

    tally: Tally
    requests: Requests = field(default_factory=dict)
    tables: Mapping[str, bytes] = field(default_factory=dict)


class PartLabeler:
    """Labels parts, step by step: until networks in other processes are to be asked, and on from there."""

    def __init__(
        self,
        dataset: Dataset,
        labelers: Mapping[str, Labeler],
        resources: Mapping[str, Resources],
        networks: Sequence[str],
    ) -> None:
        """networks: the groups whose networks are run by other processes."""
        self.dataset = dataset
        self.labelers = Labelers(labelers, resources, networks)
        self.pending: dict[Key, list[RowGroup]] = {}  # the parts that wait for networks
        self.prefetch: dict[Key, Future[list[RowGroup]]] = {}  # the parts that come next, as they are read
        self.reader = ThreadPoolExecutor(1)

    def __call__(self, task: tuple[Part, Outputs, Part | None], attempt: Attempt) -> Step:
        """The next step of a part, of which networks have given some outputs so far.

        task: with the part that comes next, which is read meanwhile: a store may be far away.
        Where this process is new and knows nothing of the part, it does what led to the outputs again.
        """
        part, outputs, following = task
        tally = Tally()
        key = _key(part)
        row_groups = self.pending.pop(key, None)
        if row_groups is None:
            with tally.timed("reading"):
                row_groups = self._take(part)
        if following is not None and attempt.is_first:  # where processes end, the rows under way must be the cause
            self._read_ahead(following)
        requests: dict[str, dict[str, bytes]] = {}
        for row_group in row_groups:
            for group, inputs in row_group.advance(self.labelers, attempt, outputs, tally).items():
                requests.setdefault(group, {}).update(inputs)
        if requests:
            self.pending[key] = row_groups
            return Step(tally, requests)
        for row_group in row_groups:
            row_group.count(self.labelers, tally)
        tables = {
            group: to_bytes(pa.concat_tables([row_group.labeled[group].table for row_group in row_groups]))
            for group in part.groups
        }
        return Step(tally, tables=tables)

    def _read_ahead(self, part: Part) -> None:
        """Begin to read a part that comes soon, once: every step of others may name it."""
        key = _key(part)
        if key not in self.prefetch and key not in self.pending and len(self.prefetch) < MOST_AHEAD:
            self.prefetch[key] = self.reader.submit(self._read, part)

    def _take(self, part: Part) -> list[RowGroup]:
        """The row groups of a part, which may have been read ahead."""
        ahead = self.prefetch.pop(_key(part), None)
        if ahead is not None and (ahead.done() or not ahead.cancel()) and not ahead.exception():
            return ahead.result()
        return self._read(part)  # once more where it failed, so that it fails as if nothing had been read ahead

    def _read(self, part: Part) -> list[RowGroup]:
        """The columns that labelers read from stored shards, and the labels there are where only errors count."""
        columns: dict[str, set[str]] = {IMAGES: {"id"}}
        for column in {column for group in part.groups for column in self.labelers[group].needs}:
            group, _, name = column.partition(".")
            if group not in part.groups:  # otherwise it is labeled here
                columns.setdefault(group, set()).add(name)
        for group, of_group in columns.items():
            if f"{group}.error" in part.digests:  # why a row lacks what is read
                of_group.add("error")
        names: dict[str, list[str] | None] = {group: sorted(of_group) for group, of_group in columns.items()}
        numbers = list(range(part.first, part.end))
        table = self.dataset.join(part.shard, names, numbers)
        before = {}
        if part.only_errors:
            before = {group: self.dataset.read(group, part.shard, None, numbers) for group in part.groups}
        row_groups, start = [], 0
        for number in numbers:
            rows = part.row_groups[number]
            old = {group: labels.slice(start, rows) for group, labels in before.items()}
            row_groups.append(RowGroup(part, table.slice(start, rows), old, self.dataset.has_sets))
            start += rows
        return row_groups


def _key(part: Part) -> Key:
    return part.shard, part.first
