"""Why rows have no label: errors that a person must act on, and labels that nothing could make.

A labeler that was given nothing to make a label with says so in a reason that ends in ": set LABELER.PARAMETER=NAME",
as depth does where no model is named and the row has no stereo pair. Such a row is *unavailable*, not in error, and so
is a row of another group that needs the label it lacks.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from labeling.dataset.dataset import Dataset
from labeling.dataset.footers import FooterTable
from labeling.dataset.parallel import in_parallel
from labeling.dataset.status import Footers, groups_of

THREADS = 16
MAX_SHARDS = 64  # whose reasons are read: counts are in footers, reasons are not
_REASON = re.compile(r"(?P<what>.+): set (?P<parameter>[\w-]+\.\w+)=NAME")
NOT_SELECTED = "not selected"  # the error of a row that a group is not to label
_VIEW = re.compile(r"view \d+: ")


@dataclass(frozen=True)
class MissingParameter:
    """What a row lacks for a label, and the parameter ("depth.model") that would provide it.

    Of a row that is not to be labeled there is no such parameter, "".
    """

    what: str
    parameter: str

    @property
    def reason(self) -> str:
        """The text in the row's `error`."""
        return f"{self.what}: set {self.parameter}=NAME" if self.parameter else self.what

    @classmethod
    def of(cls, reason: str) -> MissingParameter | None:
        """What a text in `error` says is missing, None where it is an error. In a set all views must lack the same."""
        if reason == NOT_SELECTED:
            return cls(NOT_SELECTED, "")
        parts = _VIEW.split(reason)
        parts = [part.removesuffix("; ") for part in (parts if len(parts) == 1 else parts[1:])]
        matches = {match and (match["what"], match["parameter"]) for match in map(_REASON.fullmatch, parts)}
        only = matches.pop()
        return cls(*only) if only and not matches else None


@dataclass(frozen=True)
class Unavailable:
    """Rows that can have no label until a parameter is set: group → how many, the group of the parameter first."""

    missing: MissingParameter
    rows: Mapping[str, int]

    def command(self, dataset: str) -> str:
        """What a person types to have these rows labeled, NAME being the model."""
        option = f"--set {self.missing.parameter}=NAME" if self.missing.parameter else "--where true"
        return f"onediffusion label {dataset} {' '.join(self.rows)} {option}"

    def remark(self, dataset: str) -> str:
        """What a person is told of these rows."""
        if not self.missing.parameter:
            rows = f"{max(self.rows.values())} rows have no {', '.join(self.rows)}: they are not selected"
            return f"{rows}. To have them labeled: {self.command(dataset)}"
        rows = f"{max(self.rows.values())} rows cannot have {', '.join(self.rows)}: {self.missing.what}"
        return f"{rows}. To have them labeled, name a model: {self.command(dataset)}"


@dataclass(frozen=True)
class RowErrors:
    """Rows without a label, by group.

    reasons: group → reason → ids of the rows in error. unread: group → rows in error of shards that were not read.
    """

    reasons: Mapping[str, Mapping[str, Sequence[str]]]
    unread: Mapping[str, int]
    unavailable: Sequence[Unavailable]

    def unavailable_rows(self, group: str) -> int:
        """How many rows of a group are unavailable, which footers count as errors."""
        return sum(one.rows.get(group, 0) for one in self.unavailable)


def missing_parameter(
    group: str, errors: Mapping[str, str | None], upstream: Mapping[str, Sequence[str]]
) -> MissingParameter | None:
    """Why one row of a group is unavailable, None where it has a label or is in error.

    errors: of this row in every group; upstream: group → the groups that it reads.
    """
    reason = errors.get(group)
    if not reason:
        return None
    causes = (missing_parameter(read, errors, upstream) for read in upstream.get(group, ()))
    return MissingParameter.of(reason) or next(filter(None, causes), None)


def upstream_groups(dataset: Dataset, groups: Sequence[str]) -> dict[str, list[str]]:
    """Group → the groups whose columns it reads."""
    declarations = {group: dataset.declaration(group) or {} for group in groups}
    return {group: groups_of(declaration.get("reads", ())) for group, declaration in declarations.items()}


def read_row_errors(dataset: Dataset, footers: Footers, max_shards: int = MAX_SHARDS) -> RowErrors:
    """Sort the rows that footers (group → shard → footer) count as errors, by the reasons in the first shards.

    Where all rows of a group that were read are unavailable, those of its other shards are taken to be so too.
    """
    upstream = upstream_groups(dataset, list(footers))
    errors_of: dict[str, dict[str, int]] = defaultdict(dict)  # shard → group → rows that its footer counts
    for group, shards in footers.items():
        for shard, count in FooterTable.of(shards).errors().items():
            errors_of[shard][group] = count
    reasons: dict[str, dict[str, list[str]]] = {group: defaultdict(list) for group in footers}
    missing_rows: dict[MissingParameter, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    unread: dict[str, int] = defaultdict(int)
    in_order = sorted(errors_of.items())
    for _, counts in in_order[max_shards:]:
        for group, count in counts.items():
            unread[group] += count
    read = in_parallel(lambda one: _read_errors(dataset, one[0], list(one[1])), in_order[:max_shards], THREADS)
    for rows_in_error in read:
        for identity, errors in rows_in_error:
            for group, reason in errors.items():
                missing = missing_parameter(group, errors, upstream)
                if missing:
                    missing_rows[missing][group] += 1
                elif reason:
                    reasons[group][reason].append(identity)
    for rows in missing_rows.values():
        for group in [group for group in rows if not reasons[group]]:
            rows[group] += unread.pop(group, 0)
    unavailable = [Unavailable(missing, _in_order(rows, upstream)) for missing, rows in missing_rows.items()]
    return RowErrors(reasons, unread, sorted(unavailable, key=lambda one: one.missing.parameter))


def _read_errors(dataset: Dataset, shard: str, groups: Sequence[str]) -> list[tuple[str, dict[str, str | None]]]:
    """Id and errors by group of every row of a shard."""
    rows = []
    for row in dataset.join(shard, {group: ["id", "error"] for group in groups}, skip_missing=True).to_pylist():
        errors = {group: row[f"{group}.error"] for group in groups if f"{group}.error" in row}
        if errors:  # a shard may be gone since its footer was read
            rows.append((row[f"{next(iter(errors))}.id"], errors))
    return rows


def _in_order(counts: Mapping[str, int], upstream: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Groups after those that they read."""
    ordered: dict[str, int] = {}

    def visit(group: str) -> None:
        for read in upstream.get(group, ()):
            if read in counts and read not in ordered:
                visit(read)
        ordered.setdefault(group, counts[group])

    for group in counts:
        visit(group)
    return ordered
