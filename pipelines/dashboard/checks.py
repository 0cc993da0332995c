"""Asset checks: is it fresh, how many rows are in error, is labeling as fast as before, does the loss fall.

They read footers and metrics alone. They can be run in Dagster, and the sensor that follows what happens elsewhere
reports them as well.
"""

# No postponed annotations: Dagster reads those of its steps.
import math
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import dagster as dg

from labeling.dataset import open_store
from model.inputs import InputError, one_line
from pipelines.dashboard.details import LABELED_BY, SPEED
from pipelines.dashboard.fingerprints import DatasetState, Key, RangeState, dataset_state
from pipelines.dashboard.launch import explained
from pipelines.dashboard.snapshots import Snapshot, find_snapshot, look
from pipelines.dashboard.tracked_assets import Place
from pipelines.reports.run import EVALUATION, read_json, run_figures, run_records

MOST_ERRORS = 0.05  # of the rows
LEAST_SPEED = 0.5  # of what it was before
MOST_EVENTS = 400  # that are looked at for what it was before
SAID_SECONDS = 900.0  # between events of a check that say the same with other numbers
MOST_RISE = 1.05  # of a held-out loss over its lowest: more is learning by heart
DATASET_CHECKS = frozenset({"fresh", "errors", "speed"})
_ABOUT = {
    "fresh": "No shard is missing or stale, by the fingerprints in their footers.",
    "errors": f"At most {MOST_ERRORS:.0%} of the rows are in error.",
    "speed": "Labeling is at least half as fast as in earlier runs.",
    "sources": "All pictures of the sources are in the dataset.",
    "loss": "The loss is a number, and lower than at the start.",
    "held_out": "The loss on rows that nothing is learned from is not rising.",
    "figures": "The evaluation is of the newest checkpoint, and the model beats every baseline.",
}


@dataclass(frozen=True)
class Verdict:
    """The outcome of one check; a check that does not pass warns, and keeps nobody from anything."""

    key: Key
    check: str
    passed: bool
    said: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    def result(self) -> dg.AssetCheckResult:
        """As a check that ran in Dagster gives it."""
        return dg.AssetCheckResult(
            asset_key=dg.AssetKey(self.key),
            check_name=self.check,
            passed=self.passed,
            severity=dg.AssetCheckSeverity.WARN,
            description=self.said,
            metadata=dict(self.facts),
        )

    def evaluation(self) -> dg.AssetCheckEvaluation:
        """As it is reported without a run."""
        return dg.AssetCheckEvaluation(
            asset_key=dg.AssetKey(self.key),
            check_name=self.check,
            passed=self.passed,
            severity=dg.AssetCheckSeverity.WARN,
            description=self.said,
            metadata={name: dg.MetadataValue.int(v) if isinstance(v, int) else v for name, v in self.facts.items()},
        )


def dataset_verdicts(
    state: DatasetState, instance: dg.DagsterInstance, checks: Collection[str] = DATASET_CHECKS
) -> Iterator[Verdict]:
    """Of all groups of a dataset, but whether its sources have new pictures."""
    for group in state.snapshot.labels:
        key = (state.snapshot.place.name, group)
        whole = state.totals(group)
        if "fresh" in checks:
            yield _freshness(key, whole, state)
        if "errors" in checks:
            share = whole.errors / max(whole.rows, 1)
            said = f"{whole.errors:,} of {whole.rows:,} rows ({share:.1%}) are in error"
            facts = {"rows in error": whole.errors, "share": round(share, 4)}
            yield Verdict(key, "errors", share <= MOST_ERRORS, said, facts)
        if "speed" in checks:
            yield _speed(key, state, instance)


def _freshness(key: Key, whole: RangeState, state: DatasetState) -> Verdict:
    shards = whole.fresh + whole.stale + whole.missing
    said = f"all {shards} shards are fresh" if whole.is_fresh else ""
    if not whole.is_fresh:
        parts = [f"{count} {what}" for count, what in ((whole.stale, "stale"), (whole.missing, "missing")) if count]
        said = f"{' and '.join(parts)} of {shards} shards"
        bad = [name for name, one in state.ranges[key[1]].items() if not one.is_fresh]
        if len(state.snapshot.ranges) > 1:
            said += f", in {', '.join(bad[:8])}{' …' if len(bad) > 8 else ''}"
    facts = {"fresh": whole.fresh, "stale": whole.stale, "missing": whole.missing}
    return Verdict(key, "fresh", whole.is_fresh, said, facts)


def _speed(key: Key, state: DatasetState, instance: dg.DagsterInstance) -> Verdict:
    """The last labeling beside the median of those before it.

    A job that was sent again says only of its last attempt how fast it was; events know of those before.
    """
    speeds = {one.job: one.speed for one in reversed(state.labelings) if one.group == key[1]}
    for record in instance.fetch_materializations(dg.AssetKey(key), limit=MOST_EVENTS).records:
        event = record.asset_materialization
        job, speed = (event.metadata.get(name) if event else None for name in (LABELED_BY, SPEED))
        if job and speed and isinstance(speed.value, int | float):
            speeds.setdefault(str(job.value), float(speed.value))
    if not speeds:
        return Verdict(key, "speed", True, "no job has labeled it yet")
    last, *earlier = speeds.values()
    if not earlier:
        return Verdict(key, "speed", True, f"{last:.3g} rows a second", {"rows a second": last})
    before = median(earlier)
    said = f"{last:.3g} rows a second, {before:.3g} before"
    return Verdict(key, "speed", last >= LEAST_SPEED * before, said, {"rows a second": last})


def run_verdicts(snapshot: Snapshot) -> Iterator[Verdict]:
    """Of a run's losses and evaluation, as far as they are there."""
    from training.checkpoint import checkpoint_name, whole_checkpoints

    name, store = snapshot.place.name, open_store(snapshot.place.address)
    records = run_records(store)
    losses = [record["loss"] for record in records if isinstance(record.get("loss"), int | float)]
    if losses:
        first, last = _mean(losses[:5]), _mean(losses[-5:])
        good = math.isfinite(last) and (last < first or len(losses) < 10)
        said = f"{last:.4g} over the last records, {first:.4g} over the first"
        yield Verdict((name, "checkpoints"), "loss", good, said, {"loss": last} if math.isfinite(last) else {})
    held_out = [record["validation_loss"] for record in records if "validation_loss" in record]
    if held_out:
        last, best = held_out[-1], min(held_out)
        said = f"{last:.4g} at the newest checkpoint, {best:.4g} at the best"
        good = math.isfinite(last) and last <= MOST_RISE * best
        facts = {"held-out loss": last} if math.isfinite(last) else {}
        yield Verdict((name, "checkpoints"), "held_out", good, said, facts)
    figures = run_figures(store)
    steps = whole_checkpoints(store) if figures else []
    if figures and steps:
        of = (read_json(store, EVALUATION) or {}).get("checkpoint") or ""
        newest = not of or of.endswith(checkpoint_name(steps[-1]))
        lost = [figure.title for figure in figures if not figure.wins]
        said = "every figure is above its baselines" if not lost else f"not above its baselines: {', '.join(lost)}"
        said = said if newest else f"of {of.rsplit('/', 1)[-1]}, which is not the newest checkpoint"
        yield Verdict((name, "evaluation"), "figures", newest and not lost, said)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def report_verdicts(instance: dg.DagsterInstance, verdicts: Iterable[Verdict], seconds: float = SAID_SECONDS) -> int:
    """Report those that Dagster has otherwise, or not at all; how many.

    seconds: between reports of what is only said with other numbers, since Dagster keeps every event for good.
    """
    found = {dg.AssetCheckKey(dg.AssetKey(one.key), one.check): one for one in verdicts}
    known = instance.event_log_storage.get_latest_asset_check_execution_by_key(list(found))
    count = 0
    for key, verdict in found.items():
        record = known.get(key)
        entry = record.event if record else None
        event = entry.dagster_event if entry else None
        kind = dg.DagsterEventType.ASSET_CHECK_EVALUATION
        before = event.asset_check_evaluation_data if event and event.event_type == kind else None
        same = before is not None and before.passed == verdict.passed
        if not (before and entry and same) or (
            before.description != verdict.said and time.time() - entry.timestamp >= seconds
        ):
            instance.report_runless_asset_event(verdict.evaluation())
            count += 1
    return count


def check_spec(key: Key, check: str) -> dg.AssetCheckSpec:
    """What a check is called and what it asks."""
    return dg.AssetCheckSpec(check, asset=dg.AssetKey(key), description=_ABOUT[check])


def place_checks(snapshot: Snapshot) -> list[dg.AssetCheckSpec]:
    """All checks of a dataset or run."""
    name = snapshot.place.name
    if snapshot.place.kind == "run":
        held_out = ["held_out"] if (snapshot.config.get("validation") or {}).get("share") else []
        checks = [check_spec((name, "checkpoints"), check) for check in ("loss", *held_out)]
        return [*checks, check_spec((name, "evaluation"), "figures")]
    specs = [check_spec((name, group), check) for group in snapshot.labels for check in ("fresh", "errors", "speed")]
    if snapshot.sources and snapshot.kind == "pictures" and "images" in snapshot.groups:
        specs.append(check_spec((name, "images"), "sources"))
    return specs


def build_checks(snapshot: Snapshot) -> list[dg.AssetChecksDefinition]:
    """The checks of one place, as one step that looks at it once."""
    name, specs = snapshot.place.name, place_checks(snapshot)
    if not specs:
        return []

    @dg.multi_asset_check(name=f"{name}__check", specs=specs, can_subset=True)
    def check(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        chosen = context.selected_asset_check_keys
        with explained():
            place = find_snapshot(name).place
        found: dict[dg.AssetCheckKey, Verdict] = {}
        said, reached = "nothing there to check yet", True
        try:
            found = {dg.AssetCheckKey(dg.AssetKey(one.key), one.check): one for one in _look(place, chosen, context)}
        except (InputError, OSError) as error:  # what was just made stays made, though its place does not answer now
            said, reached = f"cannot be checked: {one_line(error)}", False
        for key in chosen:
            yield found.get(key, Verdict(tuple(key.asset_key.path), key.name, reached, said)).result()

    return [check]


def _look(
    place: Place, chosen: Collection[dg.AssetCheckKey], context: dg.AssetCheckExecutionContext
) -> Iterator[Verdict]:
    from pipelines.dashboard.sources import source_verdict

    names = {key.name for key in chosen}
    now = look(place)
    if now.place.kind == "run":
        yield from run_verdicts(now)
        return
    if names & DATASET_CHECKS:
        yield from dataset_verdicts(dataset_state(now), context.instance, names)
    if "sources" in names:
        yield source_verdict(now)[0]
