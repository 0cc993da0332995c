"""The commands that send jobs to targets and steer them. Heavy imports stay inside."""

from __future__ import annotations

from typing import Annotated

import typer

JobArgument = Annotated[str, typer.Argument(metavar="ID", help="As `submit` and `jobs` print it.")]


def submit(
    job: Annotated[
        str, typer.Argument(metavar="JOB", help="A YAML file, or an example: label, views, train, evaluate, report.")
    ],
    target: Annotated[str, typer.Option("--target", help="A YAML file, or local, ray, kubernetes, slurm.")] = "local",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be sent, and send nothing.")] = False,
) -> None:
    """The same job somewhere else; it outlives this terminal."""
    from pipelines.jobs.specification import load_job
    from pipelines.jobs.submit import plan_job, submit_job

    wanted = load_job(job)
    if dry_run:
        for title, text in plan_job(wanted, target).items():
            print(f"# {title}\n{text}")
        return
    print(submit_job(wanted, target, say=typer.echo).id)


def jobs(
    place: Annotated[
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
    from pipelines.jobs.submit import list_jobs

    # In a narrow terminal the rest gives way: the id is what other commands are given.
    table = Table(Column("id", no_wrap=True), "attempt", Column("target", overflow="fold"), "sent", "state", "")
    found = list_jobs(place)
    if place and not found:
        if not open_store(place).files():
            raise InputError(f"{place}: nothing is there; name a dataset or a run")
        typer.echo(f"{place}: no jobs there")
        return
    for submission, state in found:
        sent = datetime.fromtimestamp(submission.sent).strftime("%Y-%m-%d %H:%M") if submission.sent else ""
        told = state.reason or state.progress
        # As text: an error's own brackets are no markup.
        cells = (submission.id, str(submission.attempt), submission.target_name, sent, state.phase, told)
        table.add_row(*map(Text, cells))
    Console().print(table)


def logs(
    job: JobArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
) -> None:
    """What a job printed, over all its attempts."""
    from pipelines.jobs.submit import find_job, log_lines

    def show(line: str) -> None:
        print(line, flush=True)

    for line in log_lines(find_job(job), follow, show):
        show(line)


def stop(job: JobArgument) -> None:
    """End a job; training writes a checkpoint first. Submitted again, it continues."""
    from pipelines.jobs.submit import stop_job

    print(stop_job(job, say=typer.echo).phase)


def scale(
    job: JobArgument,
    workers: Annotated[str, typer.Option("--workers", metavar="N|LEAST:MOST", help="As 4, or 1:8 where elastic.")],
    cpus: Annotated[float | None, typer.Option(min=0, help="Of each; default as before.")] = None,
    gpus: Annotated[float | None, typer.Option(min=0, help="Of each; default as before.")] = None,
) -> None:
    """Go on with more or fewer workers."""
    from model.inputs import InputError
    from pipelines.jobs.folder import JobFolder
    from pipelines.jobs.specification import WorkersSpec
    from pipelines.jobs.submit import find_job, scale_job

    numbers = workers.split(":")
    if len(numbers) > 2 or not all(number.isdecimal() and int(number) for number in numbers):
        raise InputError(f"--workers {workers}: write a number, or LEAST:MOST")
    least, most = int(numbers[0]), int(numbers[-1])
    if least > most:
        raise InputError(f"--workers {workers}: write the smaller number first, as {most}:{least}")
    now = JobFolder(find_job(job).address).job().workers or WorkersSpec()
    count = least if len(numbers) == 1 else (least, most)
    changed = {"count": count, "cpus": cpus, "gpus": gpus}
    given = {key: value for key, value in changed.items() if value is not None}
    scale_job(job, WorkersSpec(**{**now.model_dump(), **given}), say=typer.echo)


def execute(
    address: Annotated[str, typer.Argument(metavar="ADDRESS")],
    attempt: Annotated[int, typer.Option(min=1)],
) -> int:
    """What targets run: one attempt at the job whose folder this is."""
    from pipelines.jobs.run import execute as run

    return run(address, attempt)
