"""The command line, `onediffusion`. Heavy imports stay inside the commands, so that --help answers at once."""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated, Any

import typer

from model.errors import InputError

app = typer.Typer(
    help="One diffusion model for every image task: label pictures, train, sample.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
DatasetArgument = Annotated[str, typer.Argument(metavar="DATASET", help="Dataset: a folder or s3:// address.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME.KEY=VALUE", help="A parameter, as in --set edges.low=50. May be repeated."),
]


def main() -> None:
    """Run the command line; what a user got wrong ends in one line and exit code 2."""
    sys.path.append(os.getcwd())  # module:Class labelers of the folder one works in
    try:
        code = app(standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    except Exception as error:
        if hasattr(error, "format_message"):  # a wrong argument, found by the parser
            _fail(error.format_message())
        cause = _user_error(error)
        if cause is None:
            raise
        _fail(str(cause))
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> None:
    print(f"onediffusion: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def _user_error(error: BaseException | None) -> InputError | None:
    """The InputError that Ray carried here from another process, if that is what happened."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if type(error) is InputError:
            return error
        error = getattr(error, "cause", None) or error.__cause__ or error.__context__
    return None


@app.command()
def ingest(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Folder, glob, .tar or .parquet; local or s3://.")],
    dataset: DatasetArgument,
    shard_rows: Annotated[int, typer.Option(min=1, help="Most pictures in one shard.")] = 1024,
    max_pixels: Annotated[int, typer.Option(min=1, help="Pictures with more are refused.")] = 100_000_000,
    min_side: Annotated[int, typer.Option(min=1, help="Pictures with a shorter side are refused.")] = 32,
) -> None:
    """Pictures → DATASET/images; what is no picture goes to DATASET/rejected with the reason."""
    from cluster.session import ray_session
    from pipelines.ingest import ingest as run

    with ray_session():
        result = run(source, dataset, shard_rows=shard_rows, max_pixels=max_pixels, min_side=min_side)
    print(f"{result.added} pictures added, {result.rejected} files rejected; {result.pictures} pictures in {dataset}")


@app.command()
def label(
    dataset: DatasetArgument,
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME…", help="Labelers; none: refresh all.")] = None,
    parameters: SetOption = None,
) -> None:
    """Add or refresh column groups: boxes, segmentation, pose, caption, edges, depth, latents, text, module:Class."""
    from cluster.session import ray_session
    from pipelines.label import label as run

    given = parse_settings(parameters or [])
    with ray_session():
        result = run(dataset, names or [], given)
    print_labels(result)


def print_labels(result: Any) -> None:
    """One line a group: shards written and fresh, pictures a second."""
    for group, fresh in result.fresh.items():
        busy = result.busy.get(group, 0.0)
        speed = f", {result.rows[group] / busy:.1f} rows/s a process" if busy else ""
        print(f"{group}: {result.written[group]} shards labelled, {fresh} fresh{speed}")


@app.command()
def status(
    dataset: DatasetArgument,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Groups × shards: fresh, stale, missing; rows in error."""
    from dataclasses import asdict

    from labeling.plan import dataset_status
    from labeling.shards import Dataset

    found = dataset_status(Dataset.open(dataset), save=True)
    if as_json:
        print(json.dumps({group: asdict(state) for group, state in found.items()}, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("group", "fresh", "stale", "missing", "rows", "in error")
    for group, state in found.items():
        table.add_row(group, *(str(value) for value in asdict(state).values()))
    Console().print(table)


def parse_settings(settings: list[str]) -> dict[str, dict[str, Any]]:
    """NAME.KEY=VALUE, values in YAML. Raises InputError for another form."""
    import yaml

    found: dict[str, dict[str, Any]] = {}
    for setting in settings:
        key, sign, value = setting.partition("=")
        name, dot, parameter = key.partition(".")
        if not (sign and dot and name and parameter):
            raise InputError(f"--set {setting}: write NAME.KEY=VALUE, as in --set edges.low=50")
        try:
            found.setdefault(name, {})[parameter] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise InputError(f"--set {setting}: {value!r} is no YAML value; quote it") from None
    return found
