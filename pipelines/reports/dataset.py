"""What a page says of a dataset: its groups, what went wrong in it, and some of its rows with every label drawn."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from markupsafe import Markup

from labeling.dataset import IMAGES, Dataset, Footer, Footers, dataset_status, entry_columns
from model.conditions import CONDITION_READS, shows_nothing
from model.inputs import InputError
from model.pictures import decode_picture
from pipelines.reports.charts import camera_plan
from pipelines.reports.overlays import Drawing, Inliner, draw_label, thumbnail

VIEW_SIDE = 192
MOST_VIEWS, MOST_SETS = 12, 6
MOST_REJECTED, MOST_REASONS, MOST_EXAMPLES = 60, 40, 4
MOST_ERROR_SHARDS = 64  # read for their reasons; the counts come from footers and are of all

_IMAGE_COLUMNS = ("id", "image", "width", "height", "source", "author", "licence", "text")
_EVERYWHERE = ("model", "version")


@dataclass(frozen=True)
class GroupLine:
    """A line of the table of groups."""

    name: str
    labeler: str
    model: str
    rows: int
    fresh: int
    stale: int
    missing: int
    errors: int


@dataclass(frozen=True)
class Reason:
    """Rows of a group that are in error for one reason, or files rejected for it."""

    what: str
    reason: str
    count: int
    examples: Sequence[str]


@dataclass(frozen=True)
class Row:
    """A picture or a set with its labels: `drawings` of a picture, `views` (drawings of each view) of a set."""

    title: str
    id: str
    size: str
    facts: Mapping[str, str]
    caption: str
    drawings: Sequence[Drawing] = ()
    views: Sequence[Sequence[Drawing]] = ()
    empty: Sequence[str] = ()  # labels that show nothing in any of the views, which are not drawn
    plan: Markup | None = None
    prompts: Sequence[tuple[str, str]] = ()
    values: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DatasetSection:
    """All that the page shows of a dataset; with `trouble`, it could not be read and the rest is empty."""

    uri: str
    trouble: str = ""
    kind: str = ""
    rows: int = 0
    shards: int = 0
    sources: Sequence[str] = ()
    groups: Sequence[GroupLine] = ()
    errors: Sequence[Reason] = ()
    errors_unread: int = 0
    rejected: Sequence[Reason] = ()
    rejected_count: int = 0
    gallery: Sequence[Row] = ()


def describe_dataset(uri: str, inline: Inliner, most: int) -> DatasetSection:
    """Read a dataset for the page: at most `most` of its rows, spread evenly, as far as `inline` has room.

    A dataset that is not there gives a section that says so.
    """
    try:
        dataset = Dataset.open(uri)
        status = dataset_status(dataset)
    except InputError as error:
        return DatasetSection(uri, trouble=str(error))
    footers = {group: dataset.footers(group) for group in status}
    errors, unread = _errors(dataset, footers)
    rejected, count = _rejected(dataset)
    drawn, models = _gallery(dataset, footers, inline, most)
    lines = []
    for group, state in status.items():
        declaration = dataset.declaration(group) or {}
        name = f"{declaration.get('labeler', '')} {declaration.get('version', '')}".strip()
        lines.append(
            GroupLine(
                group, name, models.get(group, ""), state.rows, state.fresh, state.stale, state.missing, state.errors
            )
        )
    return DatasetSection(
        uri=dataset.uri,
        kind=dataset.kind,
        rows=sum(shard.rows for shard in dataset.shards),
        shards=len(dataset.shards),
        sources=[str(source.get("uri", "")) for source in dataset.description.get("sources", ())],
        groups=lines,
        errors=errors,
        errors_unread=unread,
        rejected=rejected,
        rejected_count=count,
        gallery=drawn,
    )


def _errors(dataset: Dataset, footers: Footers) -> tuple[list[Reason], int]:
    """Rows in error by group and reason, most frequent first, and how many rows were not looked at."""
    found: list[Reason] = []
    unread = 0
    for group, shards in footers.items():
        reasons: dict[str, list[str]] = defaultdict(list)
        broken = [shard for shard, footer in shards.items() if footer.errors]
        unread += sum(shards[shard].errors for shard in broken[MOST_ERROR_SHARDS:])
        for shard in broken[:MOST_ERROR_SHARDS]:
            for row in dataset.read(group, shard, ["id", "error"]).to_pylist():
                if row["error"] is not None:
                    reasons[row["error"]].append(row["id"])
        found += _grouped(group, reasons)
    return sorted(found, key=lambda one: -one.count)[:MOST_REASONS], unread


def _rejected(dataset: Dataset) -> tuple[list[Reason], int]:
    reasons: dict[str, list[str]] = defaultdict(list)
    footers = dataset.footers("rejected")
    for shard, footer in footers.items():
        if footer.rows and sum(len(files) for files in reasons.values()) < 10_000:
            for row in dataset.read("rejected", shard).to_pylist():
                reasons[row["reason"]].append(row["source"])
    found = _grouped("file", reasons, examples=MOST_REJECTED)
    return found[:MOST_REASONS], sum(footer.rows for footer in footers.values())


def _grouped(what: str, reasons: Mapping[str, Sequence[str]], examples: int = MOST_EXAMPLES) -> list[Reason]:
    found = [Reason(what, reason, len(rows), rows[:examples]) for reason, rows in reasons.items()]
    return sorted(found, key=lambda one: (-one.count, one.reason))


def _gallery(dataset: Dataset, footers: Footers, inline: Inliner, most: int) -> tuple[list[Row], dict[str, str]]:
    """Rows to show, and what made each group (model and its version), as those rows tell."""
    if dataset.kind == "sets":
        describe, most = _set_row, min(most, MOST_SETS)
    else:
        describe = _picture_row
    rows: list[Row] = []
    models: dict[str, str] = {}
    for shard, row_group, offsets in pick_rows(footers.get("images", {}), most):
        for row in joined_rows(dataset, footers, shard, row_group, offsets):
            if inline.full:
                return rows, models
            rows.append(describe(row, footers, inline))
            for group in footers:
                model = row.get(f"{group}.model")
                model = model[0] if isinstance(model, list) and model else model
                if group not in models and model:
                    models[group] = str(model)
    return rows, models


def pick_rows(images: Mapping[str, Footer], most: int) -> list[tuple[str, int, list[int]]]:
    """(shard, row group, rows within it) of at most `most` rows, spread evenly over the dataset."""
    total = sum(footer.rows for footer in images.values())
    wanted = sorted({int((index + 0.5) * total / most) for index in range(most)} if total > most else range(total))
    picked: list[tuple[str, int, list[int]]] = []
    start = 0
    for shard, footer in sorted(images.items()):
        for number, rows in enumerate(footer.row_groups):
            inside = [index - start for index in wanted if start <= index < start + rows]
            if inside:
                picked.append((shard, number, inside))
            start += rows
    return picked


def joined_rows(
    dataset: Dataset, footers: Footers, shard: str, row_group: int, offsets: Sequence[int]
) -> Iterable[dict[str, Any]]:
    """Rows of all groups as "group.column" → value; a group that is not there, or not of these rows, is left out."""
    columns = {
        group: _shown_columns(group, shards[shard], dataset.has_sets)
        for group, shards in footers.items()
        if shard in shards
    }
    table = dataset.join(shard, columns, [row_group], skip_missing=True)
    return [table.slice(offset, 1).to_pylist()[0] for offset in offsets]


def _shown_columns(group: str, footer: Footer, sets: bool) -> list[str]:
    """Columns of a group that are shown or drawn; embeddings, latents and right images are not read."""
    if group == IMAGES:
        names: Sequence[str] = _IMAGE_COLUMNS
    elif group.startswith("latents") or group == "text":
        names = ("id", "error", *_EVERYWHERE)
    else:
        names = list(footer.columns)
    entries = entry_columns(sets, "task", "prompt") if group == "text" else []
    return [*(name for name in names if name in footer.columns), *entries]


def _picture_row(row: Mapping[str, Any], footers: Footers, inline: Inliner) -> Row:
    title = _title(row["images.source"], row["images.id"])
    return Row(
        title=title,
        id=row["images.id"],
        size=f"{row['images.width']} × {row['images.height']}",
        facts=_facts(row),
        caption=_caption(row),
        drawings=_drawings(row, footers, inline, title),
        prompts=_prompts(row.get("text.entries")),
        values=row_values(row, footers),
    )


def _set_row(row: Mapping[str, Any], footers: Footers, inline: Inliner) -> Row:
    count = len(row["images.image"])
    views = [view_of_set(row, index) for index in range(min(count, MOST_VIEWS))]
    title = _title(str(PurePosixPath(views[0]["images.source"] or "").parent), row["images.id"])
    c2w, intrinsics = row.get("cameras.c2w"), row.get("cameras.intrinsics")
    empty = [group for group in CONDITION_READS if group in footers and all(shows_nothing(group, v) for v in views)]
    drawn = {group: shards for group, shards in footers.items() if group not in empty}
    return Row(
        title=title,
        id=row["images.id"],
        size=f"{count} views of {views[0]['images.width']} × {views[0]['images.height']}",
        facts=_facts(views[0]),
        caption=_caption(views[0]),
        views=[
            _drawings(view, drawn, inline, f"{title}, view {index + 1}", VIEW_SIDE, f"view {index + 1}")
            for index, view in enumerate(views)
        ],
        empty=empty,
        plan=camera_plan(c2w, intrinsics) if c2w and intrinsics else None,
        prompts=_prompts(views[0].get("text.entries")),
    )


def view_of_set(row: Mapping[str, Any], index: int) -> dict[str, Any]:
    """One view of a set as if it were a row of pictures; ids and errors are the set's."""
    return {
        name: value[index] if isinstance(value, list) and len(value) > index else None if value is None else value
        for name, value in row.items()
    }


def _drawings(
    row: Mapping[str, Any], footers: Footers, inline: Inliner, title: str, side: int = 256, name: str = "picture"
) -> list[Drawing]:
    """The picture, then each label over it."""
    picture = thumbnail(decode_picture(row["images.image"]), side)
    height, width = picture.shape[:2]
    found = [Drawing(name, inline(picture), f"picture {title}", width, height)]
    return found + [draw_label(group, row, picture, inline, title) for group in CONDITION_READS if group in footers]


def _facts(row: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(row[f"images.{key}"]) for key in ("author", "licence", "source") if row.get(f"images.{key}")}


def _title(source: str | None, identity: str) -> str:
    return PurePosixPath(source).name if source and source != "." else identity[:12]


def _caption(row: Mapping[str, Any]) -> str:
    return str(row.get("caption.caption") or row.get("images.text") or "")


def _prompts(entries: Sequence[Mapping[str, Any]] | None) -> list[tuple[str, str]]:
    return [(str(entry["task"]), str(entry["prompt"])) for entry in entries or () if entry and entry["task"]]


def row_values(row: Mapping[str, Any], footers: Footers) -> dict[str, str]:
    """Short values and errors of groups that are not drawn, such as those of one's own labelers."""
    shown = {}
    for name, value in row.items():
        group, _, column = name.partition(".")
        drawn = group in CONDITION_READS or group in ("images", "cameras") or name == "caption.caption"
        if drawn or group not in footers or column in ("id", *_EVERYWHERE):
            continue
        if isinstance(value, bool | int | float | str) and value != "":
            text = f"{value:.4g}" if isinstance(value, float) else str(value)
            shown[name] = text if len(text) <= 200 else f"{text[:200]} …"
    return shown
