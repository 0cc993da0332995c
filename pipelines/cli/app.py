"""The command line, `onediffusion`. Heavy imports stay inside the commands, so that --help answers at once."""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated, Any

import typer

from model.constants import MAX_PIXELS, MIN_SIDE, SIZE_STEP
from model.inputs import InputError, input_error_behind, one_line
from pipelines.cli import jobs as job_commands

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
        cause = input_error_behind(error)
        if cause is None:
            raise
        _fail(str(cause))
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> None:
    print(f"onediffusion: {one_line(message)}", file=sys.stderr)
    sys.exit(2)


@app.command()
def ingest(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Folder, glob, .tar or .parquet; local or s3://.")],
    dataset: DatasetArgument,
    shard_rows: Annotated[int, typer.Option(min=1, help="Most pictures in one shard.")] = 1024,
    max_pixels: Annotated[int, typer.Option(min=1, help="Pictures with more are refused.")] = MAX_PIXELS,
    min_side: Annotated[int, typer.Option(min=1, help="Pictures with a shorter side are refused.")] = MIN_SIDE,
) -> None:
    """Pictures → DATASET/images; what is no picture goes to DATASET/rejected with the reason."""
    from pipelines.ingest import ingest as run

    result = run(source, dataset, shard_rows=shard_rows, max_pixels=max_pixels, min_side=min_side)
    print(f"{result.added} pictures added, {result.rejected} files rejected; {result.images} pictures in {dataset}")


@app.command()
def label(
    dataset: DatasetArgument,
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME…", help="Labelers; none: refresh all.")] = None,
    parameters: SetOption = None,
    shards: Annotated[
        str | None, typer.Option("--shards", metavar="FIRST:END", help="Only these, as 0:10 for the first ten.")
    ] = None,
) -> None:
    """Add or refresh column groups: boxes, segmentation, pose, caption, edges, depth, latents, text, module:Class."""
    from pipelines.label import label as run

    result = run(dataset, names or [], _by_labeler(parameters or []), _range(shards) if shards else None)
    print_labels(result)


def _by_labeler(settings: list[str]) -> dict[str, dict[str, Any]]:
    """Parameters by labeler or group, of NAME.KEY=VALUE texts. Raises InputError for another form."""
    from model.inputs.settings import parse_settings

    example = "NAME.KEY=VALUE, as in --set edges.low=50"
    parameters = parse_settings(settings, example)
    for name, values in parameters.items():
        if not isinstance(values, dict):
            raise InputError(f"--set {name}: write {example}")
    return parameters


def _range(text: str) -> tuple[int, int]:
    first, _, end = text.partition(":")
    if not (first.isdecimal() and end.isdecimal()):
        raise InputError(f"--shards {text}: write FIRST:END, as in --shards 0:10")
    return int(first), int(end)


def print_labels(result: Any) -> None:
    """One line a group: shards written and fresh, pictures a second."""
    for group, fresh in result.fresh.items():
        busy = result.busy.get(group, 0.0)
        speed = f", {result.rows[group] / busy:.1f} rows/s a process" if busy else ""
        print(f"{group}: {result.written[group]} shards labeled, {fresh} fresh{speed}")


@app.command()
def status(
    dataset: DatasetArgument,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Groups × shards: fresh, stale, missing; rows in error."""
    from dataclasses import asdict

    from labeling.dataset import Dataset, dataset_status

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


@app.command()
def views(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Meshes or transforms.json; a folder or s3://.")],
    dataset: DatasetArgument,
    count: Annotated[int, typer.Option(min=2, max=64, help="Views rendered of a mesh.")] = 8,
    size: Annotated[int, typer.Option(min=32, help="Side of a rendered view, in pixels.")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="Of the cameras around a mesh.")] = 0,
) -> None:
    """View sets with cameras (and exact depth, from meshes) → a dataset of sets."""
    from pipelines.views import views as run

    result = run(source, dataset, count, size, seed)
    print(f"{result.added} sets written; {result.sets} sets in {dataset}")


@app.command()
def train(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file or a preset: debug, stage1-256, …")],
    run: Annotated[str | None, typer.Option("--run", help="Folder or s3:// of the run; default runs/NAME.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="As in --set optimizer.ema=0.999.")
    ] = None,
) -> None:
    """A run: checkpoints, metrics, TensorBoard. Run again, it resumes by itself."""
    from training.config import load_config

    settings = load_config(config, overrides or [])
    from pipelines.train import train as run_it

    run_it(settings, run or f"runs/{settings.name}")


@app.command()
def sample(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="A run, or one of its checkpoints.")],
    task: Annotated[str, typer.Argument(metavar="TASK", help="text2image, depth, segmentation, edges, pose, views, …")],
    images: Annotated[
        list[str] | None, typer.Option("--image", help="A picture whose label is wanted, or that is referred to.")
    ] = None,
    condition: Annotated[str | None, typer.Option("--condition", help="A label whose picture is wanted.")] = None,
    prompt: Annotated[str, typer.Option(help="Caption of the picture.")] = "",
    names: Annotated[list[str] | None, typer.Option("--name", help="A class, for segmentation and boxes.")] = None,
    cameras: Annotated[
        list[str] | None, typer.Option("--camera", metavar="AZ,EL,DIST", help="One a view, known ones first.")
    ] = None,
    references: Annotated[
        list[str] | None, typer.Option("--reference", metavar="CAPTION", help="Of an --image of identity or subject.")
    ] = None,
    out: Annotated[str, typer.Option(help="Where to write the picture.")] = "sample.png",
    size: Annotated[int | None, typer.Option(min=SIZE_STEP, help="Around which to sample; default as trained.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps; default as published.")] = None,
    guidance: Annotated[float | None, typer.Option(min=1.0, help="Toward the prompt; 1 is none.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """One task from a checkpoint: --condition gives a picture, --image its label."""
    from pipelines.sample import sample as run

    written = run(
        checkpoint,
        task,
        out,
        images or [],
        condition,
        prompt,
        names or [],
        cameras or [],
        references or [],
        size,
        steps,
        guidance,
        seed,
    )
    print("\n".join(written))


@app.command()
def evaluate(run: Annotated[str, typer.Argument(metavar="RUN", help="A folder or s3:// address.")]) -> None:
    """What a run has learned: figures beside baselines, and samples of every task, of its newest checkpoint."""
    from pipelines.evaluate import evaluate as run_it

    for name, figure in run_it(run).items():
        print(f"{name}: {figure['model']:.2f}")


@app.command()
def report(target: Annotated[str, typer.Argument(metavar="DATASET|RUN", help="A folder or s3:// address.")]) -> None:
    """One self-contained HTML page about a dataset or a run."""
    from pipelines.reports.page import report as run

    print(run(target))


@app.command()
def demo(
    pictures: Annotated[str | None, typer.Option(help="Your own pictures: folder, glob or s3://.")] = None,
    out: Annotated[str, typer.Option(help="Where everything goes: a folder or s3:// address.")] = "runs/demo",
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps, if not the preset's.")] = None,
) -> None:
    """The whole journey on real pictures, ending with a page of pictures."""
    from pipelines.demo import demo as run

    run(out, pictures, steps)


app.command()(job_commands.submit)
app.command()(job_commands.jobs)
app.command()(job_commands.logs)
app.command()(job_commands.stop)
app.command()(job_commands.scale)
app.command(hidden=True)(job_commands.execute)


@app.command()
def dashboard(
    places: Annotated[list[str] | None, typer.Argument(metavar="DATASET|RUN …", help="To add to those shown.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="To listen on; a free one where it is taken.")] = 3000,
    host: Annotated[str, typer.Option(help="To listen on; beyond this machine only with --token-file.")] = "127.0.0.1",
    token_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="Tokens of those who may come in; made where there is none.")
    ] = None,
    new_pictures: Annotated[
        str | None, typer.Option(metavar="ask|build|ignore", help="What to do about new pictures in the sources.")
    ] = None,
    owner: Annotated[str, typer.Option(help="Of the places: an e-mail address, or team:NAME.")] = "",
    forget: Annotated[list[str] | None, typer.Option(metavar="NAME", help="A place to show no more.")] = None,
) -> None:
    """Datasets, runs and jobs in the browser (Dagster), on loopback: see them, launch, scale, stop."""
    from pipelines.dashboard.server import dashboard as serve

    serve(places or [], host, port, token_file, owner, new_pictures, forget or [])
