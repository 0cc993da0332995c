"""Asset checks as Dagster defines and runs them: one step for each dataset or run, which reads it once."""

# Without `from __future__ import annotations`, since Dagster reads the annotations of its steps.
from collections.abc import Collection, Iterator

import dagster as dg

from labeling.dataset import IMAGES
from model.inputs import InputError, WorkFailed, one_line
from pipelines.dashboard.check_outcomes import (
    DATASET_CHECKS,
    MAX_ERRORS,
    CheckOutcome,
    dataset_outcomes,
    run_outcomes,
)
from pipelines.dashboard.dataset_state import dataset_state
from pipelines.dashboard.launch import input_errors_fail_run
from pipelines.dashboard.snapshots import Snapshot, find_snapshot, read_snapshot
from pipelines.dashboard.sources import source_outcome
from pipelines.dashboard.tracked_assets import TrackedAsset
from pipelines.dashboard.versions import Key

_DESCRIPTIONS = {
    "fresh": "No shard is missing or stale, by the recipes in their footers.",
    "errors": f"At most {MAX_ERRORS:.0%} of the rows are in error.",
    "speed": "Labeling is at least half as fast as in earlier runs.",
    "sources": "All pictures of the sources are in the dataset.",
    "loss": "The loss is a number, and lower than at the start.",
    "validation": "The validation loss, on rows that the model does not learn from, is not rising.",
    "figures": "The evaluation is of the newest checkpoint, and the model beats every baseline.",
}


def check_specs(snapshot: Snapshot) -> list[dg.AssetCheckSpec]:
    """All checks of a dataset or run."""
    name = snapshot.tracked.name
    if snapshot.tracked.kind == "run":
        validation = snapshot.config.get("validation") or snapshot.config.get("held_out") or {}
        losses = ("loss", "validation") if validation.get("share") else ("loss",)
        checks = [_spec((name, "checkpoints"), check) for check in losses]
        return [*checks, _spec((name, "evaluation"), "figures")]
    specs = [_spec((name, group), check) for group in snapshot.labels for check in ("fresh", "errors", "speed")]
    if snapshot.has_sources and IMAGES in snapshot.groups:
        specs.append(_spec((name, IMAGES), "sources"))
    return specs


def _spec(key: Key, check: str) -> dg.AssetCheckSpec:
    return dg.AssetCheckSpec(check, asset=dg.AssetKey(key), description=_DESCRIPTIONS[check])


def build_checks(snapshot: Snapshot) -> list[dg.AssetChecksDefinition]:
    """The checks of a dataset or run, as one step."""
    name, specs = snapshot.tracked.name, check_specs(snapshot)
    if not specs:
        return []

    @dg.multi_asset_check(name=f"{name}__check", specs=specs, can_subset=True)
    def check(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        selected = context.selected_asset_check_keys
        with input_errors_fail_run():
            tracked = find_snapshot(name).tracked
        outcomes: dict[dg.AssetCheckKey, CheckOutcome] = {}
        passed, description = True, "nothing there to check yet"
        try:
            for outcome in _outcomes(tracked, selected, context.instance):
                outcomes[dg.AssetCheckKey(dg.AssetKey(outcome.key), outcome.check)] = outcome
        except (
            InputError,
            WorkFailed,
            OSError,
        ) as error:  # out of reach now, which must not fail a run that has just made an asset
            outcomes, passed, description = {}, False, f"cannot be checked: {one_line(error)}"
        for key in selected:
            default = CheckOutcome(tuple(key.asset_key.path), key.name, passed, description)
            yield outcomes.get(key, default).result()

    return [check]


def _outcomes(
    tracked: TrackedAsset, selected: Collection[dg.AssetCheckKey], instance: dg.DagsterInstance
) -> Iterator[CheckOutcome]:
    names = {key.name for key in selected}
    snapshot = read_snapshot(tracked)
    if snapshot.tracked.kind == "run":
        yield from run_outcomes(snapshot)
        return
    if names & DATASET_CHECKS:
        yield from dataset_outcomes(dataset_state(snapshot), instance, names)
    if "sources" in names:
        yield source_outcome(snapshot)[0]
