"""The command line, `onediffusion`: its commands by topic, and how errors reach a person.

Heavy imports stay inside the commands, so that --help answers at once.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import typer

from model.inputs import InputError, error_for_person, one_line
from pipelines.cli import datasets, doctor, ingest, jobs, pages, sets, training

app = typer.Typer(
    help="One diffusion model for every image task: label pictures, train, sample.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
COMMANDS = (
    *(ingest.ingest, datasets.label, datasets.status, datasets.query, datasets.views),
    *(training.train, training.plan, training.sample, training.evaluate, training.export),
    *(pages.report, pages.demo),
    *(jobs.submit, jobs.jobs, jobs.logs, jobs.stop, jobs.scale, doctor.doctor),
    pages.dashboard,
)
for command in COMMANDS:
    app.command()(command)
app.add_typer(sets.app, name="sets")
app.command(hidden=True)(jobs.execute)
app.command(hidden=True)(doctor.examine)


def main() -> None:
    """Run the command line. A user's mistake is printed in one line, with exit code 2; work that failed, with 1."""
    sys.path.append(os.getcwd())  # module:Class labelers of the working directory
    try:
        code = app(standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    except Exception as error:
        if hasattr(error, "format_message"):  # a wrong argument, reported by the parser
            _fail(error.format_message())
        cause = error_for_person(error)
        if cause is None:
            raise
        _fail(str(cause), 2 if isinstance(cause, InputError) else 1)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int = 2) -> NoReturn:
    print(f"onediffusion: {one_line(message)}", file=sys.stderr)
    sys.exit(code)
