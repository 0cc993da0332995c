"""Commands that make and label datasets. Heavy imports stay inside."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from model.inputs import InputError

if TYPE_CHECKING:
    from labeling.resources import Resources

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
        "memory_gb, max_errors. May be repeated.",
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
) -> None:
    """Add or refresh column groups: boxes, segmentation, pose, caption, edges, depth, latents, text, module:Class."""
    from pipelines.label import label as run

    groups, part = names or [], _range(shards) if shards else None
    given = resources_by_labeler(resources or [], groups)
    result = run(dataset, groups, _by_labeler(parameters or []), part, resources=given, only_errors=only_errors)
    print(*result.summary(), sep="\n")


def status(
    dataset: DatasetArgument,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Groups × shards: fresh, stale, missing; rows in error."""
    from dataclasses import asdict

    from labeling.dataset import Dataset, dataset_status, read_row_errors

    opened = Dataset.open(dataset)
    footers = opened.all_footers(opened.groups(), save=True)
    groups = dataset_status(opened, footers=footers)
    if as_json:
        print(json.dumps({group: asdict(state) for group, state in groups.items()}, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    errors = read_row_errors(opened, footers)
    table = Table("group", "fresh", "stale", "missing", "rows", "in error")
    for group, state in groups.items():
        counts = asdict(state) | {"errors": state.errors - errors.unavailable_rows(group)}
        table.add_row(group, *(str(count) for count in counts.values()))
    console = Console()
    console.print(table)
    for labels in errors.unavailable:
        remark = f"{max(labels.rows.values())} rows cannot have {', '.join(labels.rows)}: {labels.missing.what}. "
        console.print(
            f"{remark}To have them labeled, name a model: {labels.command(dataset)}",
            style="bright_black",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


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
    first, _, end = text.partition(":")
    if not (first.isdecimal() and end.isdecimal()):
        raise InputError(f"--shards {text}: write FIRST:END, as in --shards 0:10")
    return int(first), int(end)
