"""The command that says whether jobs would run at a target. Heavy imports stay inside."""

from __future__ import annotations

from typing import Annotated

import typer


def doctor(
    address: Annotated[
        str | None, typer.Argument(metavar="[FOLDER|S3]", help="A place of datasets or runs, probed as well.")
    ] = None,
    target: Annotated[str, typer.Option("--target", help="A YAML file, or local, ray, kubernetes, slurm.")] = "local",
    workers: Annotated[int, typer.Option(min=1, help="As many as the job is to have.")] = 2,
    cpus: Annotated[float, typer.Option(min=0, help="Of each.")] = 1.0,
    gpus: Annotated[float, typer.Option(min=0, help="Of each.")] = 0.0,
) -> int:
    """Whether a job would run at a target, and what to do where it would not; exit code 1 then."""
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    from pipelines.doctor.command import doctor as examine_target
    from pipelines.doctor.command import gathered

    findings = examine_target(target, address, workers, cpus, gpus, say=lambda line: typer.echo(line, err=True))
    table = Table(Column("", no_wrap=True), "check", "where", "found", "remedy")
    for finding in gathered(findings):
        sign = Text("✓", "green") if finding.ok else Text("✗", "bold red")
        table.add_row(sign, *map(Text, (finding.check, finding.where, finding.found, finding.remedy)))
    Console().print(table)
    return 0 if all(finding.ok for finding in findings) else 1


def examine(request: Annotated[str, typer.Argument(metavar="REQUEST")]) -> None:
    """What targets run for `doctor`: the request is JSON."""
    import json

    from pipelines.doctor.examination import run_examination

    run_examination(json.loads(request))
