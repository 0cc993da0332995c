"""Metadata of the events that asset pages show: pictures, counts, errors by reason, speed."""

from __future__ import annotations

from collections import Counter
from typing import Any

import dagster as dg

from labeling.dataset import Dataset, FooterTable, open_store
from model.inputs import one_line
from pipelines.dashboard.charts import save_charts
from pipelines.dashboard.contact_sheets import contact_sheet, sample_sheet
from pipelines.dashboard.dagster_internals import PARTITION_ROW_COUNT, ROW_COUNT
from pipelines.dashboard.dataset_state import DatasetState
from pipelines.dashboard.labeling_history import Labeling
from pipelines.dashboard.partitions import ShardRange
from pipelines.dashboard.snapshots import Snapshot
from pipelines.dashboard.versions import AssetVersion, partition_of
from pipelines.reports.figures import run_figures
from pipelines.reports.overlays import Inliner
from pipelines.reports.run import RunSection, describe_run
from pipelines.row_errors import GroupErrors, dataset_errors

MAX_ERROR_SHARDS, MAX_REASONS = 64, 6
LABELED_BY, SPEED = "labeled by", "rows a second"
OLD_LABELED_BY = "labelled by"  # the same, in events of earlier versions of the dashboard
MAX_CHARACTERS = 900  # of Markdown; Dagster puts longer texts behind a link


def group_metadata(state: DatasetState, version: AssetVersion) -> dict[str, Any]:
    """Metadata of a group, or of one range of its shards."""
    snapshot, group = state.snapshot, version.key[1]
    part = _range_of(snapshot, version.partition)
    counts = state.ranges[group][part.key]
    dataset, shards = state.dataset, list(state.shards[part.first : part.end])
    metadata: dict[str, Any] = {}
    sheet = contact_sheet(dataset, group, shards, state.footers)
    if sheet:
        metadata["pictures"] = dg.MetadataValue.md(f"![{group}]({sheet})")
    metadata[PARTITION_ROW_COUNT if version.partition else ROW_COUNT] = counts.rows
    metadata |= _errors_metadata(state, dataset, group, shards) if counts.errors else {"rows in error": 0}
    metadata["shards"] = counts.fresh + counts.stale
    last = next((labeling for labeling in reversed(state.labelings) if labeling.group == group), None)
    return metadata | (labeling_metadata(last) if last else {})


def labeling_metadata(labeling: Labeling) -> dict[str, Any]:
    """Metadata of a job's work on a group."""
    return {
        LABELED_BY: labeling.attempt_name,
        "rows labeled by the job": labeling.rows,
        SPEED: round(labeling.speed, 2),
        "seconds of work": round(labeling.seconds, 2),
    }


def _range_of(snapshot: Snapshot, partition: str | None) -> ShardRange:
    return next(
        part for part in snapshot.ranges if partition in (None, part.key) or partition_of(snapshot, part) is None
    )


def _errors_metadata(state: DatasetState, dataset: Dataset, group: str, shards: list[str]) -> dict[str, Any]:
    """Rows of some shards that are in error, by reason; and, apart from them, those that nothing can label yet."""
    # Why a row has no label may lie in what the label is made from.
    groups = state.snapshot.lineage(group)
    footers = {name: FooterTable.of(state.footers[name]).only(shards) for name in groups}
    errors = dataset_errors(dataset.uri, dataset, footers, [group], MAX_ERROR_SHARDS)
    of_group = errors.groups[group]
    metadata: dict[str, Any] = {"rows in error": of_group.in_error}
    if of_group.in_error:
        metadata["errors"] = dg.MetadataValue.md(_error_table(of_group))
    if of_group.unavailable:
        metadata["rows unavailable"] = of_group.unavailable
        metadata["why"] = " ".join(labels.remark(dataset.uri) for labels in errors.unavailable)
    return metadata


def _error_table(errors: GroupErrors) -> str:
    """The reasons of errors as a table of Markdown, most frequent first."""
    reasons: Counter[str] = Counter()
    for text, (count, _) in errors.reasons.items():
        reasons[_reason(text)] += count
    lines = ["| rows | reason |", "| ---: | :--- |"]
    for reason, count in reasons.most_common(MAX_REASONS):
        lines.append(f"| {count} | {reason} |")
    if len(reasons) > MAX_REASONS:
        lines.append(f"| … | and {len(reasons) - MAX_REASONS} other reasons |")
    return "\n".join(lines)


def _reason(text: str) -> str:
    """A labeler's text without the characters that would change a table of Markdown."""
    plain = "".join(character for character in one_line(text) if character not in "|<>[]()`*_\\")
    return plain if len(plain) <= 100 else f"{plain[:99]}…"


def checkpoint_metadata(address: str) -> dict[str, Any]:
    """Metadata of a run's checkpoints: loss curves, samples, steps and speed."""
    return run_metadata(describe_run(address, Inliner(2_000_000), figures={}, tasks=False))


def progress_metadata(address: str) -> dict[str, Any]:
    """Metadata of a run that goes on: without samples, which take long to read."""
    return run_metadata(describe_run(address, Inliner(0), figures={}, tasks=False))


def run_metadata(run: RunSection) -> dict[str, Any]:
    """A run's section of the report as metadata; numbers as numbers, so that Dagster plots them over time."""
    metadata: dict[str, Any] = {}
    curves = save_charts(run.charts, columns=1)
    if curves:
        metadata["loss"] = dg.MetadataValue.md(f"![loss, throughput, learning rate and gradient norm]({curves})")
    tasks = save_charts(run.task_charts, columns=2)
    if tasks:
        metadata["loss by task"] = dg.MetadataValue.md(f"![loss by task]({tasks})")
    samples = sample_sheet(run)
    if samples:
        metadata["samples"] = dg.MetadataValue.md(f"![samples]({samples})")
    metadata["step"] = run.step
    for name, text in (("last loss", run.loss), ("tokens a second", run.speed)):
        if (value := _as_number(text)) is not None:
            metadata[name] = value
    facts = "\n".join(["| | |", "| :--- | :--- |", *(f"| {name} | {value} |" for name, value in run.facts.items())])
    if run.facts and len(facts) <= MAX_CHARACTERS:
        metadata["facts"] = dg.MetadataValue.md(facts)
    return metadata


def evaluation_metadata(address: str) -> dict[str, Any]:
    """Metadata of a run's evaluation: its figures beside the baselines."""
    figures = run_figures(open_store(address))
    lines = [
        "| figure | model | before training | other labels | other pictures |",
        "| :--- | ---: | ---: | ---: | ---: |",
    ]
    lines += [f"| {figure.title} | {figure.model} | {' | '.join(figure.baselines)} |" for figure in figures]
    metadata: dict[str, Any] = {"figures": dg.MetadataValue.md("\n".join(lines))}
    for figure in figures:
        if (value := _as_number(figure.model)) is not None:
            metadata[figure.title] = value
    return metadata


def _as_number(text: str) -> float | None:
    """The number that a report shows as text; None where it shows none."""
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None
