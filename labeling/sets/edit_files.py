"""Shards of edits as their source has them: each set a picture and the edits that follow of the same picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from labeling.dataset import IMAGES, Dataset
from labeling.sets.edit_rows import EditRow, EditSource, Piece
from labeling.sets.rows import CAPTION, ORIGIN, ORIGINAL, SetPicture, SetShard, buckets, rejected_row, write_sets
from labeling.sources.facts import USUAL, describe
from labeling.sources.normalize import EncodedImage, Rejected, image_id, normalize
from model.constants import MAX_PIXELS, MIN_SIDE
from model.inputs import InputError

GIVEN = "given"  # the method of an edit that came with its source
GROUPS = (ORIGIN, CAPTION, IMAGES)


def write_given(
    shard: SetShard, sources: Sequence[EditSource], dataset: Dataset, groups: Sequence[str]
) -> tuple[int, int]:
    """Write one shard of edits from files; how many sets it has, and how many rows make none.

    shard.work: the index of its source, and the piece of it.
    """
    number, piece = shard.work
    sets: list[list[SetPicture]] = []
    rejected: list[dict[str, Any]] = []
    for taken in _taken(sources[number], piece):
        if isinstance(taken, dict):
            rejected.append(taken)
            continue
        original, edit = taken
        if sets and sets[-1][0].columns["id"] == original.columns["id"]:
            sets[-1].append(edit)
        else:
            sets.append([original, edit])
    write_sets(dataset, shard, sets, rejected, groups)
    return len(sets), len(rejected)


def _taken(source: EditSource, piece: Piece) -> Iterator[tuple[SetPicture, SetPicture] | dict[str, Any]]:
    """The original and the edit of each row, or the row of `rejected`."""
    seen: dict[tuple[str, str, str], str] = {}
    for row in source.rows(piece):
        try:
            if row.reason:
                raise InputError(row.reason)
            pair = _pair(row)
            key = (pair[0].columns["id"], pair[1].columns["id"], row.instruction)
            if key in seen:
                raise InputError(f"the same edit as {seen[key]}")
            seen[key] = row.name
            yield pair
        except Exception as error:  # nothing that a source holds may end the job
            yield rejected_row(row.name, error if not isinstance(error, Rejected) else str(error))


def _pair(row: EditRow) -> tuple[SetPicture, SetPicture]:
    """Raises InputError for pictures that do not belong together, Rejected for what is none."""
    pictures = [_normal(raw, what) for raw, what in ((row.source, "source"), (row.target, "target"))]
    ids = [image_id(raw) for raw in (row.source, row.target)]
    if ids[0] == ids[1]:
        raise InputError("source and target are the same picture")
    sizes = [(one.width, one.height) for one in pictures]
    if buckets(*sizes[0]) != buckets(*sizes[1]):
        (width, height), (other_width, other_height) = sizes
        raise InputError(f"the source has {width} × {height} pixels, the target {other_width} × {other_height}")
    said = {**describe(row.facts, USUAL).columns, "source": row.name}
    made = []
    for one, identity, text, method in zip(
        pictures, ids, (row.caption, row.instruction), (ORIGINAL, GIVEN), strict=True
    ):
        made.append(SetPicture(one.encoded, one.width, one.height, text, method, columns={**said, "id": identity}))
    return made[0], made[1]


def _normal(raw: bytes, what: str) -> EncodedImage:
    try:
        return normalize(raw, MAX_PIXELS, MIN_SIDE)
    except Rejected as error:
        raise InputError(f"{what}: {error}") from None
