"""Some rows of a dataset, each with every label drawn over its image, for a person to look at."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from labeling.dataset import (
    CAMERAS,
    IMAGES,
    Dataset,
    Footer,
    Footers,
    FooterTable,
    Selection,
    entry_columns,
    is_text,
    missing_parameter,
    upstream_groups,
)
from model.conditions import CONDITION_READS, shows_nothing
from model.pictures import decode_picture
from pipelines.reports.charts import camera_plan
from pipelines.reports.overlays import DRAWN, SIDE, Drawing, Inliner, draw_label, thumbnail
from pipelines.reports.reprojection import draw_reprojection

VIEW_SIDE = 192
MAX_VIEWS, MAX_SETS = 12, 6

_IMAGE_COLUMNS = ("id", "image", "width", "height", "source", "author", "licence", "text")
_EXACT_DEPTH = ("disparity", "disparity_scale")  # of views, from which one is drawn as another camera sees it
_COMMON_COLUMNS = ("model", "version")
_QUALITY = {
    "reprojection": ("reprojection error", "{:.2f} px"),
    "baseline": ("baseline", "{:.0%} of the distance"),
    "overlap": ("overlap", "{:.0%} of a view"),
}


@dataclass(frozen=True)
class GalleryRow:
    """An image or a set with its labels: `drawings` of an image, `views` (drawings of each view) of a set."""

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


def draw_gallery(
    dataset: Dataset, footers: Footers, inline: Inliner, max_rows: int, selection: Selection | None = None
) -> tuple[list[GalleryRow], dict[str, str]]:
    """Rows spread evenly over a dataset, until `inline` is full; and group → the model that made it, by those rows.

    selection: the rows to choose from, all by default.
    Labels that nothing could make (labeling.dataset.row_errors) are left out: the page says so once.
    """
    sets = dataset.has_sets
    upstream = upstream_groups(dataset, list(footers))
    rows: list[GalleryRow] = []
    models: dict[str, str] = {}
    chosen = None if selection is None else selection.numbers()
    picks = pick_rows(footers.get(IMAGES, {}), min(max_rows, MAX_SETS) if sets else max_rows, chosen)
    for shard, row_group, offsets in picks:
        for row in joined_rows(dataset, footers, shard, row_group, offsets):
            if inline.full:
                return rows, models
            errors = {group: row.get(f"{group}.error") for group in footers}
            groups = [group for group in footers if not missing_parameter(group, errors, upstream)]
            rows.append((_set_row if sets else _image_row)(row, groups, inline))
            for group in footers:
                model = row.get(f"{group}.model")
                model = model[0] if isinstance(model, list) and model else model
                if model:
                    models.setdefault(group, str(model))
    return rows, models


def pick_rows(
    images: Mapping[str, Footer], max_rows: int, chosen: NDArray[np.int64] | None = None
) -> list[tuple[str, int, list[int]]]:
    """(shard, row group, rows within it) of at most `max_rows` rows, spread evenly over the dataset.

    chosen: numbers of the rows to pick from, in order; all by default.
    """
    table = FooterTable.of(images)
    ends = np.cumsum(table.table["rows"].to_numpy())
    total = (int(ends[-1]) if len(ends) else 0) if chosen is None else len(chosen)
    spread_indices = {int((index + 0.5) * total / max_rows) for index in range(max_rows)}
    indices: Sequence[int] = sorted(spread_indices) if total > max_rows else range(total)
    if chosen is not None:
        indices = chosen[list(indices)].tolist()
    picks: list[tuple[str, int, list[int]]] = []
    shards = table.names()
    for position in dict.fromkeys(np.searchsorted(ends, list(indices), "right").tolist()):
        start = int(ends[position - 1]) if position else 0
        for number, rows in enumerate(table.row_groups(shards[position])):
            inside = [index - start for index in indices if start <= index < start + rows]
            if inside:
                picks.append((shards[position], number, inside))
            start += rows
    return picks


def joined_rows(
    dataset: Dataset, footers: Footers, shard: str, row_group: int, offsets: Sequence[int]
) -> Iterable[dict[str, Any]]:
    """The rows as "group.column" → value of all groups that have the shard. offsets: of rows within the row group."""
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
        names: Sequence[str] = (*_IMAGE_COLUMNS, *_EXACT_DEPTH) if sets else _IMAGE_COLUMNS
    elif group.startswith("latents") or is_text(group):
        names = ("id", "error", *_COMMON_COLUMNS)
    else:
        names = list(footer.columns)
    entries = entry_columns(sets, "task", "prompt") if is_text(group) else []
    return [*(name for name in names if name in footer.columns), *entries]


def _image_row(row: Mapping[str, Any], groups: Sequence[str], inline: Inliner) -> GalleryRow:
    title = _title(row.get("images.source"), row["images.id"])
    return GalleryRow(
        title=title,
        id=row["images.id"],
        size=f"{row['images.width']} × {row['images.height']}",
        facts=_facts(row),
        caption=_caption(row),
        drawings=_drawings(row, groups, inline, title),
        prompts=_prompts(row, groups),
        values=row_values(row, groups),
    )


def _set_row(row: Mapping[str, Any], groups: Sequence[str], inline: Inliner) -> GalleryRow:
    count = len(row["images.image"])
    views = [view_of_set(row, index) for index in range(min(count, MAX_VIEWS))]
    empty = [group for group in CONDITION_READS if group in groups and all(shows_nothing(group, v) for v in views)]
    drawn = [group for group in groups if group not in empty]
    if "origin.method" in row:
        return _reference_row(row, views, drawn, inline)
    title = _title(str(PurePosixPath(views[0].get("images.source") or "").parent), row["images.id"])
    c2w, intrinsics = row.get("cameras.c2w"), row.get("cameras.intrinsics")
    drawings = [
        _drawings(view, drawn, inline, f"{title}, view {index + 1}", VIEW_SIDE, f"view {index + 1}")
        for index, view in enumerate(views)
    ]
    if reprojection := draw_reprojection(row, inline, VIEW_SIDE, title):
        drawings[1].append(reprojection)
    return GalleryRow(
        title=title,
        id=row["images.id"],
        size=f"{count} views of {views[0]['images.width']} × {views[0]['images.height']}",
        facts=_facts(views[0]) | _quality(row),
        caption=_caption(views[0]),
        views=drawings,
        empty=empty,
        plan=camera_plan(c2w, intrinsics) if c2w and intrinsics else None,
        prompts=_prompts(views[0], groups),
    )


def _quality(row: Mapping[str, Any]) -> dict[str, str]:
    """What is known of a view set's cameras, in words."""
    known = {name: row.get(f"{CAMERAS}.{name}") for name in ("kind", *_QUALITY, "left_out")}
    words = {"cameras from": str(known["kind"])} if known["kind"] else {}
    words |= {title: form.format(known[name]) for name, (title, form) in _QUALITY.items() if known[name] is not None}
    left_out = json.loads(known["left_out"] or "{}")
    if left_out:
        first = next(iter(left_out.items()))
        words["left out"] = f"{len(left_out)}, as {first[0]}: {first[1]}"
    return words


def _reference_row(
    row: Mapping[str, Any], pictures: Sequence[Mapping[str, Any]], groups: Sequence[str], inline: Inliner
) -> GalleryRow:
    """A set without cameras: under each picture what is said of it, and how it was made."""
    first = pictures[0]
    title = str(first.get("subject.item") or _title(first.get("images.source"), row["images.id"]))
    drawings = [
        _drawings(picture, groups, inline, f"{title}, picture {number}", VIEW_SIDE, _caption(picture) or "no caption")
        for number, picture in enumerate(pictures, start=1)
    ]
    return GalleryRow(
        title=title,
        id=row["images.id"],
        size=f"{len(pictures)} pictures of {first['images.width']} × {first['images.height']}",
        facts=_facts(first),
        caption="",
        views=[
            [replace(plain, note=_origin(picture)), *labels]
            for picture, (plain, *labels) in zip(pictures, drawings, strict=True)
        ],
        prompts=[entry for picture in pictures for entry in _prompts(picture, groups)],
    )


def _origin(picture: Mapping[str, Any]) -> str:
    distance = picture.get("origin.distance")
    return str(picture["origin.method"]) + ("" if distance is None else f", {distance:.2f} from the set's mean")


def view_of_set(row: Mapping[str, Any], index: int) -> dict[str, Any]:
    """One view of a set as if it were a row of images; ids and errors are the set's."""
    return {
        name: value[index] if isinstance(value, list) and len(value) > index else None if value is None else value
        for name, value in row.items()
    }


def _drawings(
    row: Mapping[str, Any], groups: Sequence[str], inline: Inliner, title: str, side: int = SIDE, name: str = "picture"
) -> list[Drawing]:
    """The image, then the label of each group over it."""
    picture = thumbnail(decode_picture(row["images.image"]), side)
    height, width = picture.shape[:2]
    plain = Drawing(name, inline(picture), f"picture {title}", width, height)
    return [plain, *(draw_label(group, row, picture, inline, title) for group in DRAWN if group in groups)]


def _facts(row: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(row[f"images.{key}"]) for key in ("author", "licence", "source") if row.get(f"images.{key}")}


def _title(source: str | None, identity: str) -> str:
    return PurePosixPath(source).name if source and source != "." else identity[:12]


def _caption(row: Mapping[str, Any]) -> str:
    return str(row.get("caption.caption") or row.get("images.text") or "")


def _prompts(row: Mapping[str, Any], groups: Iterable[str]) -> list[tuple[str, str]]:
    entries = [entry for group in groups if is_text(group) for entry in row.get(f"{group}.entries") or ()]
    return [(str(entry["task"]), str(entry["prompt"])) for entry in entries if entry and entry["task"]]


def row_values(row: Mapping[str, Any], groups: Collection[str]) -> dict[str, str]:
    """Short values and errors of groups that are not drawn, such as those of labelers in other packages, as text."""
    values = {}
    for name, value in row.items():
        group, _, column = name.partition(".")
        drawn = group in DRAWN or group in (IMAGES, CAMERAS) or name == "caption.caption"
        if drawn or group not in groups or column in ("id", *_COMMON_COLUMNS):
            continue
        if isinstance(value, list) and all(isinstance(one, str) for one in value):
            value = ", ".join(value)
        if isinstance(value, bool | int | float | str) and value != "":
            text = f"{value:.4g}" if isinstance(value, float) else str(value)
            values[name] = text if len(text) <= 200 else f"{text[:200]} …"
    return values
