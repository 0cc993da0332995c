"""Commands that send jobs to targets, list, follow, stop and scale them. Heavy imports stay inside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.datasets import ResourcesOption, resources_by_labeler

if TYPE_CHECKING:
    from pipelines.jobs.specification import JobSpecification

JobArgument = Annotated[str, typer.Argument(metavar="ID", help="As `submit` and `jobs` print it.")]


def submit(
    file: Annotated[
        str, typer.Argument(metavar="JOB", help="A YAML file, or an example: label, views, sets, train, …")
    ],
    target: Annotated[str, typer.Option("--target", help="A YAML file, or local, ray, kubernetes, slurm.")] = "local",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be sent, and send nothing.")] = False,
    resources: ResourcesOption = None,
    only_errors: Annotated[
        bool, typer.Option("--only-errors", help="Of label: only rows in error, once more.")
    ] = False,
) -> None:
    """The same job somewhere else; it outlives this terminal."""
    from pipelines.jobs.resolved import resolve_job
    from pipelines.jobs.specification import load_specification
    from pipelines.jobs.submit import plan_job, submit_job

    specification = load_specification(file)
    if resources or only_errors:
        specification = _with_label_options(specification, file, resources or [], only_errors)
    resolved = resolve_job(specification)
    if dry_run:
        for title, text in plan_job(resolved, target).items():
            print(f"# {title}\n{text}")
        return
    print(submit_job(resolved, target, say=typer.echo).job_id)


def jobs(
    output: Annotated[
        str | None, typer.Argument(metavar="DATASET|RUN", help="All of this; none: sent from here.")
    ] = None,
) -> None:
    """The jobs sent from here, or all of a dataset or run."""
    from datetime import datetime

    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    from labeling.dataset import open_store
    from model.inputs import InputError
    from pipelines.jobs.status import list_jobs

    # In a narrow terminal the other columns are cut: the id is what other commands are given.
    table = Table(Column("id", no_wrap=True), "attempt", Column("target", overflow="fold"), "sent", "state", "")
    listed = list_jobs(output)
    if output and not listed:
        if not open_store(output).files():
            raise InputError(f"{output}: nothing is there; name a dataset or a run")
        typer.echo(f"{output}: no jobs there")
        return
    for attempt, status in listed:
        sent = datetime.fromtimestamp(attempt.sent).strftime("%Y-%m-%d %H:%M") if attempt.sent else ""
        remark = status.reason or status.progress
        # Cells are plain text, since brackets in an error are no markup.
        cells = (attempt.job_id, str(attempt.number), attempt.target_name, sent, status.phase, remark)
        table.add_row(*map(Text, cells))
    Console().print(table)


def logs(
    job_id: JobArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    rank: Annotated[
        int | None, typer.Option(min=0, help="Of a training: what this process printed. ID may be a run.")
    ] = None,
    task: Annotated[int | None, typer.Option(min=0, help="Of a job array: this task alone.")] = None,
) -> None:
    """What a job printed, over all its attempts."""
    from pipelines.jobs.log import log_lines, rank_lines
    from pipelines.jobs.status import find_attempt

    def show(line: str) -> None:
        print(line, flush=True)

    for line in (
        log_lines(find_attempt(job_id), follow, show, task) if rank is None else rank_lines(job_id, rank, follow)
    ):
        show(line)


def stop(job_id: JobArgument) -> None:
    """End a job; training writes a checkpoint first. Submitted again, it continues."""
    from pipelines.jobs.control import stop_job

    print(stop_job(job_id, say=typer.echo).phase)


def scale(
    job_id: JobArgument,
    workers: Annotated[str, typer.Option("--workers", metavar="N|LEAST:MOST", help="As 4, or 1:8 where elastic.")],
    cpus: Annotated[float | None, typer.Option(min=0, help="Of each; default as before.")] = None,
    gpus: Annotated[float | None, typer.Option(min=0, help="Of each; default as before.")] = None,
) -> None:
    """Go on with more or fewer workers."""
    from pipelines.jobs.control import scale_job
    from pipelines.jobs.resolved import stored_job
    from pipelines.jobs.specification import WorkersSpec
    from pipelines.jobs.status import find_attempt

    options = {"count": _worker_count(workers), "cpus": cpus, "gpus": gpus}
    changes = {key: value for key, value in options.items() if value is not None}
    current = stored_job(find_attempt(job_id).address).workers
    scale_job(job_id, WorkersSpec(**{**current.model_dump(), **changes}), say=typer.echo)


def execute(
    address: Annotated[str, typer.Argument(metavar="ADDRESS")],
    attempt: Annotated[int, typer.Option(min=1)],
    task: Annotated[int | None, typer.Option(min=0)] = None,
) -> int:
    """What targets run: one attempt at the job whose folder this is."""
    from pipelines.jobs.run import execute as run

    return run(address, attempt, task)


def _with_label_options(
    specification: JobSpecification, name: str, resources: list[str], only_errors: bool
) -> JobSpecification:
    """A labeling job with options of the command line over what its file says. Raises InputError for another job."""
    from labeling.resources import merge_resources
    from model.inputs import InputError
    from pipelines.jobs.specification import LabelJob

    if not isinstance(specification, LabelJob):
        option = "--resources" if resources else "--only-errors"
        raise InputError(f"{option} belongs to jobs that label; {name} is of kind {specification.kind}")
    given = merge_resources(specification.resources, resources_by_labeler(resources, specification.groups))
    return specification.model_copy(
        update={"resources": given, "only_errors": only_errors or specification.only_errors}
    )


def _worker_count(text: str) -> int | tuple[int, int]:
    """The number that N states, or the least and the most of LEAST:MOST. Raises InputError for another form."""
    from model.inputs import InputError
    from model.inputs.schema import split_range

    count = int(text) if text.isdecimal() else split_range(text)
    if isinstance(count, str) or not (count if isinstance(count, int) else all(count)):
        raise InputError(f"--workers {text}: write a number, or LEAST:MOST")
    if isinstance(count, tuple) and count[0] > count[1]:
        raise InputError(f"--workers {text}: write the smaller number first, as {count[1]}:{count[0]}")
    return count
