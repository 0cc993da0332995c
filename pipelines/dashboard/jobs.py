"""What is launched by a form alone: new runs, new labels and new pictures, and steering what runs."""

# No postponed annotations: Dagster reads those of its steps.
from typing import Any

import dagster as dg

from labeling.shards import Dataset
from model.errors import InputError
from pipelines.dashboard.launch import chosen_target, chosen_workers, run_job, target_fields, workers_field
from pipelines.dashboard.places import places
from pipelines.dashboard.runs import Observer, sized, training_fields
from pipelines.job import LabelJob, ReportJob, TrainJob, address
from pipelines.submit import list_jobs, scale_job
from pipelines.submit import stop_job as stop_submitted

_DATASET = dg.Field(str, description="Its name on this dashboard, or its address.")


def place_address(text: str) -> str:
    """The address that a form's text means: that of the place of this name, or the text itself."""
    return next((place.address for place in places() if place.name == text), None) or address(text)


@dg.op(
    config_schema={
        "config": dg.Field(str, description="A preset (debug, stage1-256, …) or a YAML file on this machine."),
        "run": dg.Field(str, description="Where the run is kept: a folder or s3:// address."),
        "overrides": dg.Field(
            dg.Permissive(), default_value={}, is_required=False, description="Put over the configuration."
        ),
        **training_fields({}),
    }
)
def train_run(context: dg.OpExecutionContext) -> None:
    """Begin a run, or continue it. It becomes an asset as soon as it has begun."""
    config = context.op_config
    run = address(config["run"])
    job = TrainJob(
        kind="train",
        config=config["config"],
        run=run,
        overrides={**config["overrides"], **sized(config)},
        workers=chosen_workers(config),
    )
    run_job(context, job, chosen_target(config), Observer(context, run))


@dg.op(
    config_schema={
        "run": dg.Field(str, description="Its name on this dashboard, or its address."),
        "workers": workers_field(),
    }
)
def scale_run(context: dg.OpExecutionContext) -> None:
    """Go on with other workers: between two steps, without losing any."""
    run = place_address(context.op_config["run"])
    alive = [submission for submission, state in list_jobs(run) if state.alive and submission.id.startswith("train-")]
    if not alive:
        raise dg.Failure(f"{context.op_config['run']}: no training is under way there", allow_retries=False)
    try:
        scale_job(alive[0].id, chosen_workers(context.op_config), context.log.info)
    except InputError as error:
        raise dg.Failure(str(error), allow_retries=False) from None


@dg.op(config_schema={"job": dg.Field(str, description="As `onediffusion jobs` names it, like label-1a2b3c4d.")})
def stop_submission(context: dg.OpExecutionContext) -> None:
    """End a job; a training writes a checkpoint first."""
    try:
        state = stop_submitted(context.op_config["job"], context.log.info)
    except InputError as error:
        raise dg.Failure(str(error), allow_retries=False) from None
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
    config = context.op_config
    dataset = place_address(config["dataset"])
    sources = [config["source"]]
    if not config["source"]:
        sources = [source["uri"] for source in Dataset.open(dataset).description["sources"]]
    for source in sources:
        job = LabelJob(kind="label", dataset=dataset, source=source, workers=chosen_workers(config))
        run_job(context, job, chosen_target(config))


@dg.op(
    config_schema={
        "dataset": _DATASET,
        "groups": dg.Field([str], description="Labelers: boxes, segmentation, pose, caption, edges, depth, latents …"),
        "parameters": dg.Field(
            dg.Permissive(), default_value={}, is_required=False, description="By labeler, as {edges: {low: 50}}."
        ),
        **target_fields(),
        "workers": workers_field(),
    }
)
def add_groups(context: dg.OpExecutionContext) -> None:
    """Label a dataset with something new; it becomes an asset when it is declared."""
    config = context.op_config
    job = LabelJob(
        kind="label",
        dataset=place_address(config["dataset"]),
        groups=config["groups"],
        parameters=config["parameters"],
        workers=chosen_workers(config),
    )
    run_job(context, job, chosen_target(config))


@dg.op(config_schema={"of": dg.Field(str, description="A dataset or run."), **target_fields()})
def make_report(context: dg.OpExecutionContext) -> None:
    """One self-contained page about a dataset or a run, report.html beside it."""
    config = context.op_config
    state = run_job(context, ReportJob(kind="report", of=place_address(config["of"])), chosen_target(config))
    context.log.info(f"{(state.result or {}).get('page')}")


@dg.job(description=train_run.description)
def start_training() -> None:
    train_run()


@dg.job(description=scale_run.description)
def scale_training() -> None:
    scale_run()


@dg.job(description=stop_submission.description)
def stop_job() -> None:
    stop_submission()


@dg.job(description=add_pictures.description)
def ingest_pictures() -> None:
    add_pictures()


@dg.job(description=add_groups.description)
def add_labels() -> None:
    add_groups()


@dg.job(description=make_report.description)
def write_report() -> None:
    make_report()


JOBS: list[Any] = [start_training, scale_training, stop_job, ingest_pictures, add_labels, write_report]
