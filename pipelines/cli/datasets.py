"""Commands that make and label datasets. Heavy imports stay inside."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from model.inputs import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from labeling.resources import Resources
    from labeling.staleness import GroupPlan

DatasetArgument = Annotated[str, typer.Argument(metavar="DATASET", help="Dataset: a folder or s3:// address.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME.KEY=VALUE", help="A parameter, as in --set edges.low=50. May be repeated."),
]

ResourcesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--resources",
        metavar="LABELER.FIELD=VALUE",
        help="What a labeler may use, as in --resources depth.gpus=0.5: gpus, cpus, batch, processes (1:8), timeout, "
        "memory_gb, max_errors, python. May be repeated.",
    ),
]


def label(
    dataset: DatasetArgument,
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME…", help="Labelers; none: refresh all.")] = None,
    parameters: SetOption = None,
    shards: Annotated[
        str | None, typer.Option("--shards", metavar="FIRST:END", help="Only these, as 0:10 for the first ten.")
    ] = None,
    resources: ResourcesOption = None,
    only_errors: Annotated[
        bool, typer.Option("--only-errors", help="Only rows in error, once more; the others keep their labels.")
    ] = False,
    again: Annotated[
        bool,
        typer.Option("--store-again", help="Compute nothing: store shards as new ones are."),
    ] = False,
    where: Annotated[
        str | None,
        typer.Option(metavar="SQL", help='Label these rows, as in "quality.sharpness > 0.4"; true: all rows.'),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be labeled, and why; change nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Of --dry-run, for machines.")] = False,
) -> None:
    """Add or refresh column groups: boxes, segmentation, pose, caption, edges, depth, latents, text, module:Class."""
    from pipelines.label import label as run
    from pipelines.label import plan
    from pipelines.row_errors import labeled_errors

    groups, part = names or [], _range(shards) if shards else None
    settings = _by_labeler(parameters or [])
    given = resources_by_labeler(resources or [], groups)
    if as_json and not dry_run:
        raise InputError("--json belongs to --dry-run; `onediffusion status DATASET --json` tells how a dataset stands")
    if again:
        _store_again(dataset, groups, part, other=bool(settings or given or only_errors or where or dry_run))
        return
    if dry_run:
        if where is not None and not as_json:
            print(_selected(dataset, where))
        _show_plan(plan(dataset, groups, settings, part, only_errors, where), as_json)
        return
    result = run(dataset, groups, settings, part, resources=given, only_errors=only_errors, where=where)
    errors = labeled_errors(dataset, list(result.fresh), part, result.footers)
    print(*result.summary(), *errors.lines(), sep="\n")
    errors.check()


def _store_again(dataset: str, groups: list[str], part: tuple[int, int] | None, other: bool) -> None:
    from pipelines.store_again import store_again

    if other:
        raise InputError("--store-again computes nothing: give it group names and --shards only")
    for group, count in store_again(dataset, groups, part).items():
        print(f"{group}: {count or 'no'} shard{'s' * (count != 1)} stored again")


def status(
    dataset: DatasetArgument,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Groups × shards: fresh, stale, missing; rows in error."""
    from dataclasses import asdict

    from labeling.dataset import Dataset, dataset_status
    from pipelines.row_errors import STATUS_SHARDS, dataset_errors

    opened = Dataset.open(dataset)
    footers = opened.all_footers(opened.groups(), save=True)
    groups = dataset_status(opened, footers=footers)
    errors = dataset_errors(dataset, opened, footers, list(groups), STATUS_SHARDS)
    if as_json:
        states = {group: asdict(state) | errors.groups[group].to_json() for group, state in groups.items()}
        print(json.dumps(states, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("group", "fresh", "stale", "missing", "rows", "in error", "unavailable")
    for group, state in groups.items():
        of_group = errors.groups[group]
        counts = (state.fresh, state.stale, state.missing, state.rows, of_group.in_error, of_group.unavailable)
        table.add_row(group, *map(str, counts))
    console = Console()
    console.print(table)
    for line in errors.lines():
        console.print(line, style="bright_black", markup=False, highlight=False, soft_wrap=True)


def query(
    dataset: DatasetArgument,
    sql: Annotated[str, typer.Argument(metavar="SQL", help="One SELECT. Groups are tables; `rows` has all of them.")],
    as_csv: Annotated[bool, typer.Option("--csv", help="All rows as CSV.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="All rows, a JSON object a line.")] = False,
) -> None:
    """Rows of all groups, by SQL (DuckDB), as in "select caption.caption from rows where images.width > 800"."""
    from pipelines.query import query as run
    from pipelines.query import show, write_csv, write_json

    if as_csv and as_json:
        raise InputError("--csv and --json: give one of them")
    with run(dataset, sql) as answer:
        (write_csv if as_csv else write_json if as_json else show)(answer)


def views(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Photographs of scenes, files of cameras (transforms.json, COLMAP, CO3D, RealEstate10K) or meshes;"
            " a folder or s3://.",
        ),
    ],
    dataset: DatasetArgument,
    count: Annotated[int, typer.Option(min=2, max=64, help="Views rendered of a mesh.")] = 8,
    size: Annotated[int, typer.Option(min=32, help="Side of a rendered view, in pixels.")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="Of the cameras around a mesh.")] = 0,
    path: Annotated[str, typer.Option(help="Cameras around a mesh: orbit, turntable or random.")] = "orbit",
    photographs: Annotated[
        bool | None,
        typer.Option(
            "--photographs/--no-photographs",
            help="Find the cameras of folders of pictures (COLMAP); by default where there is nothing else.",
        ),
    ] = None,
    pile: Annotated[
        bool, typer.Option("--pile", help="Photographs of several scenes in any folders: group them by what they show.")
    ] = False,
    lens: Annotated[str, typer.Option(help="COLMAP's model of the camera of photographs.")] = "SIMPLE_RADIAL",
    gpus: Annotated[float, typer.Option(min=0, help="That the task of a scene holds, for COLMAP built with CUDA.")] = 0,
) -> None:
    """View sets with cameras (and exact depth, from meshes) → a dataset of sets."""
    from labeling.sources.view_sets import view_options
    from pipelines.views import views as run

    result = run(source, dataset, view_options(count, size, seed, path, lens), photographs, gpus, pile)
    refused = f"; {result.rejected} scenes rejected (rejected/ says why)" if result.rejected else ""
    apart = f"; {result.left_out} pictures are no views (cameras.left_out says why)" if result.left_out else ""
    print(f"{result.added} sets written; {result.sets} sets in {dataset}{refused}{apart}")


def _selected(dataset: str, where: str) -> str:
    from labeling.dataset import Dataset, select_rows

    selection = select_rows(Dataset.open(dataset), where)
    return f"{selection.rows} of {selection.total} rows where {where}"


def _show_plan(plans: Mapping[str, GroupPlan], as_json: bool) -> None:
    from dataclasses import asdict

    from labeling.staleness import plan_lines

    if as_json:
        print(json.dumps({group: asdict(plan) for group, plan in plans.items()}, indent=1))
    else:
        print(*plan_lines(plans), sep="\n")


def resources_by_labeler(settings: list[str], groups: list[str]) -> dict[str, Resources]:
    """Resources of labelers, of LABELER.FIELD=VALUE texts. groups: those to label. Raises InputError."""
    if not settings:
        return {}
    from labeling.resources import check_names, parse_resources
    from model.inputs.settings import parse_by_name

    option = "--resources"
    values = parse_by_name(settings, "LABELER.FIELD=VALUE, as in --resources depth.gpus=0.5", option)
    resources = parse_resources(values, option)
    check_names(resources, groups, option)
    return resources


def _by_labeler(settings: list[str]) -> dict[str, dict[str, Any]]:
    """Parameters by labeler or group, of NAME.KEY=VALUE texts. Raises InputError for another form."""
    from model.inputs.settings import parse_by_name

    return parse_by_name(settings, "NAME.KEY=VALUE, as in --set edges.low=50", "--set")


def _range(text: str) -> tuple[int, int]:
    from model.inputs.schema import split_range

    shards = split_range(text)
    if not isinstance(shards, tuple):
        raise InputError(f"--shards {text}: write FIRST:END, as in --shards 0:10")
    return shards
