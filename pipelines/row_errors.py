"""What groups have no label for, and why: said at the end of `label` and of its jobs, and by `status`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from labeling.dataset import Dataset, Footers, FooterTable, Unavailable, read_row_errors, upstream_groups
from model.inputs import WorkFailed, one_line

MAX_SHARDS, STATUS_SHARDS = 16, 64  # of which reasons are read: after labeling, and for `status`
MAX_REASONS = 5  # of a group that are shown
LONGEST_REASON = 200  # characters that are shown


@dataclass(frozen=True)
class GroupErrors:
    """Rows of one group without a label.

    rows: all that it has; in_error: those in error; unavailable: those that nothing can label yet; reasons: reason →
    (rows, the id of one of them), the most frequent first, as far as they were read.
    """

    rows: int
    in_error: int
    unavailable: int
    reasons: Mapping[str, tuple[int, str]]

    @property
    def all_failed(self) -> bool:
        """Whether none of the rows that can have a label has one."""
        return 0 < self.in_error == self.rows - self.unavailable

    def to_json(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        reasons = {reason: count for reason, (count, _) in list(self.reasons.items())[:MAX_REASONS]}
        return {"in_error": self.in_error, "unavailable": self.unavailable, "reasons": reasons}


@dataclass(frozen=True)
class DatasetErrors:
    """Rows without a label of some groups of a dataset, by group; unavailable: why some can have none."""

    dataset: str
    groups: Mapping[str, GroupErrors]
    unavailable: Sequence[Unavailable]

    def lines(self) -> list[str]:
        """What a person reads: some lines for each group with rows in error, one for each kind of unavailable ones."""
        lines = []
        for group, errors in self.groups.items():
            if not errors.in_error:
                continue
            lines.append(f"{group}: {errors.in_error} of {errors.rows} rows in error")
            shown = list(errors.reasons.items())[:MAX_REASONS]
            for reason, (count, example) in shown:
                lines.append(f"  {count} × {one_line(reason, LONGEST_REASON)} (as {example})")
            rest = errors.in_error - sum(count for _, (count, _) in shown)
            if rest:
                lines.append(f"  {rest} × other reasons")
        return [*lines, *(labels.remark(self.dataset) for labels in self.unavailable)]

    def check(self) -> None:
        """Raise WorkFailed where every row of a group that could have a label is in error."""
        failed = [group for group, errors in self.groups.items() if errors.all_failed]
        if failed:
            reasons = self.groups[failed[0]].reasons
            why = f" ({one_line(next(iter(reasons)), LONGEST_REASON)})" if reasons else ""
            again = f"onediffusion label {self.dataset} {' '.join(failed)} --only-errors"
            raise WorkFailed(f"{', '.join(failed)}: every row is in error{why}; when it is mended: {again}")


def labeled_errors(
    uri: str,
    groups: Sequence[str],
    shards: tuple[int, int] | None = None,
    known: Mapping[str, FooterTable] | None = None,
) -> DatasetErrors:
    """Rows without a label of groups that were labeled. shards: [first, end), all by default.

    known: the footers of these shards as they are now, of some groups: those are not read again.
    """
    dataset = Dataset(uri)
    known = known or {}
    needed = _with_upstream(dataset, groups)
    lacking = [group for group in needed if group not in known]
    read = dataset.all_footers(lacking, shards=shards) if lacking else {}
    footers = {group: read[group] if group in read else known[group] for group in needed}
    return dataset_errors(uri, dataset, footers, groups)


def dataset_errors(
    uri: str, dataset: Dataset, footers: Footers, groups: Sequence[str], max_shards: int = MAX_SHARDS
) -> DatasetErrors:
    """Rows without a label of groups.

    uri: as a person wrote it; footers: of the groups and of all that they are made from; max_shards: of which reasons
    are read.
    """
    errors = read_row_errors(dataset, footers, max_shards)
    by_group = {}
    for group in groups:
        table = FooterTable.of(footers[group])
        positions = table.positions(table.names())
        unavailable = errors.unavailable_rows(group)
        reasons = {reason: (len(ids), str(ids[0])) for reason, ids in errors.reasons.get(group, {}).items()}
        by_group[group] = GroupErrors(
            rows=table.total("rows", positions),
            in_error=table.total("errors", positions) - unavailable,
            unavailable=unavailable,
            reasons=dict(sorted(reasons.items(), key=lambda item: -item[1][0])),
        )
    return DatasetErrors(uri, by_group, [one for one in errors.unavailable if set(groups) & one.rows.keys()])


def _with_upstream(dataset: Dataset, groups: Sequence[str]) -> list[str]:
    """The groups and all that they are made from: why one has no label may lie in what it reads."""
    every: dict[str, None] = {}
    waiting = list(groups)
    while waiting:
        read = upstream_groups(dataset, waiting)
        every.update(dict.fromkeys(waiting))
        waiting = [name for names in read.values() for name in names if name not in every]
    return list(every)
