"""Dagster jobs that a form launches without an asset: new runs, labels and pictures, scaling and stopping jobs."""

# Without `from __future__ import annotations`, since Dagster reads the annotations of its steps.
from typing import Any

import dagster as dg

from labeling.dataset import Dataset, lease
from labeling.declaration import declare, declared_name
from labeling.registry import load_labeler
from model.inputs import InputError
from pipelines.dashboard.forms import (
    labeling_fields,
    labeling_values_in,
    target_fields,
    target_in,
    training_fields,
    training_overrides_in,
    worker_values_in,
    workers_field,
    workers_in,
)
from pipelines.dashboard.instance import FOLLOWS
from pipelines.dashboard.launch import input_errors_fail_run, run_job
from pipelines.dashboard.run_assets import CurveObserver
from pipelines.dashboard.snapshots import refresh
from pipelines.dashboard.tracked_assets import tracked_assets
from pipelines.jobs.control import scale_job
from pipelines.jobs.control import stop_job as stop_submitted
from pipelines.jobs.resolved import stored_job, whole_address
from pipelines.jobs.specification import LabelJob, ReportJob, TrainJob, WorkersSpec
from pipelines.jobs.status import list_jobs

_DATASET = dg.Field(str, description="Its name on this dashboard, or its address.")


def tracked_address(text: str) -> str:
    """The address that a form's text means: of the dataset or run with this name, or the text itself."""
    return next((asset.address for asset in tracked_assets() if asset.name == text), None) or whole_address(text)


@dg.op(
    config_schema={
        "config": dg.Field(
            str,
            default_value="debug",
            is_required=False,
            description="A preset (debug, stage1-256, …) or a YAML file on this machine.",
        ),
        "run": dg.Field(
            str,
            default_value="",
            is_required=False,
            description="Where the run is kept: a folder or s3:// address; empty: runs/NAME.",
        ),
        "overrides": dg.Field(
            dg.Permissive(), default_value={}, is_required=False, description="Put over the configuration."
        ),
        **training_fields(),
    }
)
def train_run(context: dg.OpExecutionContext) -> None:
    """Begin a run, or continue it. It becomes an asset as soon as it has begun."""
    from training.config import override_config

    with input_errors_fail_run():
        config = context.op_config
        overrides = override_config(config["overrides"], training_overrides_in(config))
        run = whole_address(config["run"] or _default_run(config["config"], overrides))
        specification = TrainJob(kind="train", config=config["config"], run=run, overrides=overrides)
        run_job(context, specification, target_in(config), CurveObserver(context, run))


def _default_run(config: str, overrides: dict[str, Any]) -> str:
    from training.config import load_config

    return f"runs/{load_config(config, overrides).name}"


@dg.op(
    config_schema={
        "run": dg.Field(
            str,
            default_value="",
            is_required=False,
            description="Its name on this dashboard, or its address; empty: the only one under way.",
        ),
        "workers": workers_field(keep=True),
    }
)
def scale_run(context: dg.OpExecutionContext) -> None:
    """Go on with other workers: between two steps, without losing any."""
    with input_errors_fail_run():
        name = context.op_config["run"]
        listed = list_jobs(tracked_address(name) if name else None)
        running = [attempt for attempt, status in listed if status.alive and attempt.job_id.startswith("train-")]
        if len(running) != 1:
            runs = ", ".join(attempt.address.rpartition("/jobs/")[0] for attempt in running) or "no training"
            raise InputError(f"under way: {runs}; name the run to scale")
        current = stored_job(running[0].address).workers
        requested = current.model_dump() | worker_values_in(context.op_config)
        scale_job(running[0].job_id, WorkersSpec(**requested), context.log.info)


@dg.op(config_schema={"job": dg.Field(str, description="As `onediffusion jobs` names it, like label-1a2b3c4d.")})
def stop_submission(context: dg.OpExecutionContext) -> None:
    """End a job; a training writes a checkpoint first."""
    with input_errors_fail_run():
        state = stop_submitted(context.op_config["job"], context.log.info)
        context.log.info(f"{context.op_config['job']}: {state.phase}")


@dg.op(
    config_schema={
        "dataset": _DATASET,
        "source": dg.Field(
            str,
            default_value="",
            is_required=False,
            description="Folder, glob, .tar or .parquet, local or s3://; empty: the sources it came from.",
        ),
        **target_fields(),
        "workers": workers_field(),
    }
)
def add_pictures(context: dg.OpExecutionContext) -> None:
    """Add the pictures of a source that a dataset does not have yet, and label them as the others are."""
    with input_errors_fail_run():
        config = context.op_config
        dataset = tracked_address(config["dataset"])
        sources = [config["source"]]
        if not config["source"]:
            sources = [source["uri"] for source in Dataset.open(dataset).sources]
        for source in sources:
            specification = LabelJob(kind="label", dataset=dataset, source=source, workers=workers_in(config))
            run_job(context, specification, target_in(config))


@dg.op(
    config_schema={
        "dataset": _DATASET,
        "groups": dg.Field(
            [str],
            default_value=[],
            is_required=False,
            description="boxes, segmentation, pose, caption, edges, depth, latents, …; none: all that are declared.",
        ),
        "parameters": dg.Field(
            dg.Permissive(), default_value={}, is_required=False, description="By labeler, as {edges: {low: 50}}."
        ),
        **labeling_fields(),
    }
)
def label_groups(context: dg.OpExecutionContext) -> None:
    """Make what is stale or missing in a dataset, or label it with something new, which then becomes an asset."""
    with input_errors_fail_run():
        config = context.op_config
        specification = LabelJob(
            kind="label",
            dataset=tracked_address(config["dataset"]),
            groups=config["groups"],
            parameters=config["parameters"],
            **labeling_values_in(config),
        )
        run_job(context, specification, target_in(config))


@dg.op(
    config_schema={
        "dataset": _DATASET,
        "group": dg.Field(str, description="A group that is declared."),
        "parameters": dg.Field(dg.Permissive(), description="Of its labeler, as {low: 50}; the others stay."),
    }
)
def declare_parameters(context: dg.OpExecutionContext) -> None:
    """Declare parameters of a group without making it: what becomes stale is then visible before it is rebuilt."""
    with input_errors_fail_run():
        config = context.op_config
        dataset, group = Dataset.open(tracked_address(config["dataset"])), config["group"]
        declared = dataset.declaration(group)
        if not declared or not declared.get("reads"):
            raise InputError(f"{dataset.uri}: {group!r} is no label that was declared there")
        labeler = load_labeler(declared_name(group, declared), {**declared["parameters"], **config["parameters"]})
        with lease(dataset.store, [group]):  # not while a job works on it
            dataset.declare(group, {**declared, "parameters": declare(labeler)["parameters"]})
        refresh()


@dg.op(config_schema={"of": dg.Field(str, description="A dataset or run."), **target_fields()})
def make_report(context: dg.OpExecutionContext) -> None:
    """One self-contained page about a dataset or a run, report.html beside it."""
    with input_errors_fail_run():
        config = context.op_config
        finished = run_job(context, ReportJob(kind="report", of=tracked_address(config["of"])), target_in(config))
        context.log.info(str(finished.result.get("page")))


@dg.job(description=train_run.description, tags={FOLLOWS: "a job"})
def start_training() -> None:
    train_run()


@dg.job(description=scale_run.description)
def scale_training() -> None:
    scale_run()


@dg.job(description=stop_submission.description)
def stop_job() -> None:
    stop_submission()


@dg.job(description=add_pictures.description, tags={FOLLOWS: "a job"})
def ingest_pictures() -> None:
    add_pictures()


@dg.job(description=label_groups.description, tags={FOLLOWS: "a job"})
def label_dataset() -> None:
    label_groups()


@dg.job(description=declare_parameters.description)
def set_parameters() -> None:
    declare_parameters()


@dg.job(description=make_report.description, tags={FOLLOWS: "a job"})
def write_report() -> None:
    make_report()


DAGSTER_JOBS: list[Any] = [
    start_training,
    scale_training,
    stop_job,
    ingest_pictures,
    label_dataset,
    set_parameters,
    write_report,
]
