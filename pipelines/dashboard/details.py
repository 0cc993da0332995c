"""What asset pages say: pictures, counts, errors by reason, speed; short, so that Dagster shows it at once."""

from __future__ import annotations

from collections import Counter
from typing import Any

import dagster as dg

from labeling.dataset import Dataset, open_store
from model.inputs import one_line
from pipelines.dashboard.fingerprints import DatasetState, Version, partition_of
from pipelines.dashboard.labeling_history import Labeling
from pipelines.dashboard.ranges import Range
from pipelines.dashboard.sheets import contact_sheet, sample_sheet, save_charts
from pipelines.dashboard.snapshots import Snapshot
from pipelines.reports.overlays import Inliner
from pipelines.reports.run import RunSection, describe_run, run_figures

MOST_ERROR_SHARDS, MOST_REASONS = 64, 6
LABELED_BY, SPEED = "labeled by", "rows a second"
MOST_CHARACTERS = 900  # Dagster puts longer Markdown behind a link


def group_details(state: DatasetState, version: Version) -> dict[str, Any]:
    """Of a group, or a range of it."""
    snapshot, group = state.snapshot, version.key[1]
    part = _part(snapshot, version.partition)
    own = state.ranges[group][part.key]
    dataset = Dataset.open(snapshot.place.address)
    shards = [shard.name for shard in dataset.shards[part.first : part.end]]
    found: dict[str, Any] = {}
    sheet = contact_sheet(dataset, group, shards, state.footers)
    if sheet:
        found["pictures"] = dg.MetadataValue.md(f"![{group}]({sheet})")
    counted = "dagster/partition_row_count" if version.partition else "dagster/row_count"
    found |= {counted: own.rows, "rows in error": own.errors}
    if own.errors:
        found["errors"] = dg.MetadataValue.md(_errors(dataset, group, [s for s in shards if s in state.footers[group]]))
    found["shards"] = own.fresh + own.stale
    last = next((one for one in reversed(state.labelings) if one.group == group), None)
    return found | (labeling_details(last) if last else {})


def labeling_details(labeling: Labeling) -> dict[str, Any]:
    """Of a job's work on a group."""
    return {
        LABELED_BY: labeling.job,
        "rows labeled by the job": labeling.rows,
        SPEED: round(labeling.speed, 2),
        "seconds of work": round(labeling.seconds, 2),
    }


def _part(snapshot: Snapshot, partition: str | None) -> Range:
    return next(
        part for part in snapshot.ranges if partition in (None, part.key) or partition_of(snapshot, part) is None
    )


def _errors(dataset: Dataset, group: str, shards: list[str]) -> str:
    """A table of the reasons, most frequent first."""
    reasons: Counter[str] = Counter()
    for shard in shards[:MOST_ERROR_SHARDS]:
        column = dataset.read(group, shard, ["error"])["error"].drop_null()
        reasons.update(_reason(str(value)) for value in column.to_pylist())
    lines = ["| rows | reason |", "| ---: | :--- |"]
    for reason, count in reasons.most_common(MOST_REASONS):
        lines.append(f"| {count} | {reason} |")
    if len(reasons) > MOST_REASONS:
        lines.append(f"| … | and {len(reasons) - MOST_REASONS} other reasons |")
    return "\n".join(lines)


def _reason(text: str) -> str:
    """As it may stand in a table of Markdown, whatever a labeler wrote."""
    plain = "".join(sign for sign in one_line(text) if sign not in "|<>[]()`*_\\")
    return plain if len(plain) <= 100 else f"{plain[:99]}…"


def checkpoint_details(address: str) -> dict[str, Any]:
    """Of a run's checkpoints: its loss curves, its samples, how far and how fast it went."""
    return run_details(describe_run(address, Inliner(2_000_000), figures={}, tasks=False))


def progress_details(address: str) -> dict[str, Any]:
    """The same while it goes on: without samples, which cost reading."""
    return run_details(describe_run(address, Inliner(0), figures={}, tasks=False))


def run_details(run: RunSection) -> dict[str, Any]:
    """What is known of a run as metadata; numbers as numbers, so that Dagster plots them over time."""
    found: dict[str, Any] = {}
    curves = save_charts(run.charts, columns=1)
    if curves:
        found["loss"] = dg.MetadataValue.md(f"![loss, throughput, learning rate and gradient norm]({curves})")
    tasks = save_charts(run.task_charts, columns=2)
    if tasks:
        found["loss by task"] = dg.MetadataValue.md(f"![loss by task]({tasks})")
    samples = sample_sheet(run)
    if samples:
        found["samples"] = dg.MetadataValue.md(f"![samples]({samples})")
    found["step"] = run.step
    for name, text in (("last loss", run.loss), ("tokens a second", run.speed)):
        if (value := _plain(text)) is not None:
            found[name] = value
    facts = "\n".join(["| | |", "| :--- | :--- |", *(f"| {name} | {value} |" for name, value in run.facts.items())])
    if run.facts and len(facts) <= MOST_CHARACTERS:
        found["facts"] = dg.MetadataValue.md(facts)
    return found


def evaluation_details(address: str) -> dict[str, Any]:
    """Of a run's evaluation: its figures beside the baselines."""
    figures = run_figures(open_store(address))
    lines = [
        "| figure | model | before training | other labels | other pictures |",
        "| :--- | ---: | ---: | ---: | ---: |",
    ]
    lines += [f"| {one.title} | {one.model} | {' | '.join(one.baselines)} |" for one in figures]
    found: dict[str, Any] = {"figures": dg.MetadataValue.md("\n".join(lines))}
    for one in figures:
        if (value := _plain(one.model)) is not None:
            found[one.title] = value
    return found


def _plain(text: str) -> float | None:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None
