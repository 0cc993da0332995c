"""Rows that are sets of pictures, and the shards of the groups that they fill.

`images` has the pictures, `caption` what is said of each, `subject` the item where it is named, and `origin` where each
comes from and how it was made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from labeling.dataset import (
    IMAGE_SCHEMA,
    IMAGES,
    REJECTED,
    REJECTED_SCHEMA,
    Dataset,
    digest_json,
    set_schema,
    write_shard,
)
from labeling.sources.cutting import cut_row_groups
from labeling.sources.normalize import EncodedImage
from model.inputs import one_line

LABELER, VERSION = "sets", 1
SHARD_SETS = 64  # also the most rows of a row group
ORIGIN, CAPTION, SUBJECT = "origin", "caption", "subject"
ORIGINAL = "original"  # the method of a picture that is as its source has it
TRAINED_SIZES = (256, 512, 1024)  # around which pictures of a set must have one bucket, to be frames of one sample
Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels

_BOX = pa.struct([(name, pa.int32()) for name in ("x0", "y0", "x1", "y1")])
_ID, _ERROR = pa.field("id", pa.string()), pa.field("error", pa.string())
IMAGES_OF_SETS = set_schema(IMAGE_SCHEMA)
ORIGIN_SCHEMA = pa.schema(
    [
        _ID,
        *set_schema(
            pa.schema(
                [
                    ("dataset", pa.int32()),  # of dataset.json's sources; null where it comes from files
                    ("row", pa.string()),  # id of the row that it was copied from, or made of
                    ("method", pa.string()),  # how it was made: "original", "given", or what made it
                    ("group", pa.string()),  # what sets of the same person or item share
                    ("crop", _BOX),  # of the source's picture, in its pixels; null of a whole one
                    ("face", _BOX),  # in this picture
                    ("distance", pa.float32()),  # of its embedding from the mean of the set's
                ]
            )
        ),
        _ERROR,
    ]
)


@dataclass
class SetPicture:
    """One picture of a set. columns: others of `images`; origin: others of ORIGIN_SCHEMA than the method."""

    encoded: bytes
    width: int
    height: int
    caption: str
    method: str = ORIGINAL
    item: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SetShard:
    """A shard of sets to write. work: what its writer makes them from."""

    name: str
    recipe: str
    work: Any


def rejected_row(source: str, reason: object) -> dict[str, Any]:
    """A row of `rejected`. reason: a text, or what was raised."""
    if isinstance(reason, Exception):
        reason = reason if type(reason).__name__ == "InputError" else f"{type(reason).__name__}: {reason}"
    return {"source": source, "reason": one_line(str(reason))}


def write_sets(
    dataset: Dataset,
    shard: SetShard,
    sets: Sequence[Sequence[SetPicture]],
    rejected: Sequence[Mapping[str, Any]],
    groups: Sequence[str],
) -> None:
    """Write the shards of `groups` (ORIGIN and IMAGES among them) and of `rejected`; IMAGES last, which says that all
    are there."""
    rows = [_row(pictures) for pictures in sets]
    images = [[EncodedImage(one.encoded, one.width, one.height) for one in pictures] for pictures in sets]
    row_groups = cut_row_groups(images, SHARD_SETS)
    refused = pa.Table.from_pylist(list(rejected), REJECTED_SCHEMA)
    write_shard(dataset.store, REJECTED, shard.name, refused, [refused.num_rows], shard.recipe)
    for group in sorted(groups, key=lambda group: group == IMAGES):
        schema = _schema(group)
        table = pa.Table.from_pylist([{name: row[group].get(name) for name in schema.names} for row in rows], schema)
        write_shard(dataset.store, group, shard.name, table, row_groups, shard.recipe)


def _schema(group: str) -> pa.Schema:
    if group in (IMAGES, ORIGIN):
        return IMAGES_OF_SETS if group == IMAGES else ORIGIN_SCHEMA
    column = CAPTION if group == CAPTION else "item"
    text = [(column, pa.string()), ("model", pa.string()), ("version", pa.int32())]
    return pa.schema([_ID, *set_schema(pa.schema(text)), _ERROR])


def _row(pictures: Sequence[SetPicture]) -> dict[str, dict[str, Any]]:
    """Group → its columns of one set."""
    known = [[one.columns.get("id"), one.origin.get("crop"), one.method, one.caption] for one in pictures]
    identity = digest_json(known)

    def listed(values: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
        return {"id": identity, **{name: [value.get(name) for value in values] for name in names}}

    images = [
        {**one.columns, "image": one.encoded, "width": one.width, "height": one.height, "text": one.caption or None}
        for one in pictures
    ]
    origins = [{**one.origin, "crop": _box(one.origin.get("crop")), "face": _box(one.origin.get("face")),
                "method": one.method} for one in pictures]  # fmt: skip
    texts = [{CAPTION: one.caption, "item": one.item, "model": LABELER, "version": VERSION} for one in pictures]
    return {
        IMAGES: listed(images, [name for name in IMAGES_OF_SETS.names if name != "id"]),
        ORIGIN: listed(origins, ORIGIN_SCHEMA.names[1:-1]),
        CAPTION: listed(texts, [CAPTION, "model", "version"]),
        SUBJECT: listed(texts, ["item", "model", "version"]),
    }


def _box(box: Box | None) -> dict[str, int] | None:
    return None if box is None else dict(zip(("x0", "y0", "x1", "y1"), box, strict=True))


def encode_jpeg(picture: Any) -> bytes:
    """(H, W, 3) uint8 as JPEG of quality 95, its colors whole. The same picture gives the same bytes."""
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def buckets(width: int, height: int) -> list[tuple[int, int]]:
    """The buckets of a picture around the sizes that models are trained at."""
    from model.pictures import aspect_bucket

    return [aspect_bucket(width, height, size) for size in TRAINED_SIZES]
