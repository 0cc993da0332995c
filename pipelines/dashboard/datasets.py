"""The assets of a dataset: one for every column group, with what it is made from, in ranges of shards."""

# No postponed annotations: Dagster reads those of its steps.
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import dagster as dg

from model.inputs import InputError
from pipelines.dashboard.details import group_details
from pipelines.dashboard.fingerprints import dataset_state, dataset_versions, in_order
from pipelines.dashboard.launch import (
    Ended,
    chosen_target,
    chosen_workers,
    explained,
    job_details,
    run_job,
    target_fields,
    workers_field,
)
from pipelines.dashboard.reporting import Reporter
from pipelines.dashboard.snapshots import Snapshot, find_snapshot, refresh
from pipelines.jobs.specification import LabelJob

_TYPES: dict[type, type] = {bool: bool, int: int, float: float, str: str}


@dataclass(frozen=True)
class Chosen:
    """What a Dagster run is to make: groups, each after what it is made from; partitions (None: all); their shards."""

    groups: list[str]
    partitions: list[str] | None
    shards: tuple[int, int] | None


def dataset_assets(snapshot: Snapshot) -> list[dg.AssetSpec | dg.AssetsDefinition]:
    """The assets of a dataset. One that was never within reach is a single asset that says why."""
    name = snapshot.place.name
    if not snapshot.groups:
        return [
            dg.AssetSpec(
                dg.AssetKey([name]),
                group_name=name,
                description=f"**{snapshot.trouble or 'an empty dataset'}**\n\n{snapshot.place.address}",
                metadata={"address": snapshot.place.address},
                owners=_owners(snapshot),
            )
        ]
    specs = [group_spec(snapshot, group) for group in in_order(snapshot)]
    sources = [spec for spec in specs if spec.key.path[1] not in snapshot.labels]
    labels = [spec for spec in specs if spec.key.path[1] in snapshot.labels]
    return [*sources, *([_labeling(snapshot, labels)] if labels else [])]


def group_spec(snapshot: Snapshot, group: str) -> dg.AssetSpec:
    """One group as an asset."""
    name, declared = snapshot.place.name, snapshot.groups[group]
    labeler = f"{declared.get('labeler', group)} {declared.get('version', '')}".strip()
    reads = ", ".join(f"`{column}`" for column in declared.get("reads") or ())
    about = f"Made by **{labeler}**" + (f" from {reads}." if reads else ".")
    if snapshot.trouble:
        about = f"**Out of reach: {snapshot.trouble}**\n\n{about}"
    partitions = [part.key for part in snapshot.ranges]
    return dg.AssetSpec(
        dg.AssetKey([name, group]),
        deps=[dg.AssetKey([name, upstream]) for upstream in snapshot.upstream(group)],
        description=about,
        group_name=name,
        code_version=snapshot.code_version(group),
        kinds={"parquet", "s3"} if snapshot.place.address.startswith("s3://") else {"parquet"},
        owners=_owners(snapshot),
        metadata={
            "address": f"{snapshot.place.address}/{group}",
            "labeler": labeler,
            "parameters": dg.MetadataValue.json(declared.get("parameters") or {}),
            **({"weights": declared["weights"]} if declared.get("weights") else {}),
        },
        partitions_def=dg.StaticPartitionsDefinition(partitions) if len(partitions) > 1 else None,
    )


def _owners(snapshot: Snapshot) -> list[str]:
    return [snapshot.place.owner] if snapshot.place.owner else []


def parameter_fields(snapshot: Snapshot) -> dict[str, dg.Field]:
    """A form for the parameters of each labeler, with what is declared now."""
    found = {}
    for group in snapshot.labels:
        declared = snapshot.groups[group].get("parameters") or {}
        fields = {
            # No defaults: a form that was opened before a change would undo it.
            key: dg.Field(_TYPES.get(type(value), dg.Any), is_required=False, description=f"Now: {value}.")
            for key, value in declared.items()
        }
        if fields:
            found[group] = dg.Field(dg.Shape(fields))
    return found


def changed_parameters(
    snapshot: Snapshot, groups: list[str], given: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The parameters that a form gives otherwise than they are. Raises InputError for those of groups not made."""
    found = {}
    for group, values in given.items():
        now = snapshot.groups[group].get("parameters") or {}
        changed = {key: value for key, value in (values or {}).items() if value != now.get(key)}
        if changed and group not in groups:
            raise InputError(
                f"{group}: its parameters were changed, but it is not among what is made; choose it as well"
            )
        if changed:
            found[group] = changed
    return found


def _labeling(snapshot: Snapshot, specs: list[dg.AssetSpec]) -> dg.AssetsDefinition:
    """All labels of a dataset as one step that makes any of them: one job, one pass over the pictures."""
    name = snapshot.place.name

    @dg.multi_asset(
        name=f"{name}__label",
        specs=specs,
        can_subset=True,
        backfill_policy=dg.BackfillPolicy.single_run(),
        pool=f"dataset_{name}",  # two jobs on the same groups would refuse each other
        config_schema={
            **target_fields(),
            "workers": workers_field(),
            "parameters": dg.Field(
                dg.Shape(parameter_fields(snapshot)),
                description="Of the labelers. Changing one makes all shards of its group stale.",
            ),
        },
    )
    def label(context: dg.AssetExecutionContext) -> Iterator[dg.AssetMaterialization]:
        config = context.op_execution_context.op_config
        chosen = choose(context, snapshot)
        with explained():
            job = LabelJob(
                kind="label",
                dataset=snapshot.place.address,
                groups=chosen.groups,
                parameters=changed_parameters(snapshot, chosen.groups, config.get("parameters") or {}),
                shards=chosen.shards,
                workers=chosen_workers(config),
            )
            ended = run_job(context, job, chosen_target(config))
        yield from made(context.instance, name, chosen, ended)

    return label


def choose(context: dg.AssetExecutionContext, snapshot: Snapshot) -> Chosen:
    """The groups and ranges that were selected in Dagster."""
    selected = {key.path[1] for key in context.selected_asset_keys}
    groups = [group for group in in_order(snapshot) if group in selected]
    if not context.has_partition_key and not context.has_partition_key_range:
        return Chosen(groups, None, None)
    keys = list(context.partition_keys)
    parts = [part for part in snapshot.ranges if part.key in keys]
    return Chosen(groups, keys, (parts[0].first, parts[-1].end))


def made(instance: dg.DagsterInstance, name: str, chosen: Chosen, ended: Ended) -> Iterator[dg.AssetMaterialization]:
    """What Dagster is to know after a labeling job: of what was chosen, and of anything else that changed with it."""
    refresh([name])
    state = dataset_state(find_snapshot(name))
    versions = list(dataset_versions(state))
    wanted = {(name, group) for group in chosen.groups}
    mine = [
        one
        for one in versions
        if one.key in wanted and (chosen.partitions is None or one.partition in chosen.partitions)
    ]
    reporter, about = Reporter(instance), job_details(ended.submission)
    reporter.report([one for one in versions if one not in mine], lambda one: group_details(state, one))
    yield from reporter.events(mine, lambda one: group_details(state, one) | about, again=True)
    # What depends on what was made now has another input.
    reporter.report(versions, lambda one: group_details(state, one))
