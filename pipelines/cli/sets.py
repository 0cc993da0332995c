"""The commands that make datasets of sets without cameras. Heavy imports stay inside."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from labeling.sets import options

app = typer.Typer(help="Sets of one person, of one item, or of a picture and edits → a dataset of sets.")
Labeled = Annotated[list[str], typer.Argument(metavar="SOURCE…", help="Labeled datasets; folders or s3://.")]
Edits = Annotated[
    list[str],
    typer.Argument(metavar="SOURCE…", help="Folders or files of edits (Parquet, JSONL), or labeled datasets."),
]
Target = Annotated[str, typer.Argument(metavar="DATASET", help="Dataset of sets to make: a folder or s3:// address.")]
Pictures = Annotated[str, typer.Option(metavar="LEAST:MOST", help="Pictures of a set.")]
Least = Annotated[int, typer.Option(min=2, help="Pictures of a group, below which it makes no set.")]
Duplicates = Annotated[
    int, typer.Option(min=-1, max=128, help="Bits of 256 in which nearly equal pictures differ; -1 keeps all.")
]
Where = Annotated[str, typer.Option(metavar="SQL", help="Only rows of which it is true, as `quality.pixels > 90000`.")]


def _of_files(text: str, name: str) -> Any:
    return typer.Option(name, help=text, metavar="COLUMN", rich_help_panel="Edits in files")


def _of_labels(text: str, name: str, **more: Any) -> Any:
    return typer.Option(name, help=text, rich_help_panel="Edits made by labels", **more)


@app.command()
def identity(
    sources: Labeled,
    dataset: Target,
    distance: Annotated[float, typer.Option(help="Of two faces' embeddings, below which they are linked.")] = 0.5,
    side: Annotated[int, typer.Option(min=8, help="Least side of a face, in pixels.")] = 48,
    alone: Annotated[bool, typer.Option("--alone", help="Only pictures with a single face.")] = False,
    crop: Annotated[float, typer.Option(min=0, help="Keep so many sides of the face around it; 0: all.")] = 0.0,
    pictures: Pictures = "2:5",
    least: Least = 2,
    duplicates: Duplicates = 56,
    where: Where = "",
) -> None:
    """Pictures of one person each, grouped by the labels `faces` of datasets."""
    _run("identity", sources, dataset, locals(), "distance", "side", "alone", "crop", *_GROUPING)


@app.command()
def subject(
    sources: Labeled,
    dataset: Target,
    by: Annotated[
        str, typer.Option(help="What tells an item: folder, caption, embedding (of the object), or a key of metadata.")
    ] = "folder",
    item: Annotated[str, typer.Option(help="What all the items are, as `chair`; by default as each is named.")] = "",
    similarity: Annotated[float, typer.Option(help="Least cosine of two objects' embeddings that links them.")] = 0.8,
    pictures: Pictures = "2:4",
    least: Least = 2,
    duplicates: Duplicates = 56,
    where: Where = "",
) -> None:
    """Pictures of one item each, with its name."""
    _run("subject", sources, dataset, locals(), "by", "item", "similarity", *_GROUPING)


@app.command()
def editing(
    sources: Edits,
    dataset: Target,
    source: Annotated[str, _of_files("The source picture, where its column is not found.", "--source-column")] = "",
    target: Annotated[str, _of_files("The target picture, likewise.", "--target-column")] = "",
    instruction: Annotated[str, _of_files("The instruction, likewise.", "--instruction-column")] = "",
    make: Annotated[list[str] | None, _of_labels("A kind: remove, recolor, background, style; all.", "--make")] = None,
    edits: Annotated[int | None, _of_labels("Most edits of a picture.  [2]", "--edits", min=1, max=8)] = None,
    reversed_share: Annotated[
        float | None, _of_labels("Share whose real picture is the target.  [0.25]", "--reversed", min=0, max=1)
    ] = None,
    area: Annotated[
        str, _of_labels("Share of the picture that an edited object has.  [0.01:0.35]", "--area", metavar="LEAST:MOST")
    ] = "",
    seed: Annotated[int | None, _of_labels("Of what is drawn.  [0]", "--seed", min=0)] = None,
    where: Where = "",
) -> None:
    """A picture and edits of it, with their instructions: from files, or made by the labels of datasets."""
    values = {**locals(), "reversed": reversed_share}
    _run("editing", sources, dataset, values, *(name for name in options.EditingOptions.model_fields if values[name]
                                                not in (None, "")))  # fmt: skip


_GROUPING = ("pictures", "least", "duplicates", "where")


def _run(kind: str, sources: list[str], dataset: str, values: dict[str, Any], *names: str) -> None:
    from pipelines.sets import sets

    result = sets(kind, sources, dataset, {name: values[name] for name in names})
    print(*result.summary(dataset), sep="\n")
