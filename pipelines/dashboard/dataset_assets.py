"""The assets of a dataset: one for each column group, with its inputs, partitioned into ranges of shards."""

# Without `from __future__ import annotations`, since Dagster reads the annotations of its steps.
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import dagster as dg

from model.inputs import InputError
from pipelines.dashboard.dataset_state import dataset_state
from pipelines.dashboard.forms import labeling_fields, labeling_values_in, target_in
from pipelines.dashboard.launch import FinishedJob, input_errors_fail_run, job_metadata, run_job
from pipelines.dashboard.metadata import group_metadata
from pipelines.dashboard.reporting import Reporter
from pipelines.dashboard.snapshots import Snapshot, find_snapshot, refresh
from pipelines.dashboard.versions import dataset_versions, topological_order
from pipelines.jobs.specification import LabelJob

_FIELD_TYPES: dict[type, type] = {bool: bool, int: int, float: float, str: str}


@dataclass(frozen=True)
class Selection:
    """What a Dagster run is to make.

    groups: each after its inputs; partitions, and their shards [first, end): None stands for all.
    """

    groups: list[str]
    partitions: list[str] | None
    shards: tuple[int, int] | None


def dataset_assets(snapshot: Snapshot) -> list[dg.AssetSpec | dg.AssetsDefinition]:
    """The assets of a dataset. One that could never be read is a single asset that says why."""
    name = snapshot.tracked.name
    if not snapshot.groups:
        return [
            dg.AssetSpec(
                dg.AssetKey([name]),
                group_name=name,
                description=f"**{snapshot.trouble or 'an empty dataset'}**\n\n{snapshot.tracked.address}",
                metadata={"address": snapshot.tracked.address},
                owners=_owners(snapshot),
            )
        ]
    specs = [group_spec(snapshot, group) for group in topological_order(snapshot)]
    sources = [spec for spec in specs if spec.key.path[1] not in snapshot.labels]
    labels = [spec for spec in specs if spec.key.path[1] in snapshot.labels]
    return [*sources, *([_labeling(snapshot, labels)] if labels else [])]


def group_spec(snapshot: Snapshot, group: str) -> dg.AssetSpec:
    """One group as an asset."""
    name, declared = snapshot.tracked.name, snapshot.groups[group]
    labeler = f"{declared.get('labeler', group)} {declared.get('version', '')}".strip()
    reads = ", ".join(declared.get("reads") or ())
    description = f"Made by {labeler}" + (f" from {reads}." if reads else ".")  # the catalog shows Markdown as it is
    if snapshot.trouble:
        description = f"**Out of reach: {snapshot.trouble}**\n\n{description}"
    partitions = [part.key for part in snapshot.ranges]
    return dg.AssetSpec(
        dg.AssetKey([name, group]),
        deps=[dg.AssetKey([name, upstream]) for upstream in snapshot.upstream(group)],
        description=description,
        group_name=name,
        code_version=snapshot.code_version(group),
        kinds={"parquet", "s3"} if snapshot.tracked.address.startswith("s3://") else {"parquet"},
        owners=_owners(snapshot),
        metadata={
            "address": f"{snapshot.tracked.address}/{group}",
            "labeler": labeler,
            "parameters": dg.MetadataValue.json(declared.get("parameters") or {}),
            **({"weights": declared["weights"]} if declared.get("weights") else {}),
        },
        partitions_def=dg.StaticPartitionsDefinition(partitions) if len(partitions) > 1 else None,
    )


def _owners(snapshot: Snapshot) -> list[str]:
    return [snapshot.tracked.owner] if snapshot.tracked.owner else []


def parameter_fields(snapshot: Snapshot) -> dict[str, dg.Field]:
    """Group → form for the parameters of its labeler, each described by its present value."""
    forms = {}
    for group in snapshot.labels:
        declared = snapshot.groups[group].get("parameters") or {}
        fields = {
            # No defaults: a form that was opened before a change would undo it.
            key: dg.Field(_FIELD_TYPES.get(type(value), dg.Any), is_required=False, description=f"Now: {value}.")
            for key, value in declared.items()
        }
        if fields:
            forms[group] = dg.Field(dg.Shape(fields))
    return forms


def changed_parameters(
    snapshot: Snapshot, groups: list[str], form: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The parameters of a form that differ from the declared ones. groups: those that are made.

    Raises InputError where parameters of another group differ.
    """
    changes = {}
    for group, values in form.items():
        declared = snapshot.groups[group].get("parameters") or {}
        changed = {key: value for key, value in (values or {}).items() if value != declared.get(key)}
        if changed and group not in groups:
            raise InputError(
                f"{group}: its parameters were changed, but it is not among what is made; choose it as well"
            )
        if changed:
            changes[group] = changed
    return changes


def _labeling(snapshot: Snapshot, specs: list[dg.AssetSpec]) -> dg.AssetsDefinition:
    """All labels of a dataset as one step that makes any of them: one job, one pass over the pictures."""
    name = snapshot.tracked.name

    @dg.multi_asset(
        name=f"{name}__label",
        specs=specs,
        can_subset=True,
        backfill_policy=dg.BackfillPolicy.single_run(),
        pool=f"dataset_{name}",  # two jobs on the same groups would refuse each other
        config_schema={
            **labeling_fields(),
            "parameters": dg.Field(
                dg.Shape(parameter_fields(snapshot)),
                description="Of the labelers. Changing one makes all shards of its group stale.",
            ),
        },
    )
    def label(context: dg.AssetExecutionContext) -> Iterator[dg.AssetMaterialization]:
        config = context.op_execution_context.op_config
        selection = _selection(context, snapshot)
        with input_errors_fail_run():
            specification = LabelJob(
                kind="label",
                dataset=snapshot.tracked.address,
                groups=selection.groups,
                parameters=changed_parameters(snapshot, selection.groups, config.get("parameters") or {}),
                shards=selection.shards,
                **labeling_values_in(config),
            )
            finished = run_job(context, specification, target_in(config))
        yield from _materializations(context.instance, name, selection, finished)

    return label


def _selection(context: dg.AssetExecutionContext, snapshot: Snapshot) -> Selection:
    """The groups and ranges that were selected in Dagster."""
    selected = {key.path[1] for key in context.selected_asset_keys}
    groups = [group for group in topological_order(snapshot) if group in selected]
    if not context.has_partition_key and not context.has_partition_key_range:
        return Selection(groups, None, None)
    keys = list(context.partition_keys)
    ranges = [part for part in snapshot.ranges if part.key in keys]
    return Selection(groups, keys, (ranges[0].first, ranges[-1].end))


def _materializations(
    instance: dg.DagsterInstance, name: str, selection: Selection, finished: FinishedJob
) -> Iterator[dg.AssetMaterialization]:
    """Events of all that was selected. Other changes that the job made are reported to the instance."""
    refresh([name])
    state = dataset_state(find_snapshot(name))
    versions = list(dataset_versions(state))
    keys = {(name, group) for group in selection.groups}
    selected = [
        version
        for version in versions
        if version.key in keys and (selection.partitions is None or version.partition in selection.partitions)
    ]
    others = [version for version in versions if version not in selected]
    reporter, of_job = Reporter(instance), job_metadata(finished.attempt)
    reporter.report(others, lambda version: group_metadata(state, version))
    yield from reporter.events(selected, lambda version: group_metadata(state, version) | of_job, repeat=True)
    # What depends on these events has other inputs now.
    reporter.report(versions, lambda version: group_metadata(state, version))
