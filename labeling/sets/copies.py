"""Shards of sets of pictures of labeled datasets: each picture is read alone, and copied once.

A picture's bytes stay as they are, unless the set's pictures have other shapes: then it is cropped to the set's shape,
since the frames of a sample have one size.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from labeling.dataset import IMAGES, Dataset, Want, read_arrays
from labeling.sets.candidates import OBJECTS, said_key
from labeling.sets.grouping import read_planned
from labeling.sets.options import EMBEDDING, FOLDER, OF_CAPTION
from labeling.sets.rows import (
    CAPTION,
    ORIGIN,
    SUBJECT,
    Box,
    SetPicture,
    SetShard,
    buckets,
    encode_jpeg,
    rejected_row,
    write_sets,
)
from model.inputs import InputError
from model.pictures import aspect_bucket, decode_picture

IDENTITY_GROUPS = (ORIGIN, CAPTION, IMAGES)
SUBJECT_GROUPS = (*IDENTITY_GROUPS, SUBJECT)
_COLUMNS = ("id", "width", "height", "source", "author", "licence", "text", "metadata")
_ARTICLE = re.compile(r"^(a|an|the|this|that|one|two|three|some|my|photo of|picture of|close-up of)\s+", re.IGNORECASE)
_NOUN_ENDS = re.compile(
    r"\s*[,.;:!?(]|\s(on|in|at|with|before|behind|under|over|near|from|of|by|for|against|and|is|are|that|which|while|"
    r"looks?|stands?|sits?|lies?|leans?|leaning|standing|sitting|lying|hanging)\s",
    re.IGNORECASE,
)
_SHAPE_SIZE = 256  # whose buckets are the shapes that pictures of a set are cropped to


def write_copies(
    shard: SetShard, sources: Sequence[Dataset], options: Mapping[str, Any], dataset: Dataset, groups: Sequence[str]
) -> tuple[int, int]:
    """Write one shard of the plan; how many sets it has, and how many could not be made."""
    planned = read_planned(dataset.store, shard.name)
    rows = _read(sources, [member for one in planned for member in one["members"]], options)
    sets, rejected = [], []
    for one in planned:
        members = [rows[_key(member)] for member in one["members"]]
        try:
            sets.append(_set(members, one, options))
        except Exception as error:  # one picture may not end the job
            rejected.append(rejected_row(str(members[0]["source"] or members[0]["id"]), error))
    write_sets(dataset, shard, sets, rejected, groups)
    return len(sets), len(rejected)


def _key(member: Mapping[str, Any]) -> tuple[int, int, int]:
    return member["dataset"], member["shard"], member["row"]


def _read(
    sources: Sequence[Dataset], members: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
) -> dict[tuple[int, int, int], dict[str, Any]]:
    """What is known of each picture, and its bytes as `image`: only the rows that are wanted are read."""
    by_shard: dict[tuple[int, int], list[int]] = defaultdict(list)
    for member in members:
        by_shard[member["dataset"], member["shard"]].append(member["row"])
    rows: dict[tuple[int, int, int], dict[str, Any]] = {}
    wants: list[Want] = []
    for (number, index), wanted in sorted(by_shard.items()):
        source = sources[number]
        for row, values in _shard_rows(source, source.shards[index].name, sorted(wanted), options, wants):
            rows[number, index, row] = values
    read_arrays(wants)
    return rows


def _shard_rows(
    source: Dataset, shard: str, wanted: Sequence[int], options: Mapping[str, Any], wants: list[Want]
) -> Iterator[tuple[int, dict[str, Any]]]:
    file = source.arrays(IMAGES, shard)
    known = source.footer(IMAGES, shard).columns
    columns: dict[str, list[str]] = {IMAGES: [name for name in _COLUMNS if name in known]}
    if source.declaration(CAPTION) is not None:
        columns[CAPTION] = [CAPTION]
    if options.get("by") == EMBEDDING:
        columns[OBJECTS] = ["name"]
    by_group: dict[int, list[int]] = defaultdict(list)
    for row in wanted:
        by_group[int(np.searchsorted(file.row_starts, row, side="right")) - 1].append(row)
    for row_group, rows in by_group.items():
        table = source.join(shard, columns, [row_group], skip_missing=True)
        whole = None if file.pictures else source.read(IMAGES, shard, ["image"], [row_group])["image"]
        for row in rows:
            offset = row - file.row_starts[row_group]
            values = {
                name.partition(".")[2] if name.startswith(f"{IMAGES}.") else name: value
                for name, value in table.slice(offset, 1).to_pylist()[0].items()
            }
            if file.pictures:
                place = file.pictures.value(row)
                values["image"] = np.empty(file.pictures.sizes[place], np.uint8)
                wants.append(file.want(place, values["image"]))
            else:
                assert whole is not None
                values["image"] = whole[offset].as_py()
            yield row, values


def _set(rows: Sequence[Mapping[str, Any]], planned: Mapping[str, Any], options: Mapping[str, Any]) -> list[SetPicture]:
    faces = [member["face"] for member in planned["members"]]
    windows = [_window(row, face, options.get("crop", 0.0)) for row, face in zip(rows, faces, strict=True)]
    crops = same_shape(windows, faces)
    item = options.get("item") or _item(rows[0], options) if "by" in options else None
    made = []
    for row, member, crop in zip(rows, planned["members"], crops, strict=True):
        left, top, right, bottom = crop
        encoded, is_whole = bytes(row["image"]), crop == (0, 0, row["width"], row["height"])
        if not is_whole:
            encoded = encode_jpeg(np.ascontiguousarray(decode_picture(encoded)[top:bottom, left:right]))
        made.append(
            SetPicture(
                encoded,
                right - left,
                bottom - top,
                row.get("caption.caption") or row["text"] or "",
                "original" if is_whole else "cropped",
                item,
                {name: row.get(name) for name in ("id", "source", "author", "licence", "metadata")},
                {
                    "dataset": member["dataset"],
                    "row": row["id"],
                    "group": planned["group"],
                    "crop": None if is_whole else crop,
                    "face": _inside(member["face"], crop),
                    "distance": member["distance"],
                },
            )
        )
    return made


def same_shape(windows: Sequence[Box], faces: Sequence[Sequence[int] | None]) -> list[Box]:
    """Crops of windows (x0, y0, x1, y1) to one shape, so that all have the same bucket at every size that is trained.

    Where they have it already they stay whole. A crop holds its face (box) in its middle, as far as the window lets it.
    """
    sizes = [(right - left, bottom - top) for left, top, right, bottom in windows]
    if all(buckets(*size) == buckets(*sizes[0]) for size in sizes):
        return list(windows)
    aspect = math.exp(float(np.median([math.log(width / height) for width, height in sizes])))
    across, down = aspect_bucket(round(1000 * aspect), 1000, _SHAPE_SIZE)
    unit = math.gcd(across, down)
    across, down = across // unit, down // unit
    crops = []
    for window, (width, height), face in zip(windows, sizes, faces, strict=True):
        if buckets(width, height) == buckets(across * 100, down * 100):
            crops.append(window)
            continue
        times = min(width // across, height // down)
        if not times:
            raise InputError(f"{width} × {height} pixels are too few to be cropped to {across} : {down}")
        middle = ((face[0] + face[2]) / 2, (face[1] + face[3]) / 2) if face else None
        crops.append(_placed(window, times * across, times * down, middle))
    return crops


def _window(row: Mapping[str, Any], face: Sequence[int] | None, factor: float) -> Box:
    """The part of a picture that is kept: all of it, or a square around the face."""
    whole = (0, 0, row["width"], row["height"])
    if not factor or not face:
        return whole
    side = max(32, min(round(factor * max(face[2] - face[0], face[3] - face[1])), row["width"], row["height"]))
    return _placed(whole, side, side, ((face[0] + face[2]) / 2, (face[1] + face[3]) / 2))


def _placed(window: Box, width: int, height: int, middle: tuple[float, float] | None) -> Box:
    """A part of a window, width × height, around a point of it (its middle by default)."""
    left, top, right, bottom = window
    x, y = middle or ((left + right) / 2, (top + bottom) / 2)
    x0 = min(max(round(x - width / 2), left), right - width)
    y0 = min(max(round(y - height / 2), top), bottom - height)
    return x0, y0, x0 + width, y0 + height


def _inside(face: Sequence[int] | None, crop: Box) -> Box | None:
    if not face:
        return None
    left, top, right, bottom = crop
    return (
        min(max(face[0], left), right) - left,
        min(max(face[1], top), bottom) - top,
        min(max(face[2], left), right) - left,
        min(max(face[3], top), bottom) - top,
    )


def _item(row: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """What the item of a set is called. Raises InputError where nothing names it."""
    by = options["by"]
    if by == EMBEDDING:
        name = str(row["embedding-object.name"])
    elif by == FOLDER:
        name = item_of_folder(row["source"] or "")
    elif by == OF_CAPTION:
        name = item_of_caption(row.get("caption.caption") or row["text"] or "")
    else:
        name = said_key({}, json.loads(row.get("metadata") or "{}"), by)
    if not name:
        raise InputError(f"nothing names its item; name it with --item, or group by another thing than {by}")
    return name


def item_of_folder(source: str) -> str:
    """The name that a folder has, without numbers: "red backpack" of "photos/red_backpack2/01.jpg"."""
    folder = source.rpartition("/")[0].rpartition("/")[2]
    return " ".join(word for word in re.split(r"[\W_]+", re.sub(r"\d+", " ", folder)) if word).lower()


def item_of_caption(caption: str) -> str:
    """What a caption begins with, without article: "red bicycle" of "A red bicycle leans on a wall."."""
    text = caption.strip()
    while (shorter := _ARTICLE.sub("", text)) != text:
        text = shorter
    return _NOUN_ENDS.split(text + ".", maxsplit=1)[0].strip().lower()
