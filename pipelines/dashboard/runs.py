"""The assets of a run: its checkpoints, made from the groups that its mixture reads, and their evaluation."""

# No postponed annotations: Dagster reads those of its steps.
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import dagster as dg

from labeling.dataset import open_store
from model.inputs import InputError
from pipelines.dashboard.details import checkpoint_details, evaluation_details, progress_details
from pipelines.dashboard.fingerprints import (
    EVALUATION_CODE,
    DatasetState,
    Version,
    dataset_state,
    run_code_version,
    run_versions,
)
from pipelines.dashboard.launch import (
    chosen_target,
    chosen_workers,
    explained,
    given_workers,
    job_details,
    run_job,
    target_fields,
    workers_field,
)
from pipelines.dashboard.reporting import Reporter
from pipelines.dashboard.sheets import CURVES
from pipelines.dashboard.snapshots import Snapshot, find_snapshot, refresh, snapshots
from pipelines.jobs.specification import EvaluateJob, TrainJob


def run_assets(snapshot: Snapshot, names: Mapping[str, str]) -> list[dg.AssetSpec | dg.AssetsDefinition]:
    """The assets of a run. names: address → name, of the datasets on the dashboard."""
    name = snapshot.place.name
    checkpoints = dg.AssetSpec(
        dg.AssetKey([name, "checkpoints"]),
        deps=[dg.AssetKey([names[address], group]) for address, group in snapshot.reads if address in names],
        description=_about(snapshot),
        group_name=name,
        code_version=run_code_version(snapshot) if snapshot.config else None,
        kinds={"pytorch", "s3"} if snapshot.place.address.startswith("s3://") else {"pytorch"},
        owners=[snapshot.place.owner] if snapshot.place.owner else [],
        metadata={
            "address": f"{snapshot.place.address}/checkpoints",
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
        metadata={"address": f"{snapshot.place.address}/evaluation.json"},
    )
    if not snapshot.config:  # nothing is known of how it would be made
        return [checkpoints, evaluation]
    return [_training(snapshot, checkpoints), _evaluating(snapshot, evaluation)]


def _about(snapshot: Snapshot) -> str:
    if snapshot.trouble:
        return f"**{snapshot.trouble}**\n\n{snapshot.place.address}"
    tasks = [task for source in snapshot.config["mixture"].values() for task in source["tasks"]]
    about = f"Checkpoints of **{snapshot.config['name']}**, learning {', '.join(dict.fromkeys(tasks))}."
    return f"{about}\n\n![loss and speed as they are now](/{CURVES}/{snapshot.place.name}.svg)"


def training_fields() -> dict[str, dg.Field]:
    """The form of a training, but for its configuration."""
    return {
        **target_fields(),
        "workers": workers_field(as_now=True),
        "batch": dg.Field(
            int, default_value=0, is_required=False, description="Samples of a step over all workers; 0: as configured."
        ),
        "steps": dg.Field(int, default_value=0, is_required=False, description="To train; 0: as configured."),
    }


def sized(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a form says of batch, steps and workers, as overrides of a configuration. Raises InputError."""
    workers = given_workers(config)
    found = {key: config[key] for key in ("batch", "steps") if config[key]}
    return {**found, "workers": workers} if workers else found


def _training(snapshot: Snapshot, spec: dg.AssetSpec) -> dg.AssetsDefinition:
    name, address = snapshot.place.name, snapshot.place.address

    @dg.multi_asset(
        name=f"{name}__train",
        specs=[spec],
        can_subset=True,  # or Dagster would add an event of its own, with versions of its own
        pool=f"run_{name}",
        config_schema=training_fields(),
    )
    def train(context: dg.AssetExecutionContext) -> Iterator[dg.AssetMaterialization]:
        config = context.op_execution_context.op_config
        with explained():
            wanted = sized(config)
            _refuse_in_vain(snapshot, wanted.get("steps", snapshot.config["steps"]))
            job = TrainJob(kind="train", config=snapshot.config, overrides=wanted, run=address)
            ended = run_job(context, job, chosen_target(config), Observer(context, address))
        refresh([name])
        yield from Reporter(context.instance).events(
            [one for one in versions_of(find_snapshot(name)) if one.key[1] == "checkpoints"],
            lambda one: checkpoint_details(address) | job_details(ended.submission),
            again=True,
        )

    return train


def _evaluating(snapshot: Snapshot, spec: dg.AssetSpec) -> dg.AssetsDefinition:
    name, address = snapshot.place.name, snapshot.place.address

    @dg.multi_asset(
        name=f"{name}__evaluate",
        specs=[spec],
        can_subset=True,  # as for checkpoints
        pool=f"evaluation_{name}",
        config_schema={**target_fields(), "workers": workers_field()},
    )
    def evaluate(context: dg.AssetExecutionContext) -> Iterator[dg.AssetMaterialization]:
        config = context.op_execution_context.op_config
        with explained():
            job = EvaluateJob(kind="evaluate", run=address, workers=chosen_workers(config))
            ended = run_job(context, job, chosen_target(config))
        yield from Reporter(context.instance).events(
            [one for one in versions_of(find_snapshot(name)) if one.key[1] == "evaluation"],
            lambda one: evaluation_details(address) | job_details(ended.submission),
            again=True,
        )

    return evaluate


def _refuse_in_vain(snapshot: Snapshot, steps: int) -> None:
    """Raise InputError where a run has all its steps, and learned from other content: training would do nothing."""
    from training.checkpoint import whole_checkpoints

    address = snapshot.place.address
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


class Observer:
    """While a training goes on: its loss curves as events of its checkpoints, now and then where there are new records.

    Less and less often, since Dagster keeps them all.
    """

    def __init__(self, context: dg.OpExecutionContext | dg.AssetExecutionContext, address: str) -> None:
        self.context = context
        self.address = address
        self.step = -1
        self.began = self.due = time.monotonic()

    def __call__(self) -> None:
        """Look once."""
        if time.monotonic() < self.due:
            return
        name = next((one.place.name for one in snapshots() if one.place.address == self.address), None)
        details = progress_details(self.address) if name else {}
        if name and details.get("loss") and details["step"] > self.step:
            self.step = details["step"]
            self.due = time.monotonic() + (time.monotonic() - self.began) / 20
            self.context.log_event(dg.AssetObservation(dg.AssetKey([name, "checkpoints"]), metadata=details))


def dataset_names(seen: Iterable[Snapshot]) -> dict[str, str]:
    """Address → name, of the datasets whose groups are assets."""
    return {one.place.address: one.place.name for one in seen if one.groups}


def versions_of(
    snapshot: Snapshot,
    datasets: Mapping[str, DatasetState] | None = None,
    seen: Sequence[Snapshot] | None = None,
) -> list[Version]:
    """A run's versions. datasets: by address, and seen: all snapshots, where they were looked at already."""
    seen = snapshots() if seen is None else seen
    if datasets is None:
        read = {address for address, _ in snapshot.reads}
        known = [one for one in seen if one.place.address in read and one.groups and not one.trouble]
        datasets = {one.place.address: dataset_state(one) for one in known}
    return list(run_versions(snapshot, dataset_names(seen), datasets))
