"""The assets of a run: its checkpoints, made from the groups that its mixture reads, and their evaluation."""

# Without `from __future__ import annotations`, since Dagster reads the annotations of its steps.
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

import dagster as dg

from labeling.dataset import open_store
from model.inputs import InputError
from pipelines.dashboard.charts import CURVES
from pipelines.dashboard.dataset_state import DatasetState, dataset_state
from pipelines.dashboard.forms import evaluation_fields, target_in, training_fields, training_overrides_in, workers_in
from pipelines.dashboard.launch import input_errors_fail_run, job_metadata, run_job
from pipelines.dashboard.metadata import checkpoint_metadata, evaluation_metadata, progress_metadata
from pipelines.dashboard.reporting import Reporter
from pipelines.dashboard.snapshots import Snapshot, find_snapshot, refresh, snapshots
from pipelines.dashboard.versions import EVALUATION_CODE, AssetVersion, run_code_version, run_versions
from pipelines.jobs.specification import EvaluateJob, TrainJob


def run_assets(snapshot: Snapshot, names: Mapping[str, str]) -> list[dg.AssetSpec | dg.AssetsDefinition]:
    """The assets of a run. names: address → name, of the datasets on the dashboard."""
    name = snapshot.tracked.name
    checkpoints = dg.AssetSpec(
        dg.AssetKey([name, "checkpoints"]),
        deps=[dg.AssetKey([names[address], group]) for address, group in snapshot.reads if address in names],
        description=_description(snapshot),
        group_name=name,
        code_version=run_code_version(snapshot) if snapshot.config else None,
        kinds={"pytorch", "s3"} if snapshot.tracked.address.startswith("s3://") else {"pytorch"},
        owners=[snapshot.tracked.owner] if snapshot.tracked.owner else [],
        metadata={
            "address": f"{snapshot.tracked.address}/checkpoints",
            "configuration": dg.MetadataValue.json(snapshot.config),
        },
    )
    evaluation = dg.AssetSpec(
        dg.AssetKey([name, "evaluation"]),
        deps=[checkpoints.key],
        description="Figures of the model beside baselines, on training pictures, and samples of every task.",
        group_name=name,
        code_version=EVALUATION_CODE,
        kinds={"json"},
        metadata={"address": f"{snapshot.tracked.address}/evaluation.json"},
    )
    if not snapshot.config:  # nothing here can make them
        return [checkpoints, evaluation]
    return [_training(snapshot, checkpoints), _evaluating(snapshot, evaluation)]


def _description(snapshot: Snapshot) -> str:
    trouble = f"**{snapshot.trouble}**\n\n{snapshot.tracked.address}" if snapshot.trouble else ""
    if not snapshot.config:
        return trouble
    tasks = [task for source in snapshot.config["mixture"].values() for task in source["tasks"]]
    description = f"Checkpoints of {snapshot.config['name']}, learning {', '.join(dict.fromkeys(tasks))}."
    if trouble:  # which may pass, so what was known stays in sight
        description = f"{trouble}\n\n{description}"
    return f"{description}\n\n![loss and speed as they are now](/{CURVES}/{snapshot.tracked.name}.svg)"


def _training(snapshot: Snapshot, spec: dg.AssetSpec) -> dg.AssetsDefinition:
    name, address = snapshot.tracked.name, snapshot.tracked.address

    @dg.multi_asset(
        name=f"{name}__train",
        specs=[spec],
        can_subset=True,  # or Dagster would add an event of its own, with versions of its own
        pool=f"run_{name}",
        config_schema=dict(training_fields()),
    )
    def train(context: dg.AssetExecutionContext) -> Iterator[dg.AssetMaterialization]:
        config = context.op_execution_context.op_config
        with input_errors_fail_run():
            overrides = training_overrides_in(config)
            _refuse_without_effect(snapshot, overrides.get("steps", snapshot.config["steps"]))
            specification = TrainJob(kind="train", config=snapshot.config, overrides=overrides, run=address)
            finished = run_job(context, specification, target_in(config), CurveObserver(context, address))
        refresh([name])
        yield from Reporter(context.instance).events(
            [version for version in versions_of(find_snapshot(name)) if version.key[1] == "checkpoints"],
            lambda version: checkpoint_metadata(address) | job_metadata(finished.attempt),
            repeat=True,
        )

    return train


def _evaluating(snapshot: Snapshot, spec: dg.AssetSpec) -> dg.AssetsDefinition:
    name, address = snapshot.tracked.name, snapshot.tracked.address

    @dg.multi_asset(
        name=f"{name}__evaluate",
        specs=[spec],
        can_subset=True,  # as for checkpoints
        pool=f"evaluation_{name}",
        config_schema=dict(evaluation_fields()),
    )
    def evaluate(context: dg.AssetExecutionContext) -> Iterator[dg.AssetMaterialization]:
        config = context.op_execution_context.op_config
        with input_errors_fail_run():
            specification = EvaluateJob(kind="evaluate", run=address, workers=workers_in(config))
            finished = run_job(context, specification, target_in(config))
        yield from Reporter(context.instance).events(
            [version for version in versions_of(find_snapshot(name)) if version.key[1] == "evaluation"],
            lambda version: evaluation_metadata(address) | job_metadata(finished.attempt),
            repeat=True,
        )

    return evaluate


def _refuse_without_effect(snapshot: Snapshot, steps: int) -> None:
    """Raise InputError where training would do nothing: a run has all its steps, but learned from other content."""
    from training.checkpoint import whole_checkpoints

    address = snapshot.tracked.address
    done = whole_checkpoints(open_store(address))
    if not done or done[-1] < steps:
        return
    for version in versions_of(snapshot):
        changed = [key for key, content in version.inputs.items() if version.current.get(key) != content]
        if changed:
            raise InputError(
                f"{address}: it learned from other content of {', '.join('/'.join(key) for key in changed)} than is "
                "there now; take another run, or remove its checkpoints/ to begin again"
            )


class CurveObserver:
    """Reports the loss curves of a training while it runs, as observations of its checkpoints.

    They come less and less often, since Dagster keeps every event forever.
    """

    def __init__(self, context: dg.OpExecutionContext | dg.AssetExecutionContext, address: str) -> None:
        self.context = context
        self.address = address
        self.step = -1
        self.began = self.due = time.monotonic()

    def __call__(self) -> None:
        """Report the curves where they have new records and the time has come."""
        if time.monotonic() < self.due:
            return
        name = next((one.tracked.name for one in snapshots() if one.tracked.address == self.address), None)
        metadata = progress_metadata(self.address) if name else {}
        if name and metadata.get("loss") and metadata["step"] > self.step:
            self.step = metadata["step"]
            self.due = time.monotonic() + (time.monotonic() - self.began) / 20
            self.context.log_event(dg.AssetObservation(dg.AssetKey([name, "checkpoints"]), metadata=metadata))


def dataset_names(all_snapshots: Iterable[Snapshot]) -> dict[str, str]:
    """Address → name, of the datasets whose groups are assets."""
    return {snapshot.tracked.address: snapshot.tracked.name for snapshot in all_snapshots if snapshot.groups}


def versions_of(
    snapshot: Snapshot,
    datasets: Mapping[str, DatasetState] | None = None,
    all_snapshots: Sequence[Snapshot] | None = None,
) -> list[AssetVersion]:
    """A run's versions. datasets: by address, and all_snapshots, where the caller has them already."""
    all_snapshots = snapshots() if all_snapshots is None else all_snapshots
    if datasets is None:
        read = {address for address, _ in snapshot.reads}
        known = [one for one in all_snapshots if one.tracked.address in read and one.groups and not one.trouble]
        datasets = {one.tracked.address: dataset_state(one) for one in known}
    return list(run_versions(snapshot, dataset_names(all_snapshots), datasets))
