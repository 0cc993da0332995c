"""Outcomes of asset checks: is it fresh, are rows in error, is labeling as fast as before, does the loss fall.

They need only footers and metrics. `checks` lets Dagster run them, and `follower` reports them without a run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

import dagster as dg

from labeling.dataset import open_store, read_row_errors
from pipelines.dashboard.dagster_internals import last_check_evaluations
from pipelines.dashboard.dataset_state import DatasetState, RangeState
from pipelines.dashboard.metadata import LABELED_BY, OLD_LABELED_BY, SPEED
from pipelines.dashboard.snapshots import Snapshot
from pipelines.dashboard.versions import Key
from pipelines.reports.figures import EVALUATION, read_json, run_figures
from pipelines.reports.run import run_records

MAX_ERRORS = 0.05  # of the rows
MAX_REASON_SHARDS = 4  # whose reasons are read; few, since the checks are evaluated often
MIN_SPEED = 0.5  # of the speed before
MAX_EVENTS = 400  # that are searched for earlier speeds
REPEAT_SECONDS = 900.0  # between events of a check that passes as before, with other numbers
MAX_RISE = 1.05  # of a validation loss over its lowest: more means overfitting
DATASET_CHECKS = frozenset({"fresh", "errors", "speed"})


@dataclass(frozen=True)
class CheckOutcome:
    """The outcome of one check. A check that does not pass is a warning, and blocks nothing."""

    key: Key
    check: str
    passed: bool
    description: str
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def result(self) -> dg.AssetCheckResult:
        """The outcome as a step of Dagster's returns it."""
        return dg.AssetCheckResult(
            asset_key=dg.AssetKey(self.key),
            check_name=self.check,
            passed=self.passed,
            severity=dg.AssetCheckSeverity.WARN,
            description=self.description,
            metadata=dict(self.metadata),
        )

    def evaluation(self) -> dg.AssetCheckEvaluation:
        """The outcome as it is reported without a run."""
        return dg.AssetCheckEvaluation(
            asset_key=dg.AssetKey(self.key),
            check_name=self.check,
            passed=self.passed,
            severity=dg.AssetCheckSeverity.WARN,
            description=self.description,
            metadata={
                name: dg.MetadataValue.int(value) if isinstance(value, int) else value
                for name, value in self.metadata.items()
            },
        )


def dataset_outcomes(
    state: DatasetState,
    instance: dg.DagsterInstance,
    checks: Collection[str] = DATASET_CHECKS,
    groups: Collection[str] | None = None,
) -> Iterator[CheckOutcome]:
    """Outcomes of DATASET_CHECKS, or those among them that are named, for all labels of a dataset, or some."""
    for group in state.snapshot.labels if groups is None else groups:
        key = (state.snapshot.tracked.name, group)
        totals = state.totals(group)
        if "fresh" in checks:
            yield _freshness(key, totals, state)
        if "errors" in checks:
            yield _errors(key, totals, _unavailable_rows(state, group) if totals.errors else 0)
        if "speed" in checks:
            yield _speed(key, state, instance)


def _unavailable_rows(state: DatasetState, group: str) -> int:
    """Rows of a group that nothing could label, by the reasons in the first shards."""
    footers = {name: state.footers[name] for name in state.snapshot.lineage(group)}
    return read_row_errors(state.dataset, footers, MAX_REASON_SHARDS).unavailable_rows(group)


def _errors(key: Key, totals: RangeState, unavailable: int) -> CheckOutcome:
    """unavailable: rows that nothing could label (labeling.dataset.row_errors), which are not in error."""
    errors = totals.errors - unavailable
    share = errors / max(totals.rows, 1)
    description = f"{errors:,} of {totals.rows:,} rows ({share:.1%}) are in error"
    if unavailable:
        description += f"; {unavailable:,} cannot have this label"
    metadata = {"rows in error": errors, "share": round(share, 4)}
    return CheckOutcome(key, "errors", share <= MAX_ERRORS, description, metadata)


def _freshness(key: Key, totals: RangeState, state: DatasetState) -> CheckOutcome:
    shards = totals.fresh + totals.stale + totals.missing
    description = f"all {shards} shards are fresh"
    if not totals.is_fresh:
        counts = [f"{count} {word}" for count, word in ((totals.stale, "stale"), (totals.missing, "missing")) if count]
        description = f"{' and '.join(counts)} of {shards} shards"
        ranges = [name for name, counted in state.ranges[key[1]].items() if not counted.is_fresh]
        if len(state.snapshot.ranges) > 1:
            description += f", in {', '.join(ranges[:8])}{' …' if len(ranges) > 8 else ''}"
    metadata = {"fresh": totals.fresh, "stale": totals.stale, "missing": totals.missing}
    return CheckOutcome(key, "fresh", totals.is_fresh, description, metadata)


def _speed(key: Key, state: DatasetState, instance: dg.DagsterInstance) -> CheckOutcome:
    """Compare the last labeling with the median of those before it.

    A job's folder knows only the speed of its last attempt; events know those of the attempts before.
    """
    speeds = {
        labeling.attempt_name: labeling.speed for labeling in reversed(state.labelings) if labeling.group == key[1]
    }
    for record in instance.fetch_materializations(dg.AssetKey(key), limit=MAX_EVENTS).records:
        metadata = record.asset_materialization.metadata if record.asset_materialization else {}
        name, speed = metadata.get(LABELED_BY) or metadata.get(OLD_LABELED_BY), metadata.get(SPEED)
        if name and speed and isinstance(speed.value, int | float):
            speeds.setdefault(str(name.value), float(speed.value))
    if not speeds:
        return CheckOutcome(key, "speed", True, "no job has labeled it yet")
    last, *earlier = speeds.values()
    if not earlier:
        return CheckOutcome(key, "speed", True, f"{last:.3g} rows a second", {SPEED: last})
    before = median(earlier)
    description = f"{last:.3g} rows a second, {before:.3g} before"
    return CheckOutcome(key, "speed", last >= MIN_SPEED * before, description, {SPEED: last})


def run_outcomes(snapshot: Snapshot) -> Iterator[CheckOutcome]:
    """Outcomes of the checks on a run's losses and evaluation, as far as those exist."""
    from training.checkpoint import checkpoint_name, whole_checkpoints

    name, store = snapshot.tracked.name, open_store(snapshot.tracked.address)
    records = run_records(store)
    losses = [record["loss"] for record in records if isinstance(record.get("loss"), int | float)]
    if losses:
        first, last = fmean(losses[:5]), fmean(losses[-5:])
        passed = math.isfinite(last) and (last < first or len(losses) < 10)
        description = f"{last:.4g} over the last records, {first:.4g} over the first"
        yield CheckOutcome((name, "checkpoints"), "loss", passed, description, _finite("loss", last))
    validation = [record["validation_loss"] for record in records if "validation_loss" in record]
    if validation:
        last, lowest = validation[-1], min(validation)
        passed = math.isfinite(last) and last <= MAX_RISE * lowest
        description = f"{last:.4g} at the newest checkpoint, {lowest:.4g} at the best"
        yield CheckOutcome((name, "checkpoints"), "validation", passed, description, _finite("validation loss", last))
    figures = run_figures(store)
    steps = whole_checkpoints(store) if figures else []
    if figures and steps:
        evaluated = (read_json(store, EVALUATION) or {}).get("checkpoint") or ""
        is_newest = not evaluated or evaluated.endswith(checkpoint_name(steps[-1]))
        losing = [figure.title for figure in figures if not figure.wins]
        description = (
            f"not above its baselines: {', '.join(losing)}" if losing else "every figure is above its baselines"
        )
        if not is_newest:
            description = f"of {evaluated.rsplit('/', 1)[-1]}, which is not the newest checkpoint"
        yield CheckOutcome((name, "evaluation"), "figures", is_newest and not losing, description)


def _finite(name: str, value: float) -> dict[str, float]:
    """Metadata of a number, where Dagster can store it."""
    return {name: value} if math.isfinite(value) else {}


def report_outcomes(
    instance: dg.DagsterInstance, outcomes: Iterable[CheckOutcome], repeat_seconds: float = REPEAT_SECONDS
) -> int:
    """Report the outcomes that differ from the last ones that Dagster knows; the number of reports.

    repeat_seconds: between reports that differ only in their numbers, since Dagster keeps every event forever.
    """
    by_key = {dg.AssetCheckKey(dg.AssetKey(outcome.key), outcome.check): outcome for outcome in outcomes}
    known = last_check_evaluations(instance, by_key)
    count = 0
    for key, outcome in by_key.items():
        reported, before = known.get(key, (0.0, None))
        if (
            before
            and before.passed == outcome.passed
            and (before.description == outcome.description or time.time() - reported < repeat_seconds)
        ):
            continue
        instance.report_runless_asset_event(outcome.evaluation())
        count += 1
    return count
