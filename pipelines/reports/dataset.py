"""The section of a page about a dataset: its groups, what went wrong in it, and the gallery of its rows."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from labeling.dataset import REJECTED, Dataset, GroupStatus, RowErrors, dataset_status, read_row_errors, select_rows
from model.inputs import InputError, WorkFailed
from pipelines.reports.figures import EVALUATION
from pipelines.reports.gallery import GalleryRow, draw_gallery
from pipelines.reports.overlays import Inliner
from pipelines.reports.sets import describe_sets

MAX_REJECTED_NAMES, MAX_REASONS, MAX_EXAMPLES = 6, 40, 4
# What the embedded labelers are known to be bad at (docs/catalog.md), said beside their figures.
BAD_AT = {
    "depth": "no depth where the right picture does not see, or all looks alike",
    "segmentation": "only what a box of COCO's 80 classes is around; small people; a dish with its saucer",
    "duplicates": "copies cut to another shape",
    "faces": "leaves and animals among the less sure faces; none behind a visor",
}
_NUMBER = re.compile(r"\d+")
MAX_REJECTED_READ = 10_000  # files whose reasons are read; their count comes from footers and is of all


@dataclass(frozen=True)
class GroupLine:
    """A line of the table of groups. errors: rows that a person must act on; unavailable: that nothing could label."""

    name: str
    labeler: str
    model: str
    rows: int
    fresh: int
    stale: int
    missing: int
    errors: int
    unavailable: int


@dataclass(frozen=True)
class Reason:
    """Why rows of a group are in error, or files were rejected: how many, and some of their ids or names."""

    group: str
    reason: str
    count: int
    examples: Sequence[str]


@dataclass(frozen=True)
class UnavailableLabels:
    """Labels that nothing could make, said once for all rows. command: what a person types to have them."""

    groups: Sequence[str]
    rows: int
    reason: str
    command: str


@dataclass(frozen=True)
class DatasetSection:
    """All that the page shows of a dataset; with `trouble`, it could not be read and the rest is empty."""

    uri: str
    trouble: str = ""
    kind: str = ""
    rows: int = 0
    removed: int = 0  # rows whose pictures were removed at their source
    shards: int = 0
    sources: Sequence[str] = ()
    groups: Sequence[GroupLine] = ()
    errors: Sequence[Reason] = ()
    errors_unread: int = 0
    unavailable: Sequence[UnavailableLabels] = ()
    rejected: Sequence[Reason] = ()
    rejected_count: int = 0
    gallery: Sequence[GalleryRow] = ()
    truth: Sequence[tuple[str, int, str, str]] = ()  # group, rows, figures beside the truth, and what it is bad at
    groups_of: Mapping[str, Any] | None = None  # of sets without cameras: their kind, figures and a curve of thresholds
    where: str = ""  # a condition on the rows that the gallery shows
    selected: int = 0  # rows of which it is true


def describe_dataset(uri: str, inline: Inliner, max_rows: int, where: str | None = None) -> DatasetSection:
    """Read a dataset for the page: at most `max_rows` of its rows, spread evenly, until `inline` is full.

    where: SQL that is true of the rows to show. A dataset that is not there gives a section that says so.
    Raises InputError for a bad condition.
    """
    try:
        dataset = Dataset.open(uri)
        footers = dataset.all_footers(dataset.groups())
        status = dataset_status(dataset, footers=footers)
    except (InputError, WorkFailed) as error:
        return DatasetSection(uri, trouble=str(error))
    errors = read_row_errors(dataset, footers)
    rejected, rejected_count = _rejected(dataset)
    selection = select_rows(dataset, where, footers) if where is not None else None
    gallery, models = draw_gallery(dataset, footers, inline, max_rows, selection)
    return DatasetSection(
        uri=dataset.uri,
        kind=dataset.kind,
        rows=sum(shard.rows for shard in dataset.shards),
        removed=sum(len(dataset.removed_rows(shard)) for shard in dataset.shard_names),
        shards=len(dataset.shards),
        sources=[str(source.get("uri", "")) for source in dataset.sources],
        groups=_group_lines(dataset, status, errors, models),
        errors=_reasons(errors),
        errors_unread=sum(errors.unread.values()),
        unavailable=[
            UnavailableLabels(list(one.rows), max(one.rows.values()), one.missing.what, one.command(dataset.uri))
            for one in errors.unavailable
        ],
        rejected=rejected,
        rejected_count=rejected_count,
        gallery=gallery,
        truth=_truth(dataset),
        groups_of=describe_sets(dataset),
        where=where or "",
        selected=selection.rows if selection else 0,
    )


def _truth(dataset: Dataset) -> list[tuple[str, int, str, str]]:
    """What `evaluate` found, by group."""
    if not dataset.store.exists(EVALUATION):
        return []
    figures = json.loads(dataset.store.read(EVALUATION))["figures"]
    return [
        (
            group,
            int(of_group["rows"]),
            ", ".join(f"{name} {value:.2f}" for name, value in of_group.items() if name != "rows"),
            "" if _names_model(dataset, group) else BAD_AT.get(group, ""),
        )
        for group, of_group in figures.items()
    ]


def _names_model(dataset: Dataset, group: str) -> bool:
    return bool((dataset.declaration(group) or {}).get("parameters", {}).get("model"))


def _group_lines(
    dataset: Dataset, status: Mapping[str, GroupStatus], errors: RowErrors, models: Mapping[str, str]
) -> list[GroupLine]:
    lines = []
    for group, state in status.items():
        declaration = dataset.declaration(group) or {}
        labeler = f"{declaration.get('labeler', '')} {declaration.get('version', '')}".strip()
        unavailable = errors.unavailable_rows(group)
        lines.append(
            GroupLine(
                name=group,
                labeler=labeler,
                model=models.get(group, ""),
                rows=state.rows,
                fresh=state.fresh,
                stale=state.stale,
                missing=state.missing,
                errors=state.errors - unavailable,
                unavailable=unavailable,
            )
        )
    return lines


def _reasons(errors: RowErrors) -> list[Reason]:
    """Why rows are in error, most frequent reasons first."""
    reasons = [reason for group, ids in errors.reasons.items() for reason in _count(group, ids)]
    return sorted(reasons, key=lambda one: -one.count)[:MAX_REASONS]


def _rejected(dataset: Dataset) -> tuple[list[Reason], int]:
    """Why files were rejected, most frequent reasons first, and how many were."""
    reasons: dict[str, list[str]] = defaultdict(list)
    footers = dataset.footers(REJECTED)
    for shard, footer in footers.items():
        if footer.rows and sum(len(names) for names in reasons.values()) < MAX_REJECTED_READ:
            for row in dataset.read(REJECTED, shard).to_pylist():
                reasons[row["reason"]].append(row["source"])
    count = sum(footer.rows for footer in footers.values())
    return _count(REJECTED, _by_kind(reasons), MAX_REJECTED_NAMES)[:MAX_REASONS], count


def _by_kind(reasons: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """The names of files by what is alike in their reasons: these may name another file, or sizes."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for reason in reasons:
        kinds["same bytes as" if reason.startswith("same bytes as ") else _NUMBER.sub("…", reason)].append(reason)
    return {
        alike[0] if len(alike) == 1 else f"{alike[0]}; {len(alike) - 1} more like it": [
            name for reason in alike for name in reasons[reason]
        ]
        for alike in kinds.values()
    }


def _count(group: str, rows: Mapping[str, Sequence[str]], max_examples: int = MAX_EXAMPLES) -> list[Reason]:
    """The reasons with their counts, most frequent first. rows: reason → ids or names."""
    reasons = [Reason(group, reason, len(names), names[:max_examples]) for reason, names in rows.items()]
    return sorted(reasons, key=lambda one: (-one.count, one.reason))
