"""Shards of edits that are made of labeled pictures: a set is the picture and edits of it, or the way back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from labeling.dataset import IMAGES, Dataset, digest_json, select_rows
from labeling.sets.edits import KINDS, Edit, Region, is_gray, regions_of
from labeling.sets.rows import (
    CAPTION,
    ORIGIN,
    ORIGINAL,
    SHARD_SETS,
    SetPicture,
    SetShard,
    encode_jpeg,
    rejected_row,
    write_sets,
)
from model.inputs import InputError
from model.pictures import Picture, decode_gray, decode_picture

SEGMENTATION = "segmentation"
GROUPS = (ORIGIN, CAPTION, IMAGES)
_SAID = ("id", "image", "width", "height", "source", "author", "licence", "text", "metadata")


@dataclass(frozen=True)
class LabeledPiece:
    """Row groups of a shard of a dataset. rows: numbers of those of their rows that are taken, None for all."""

    dataset: int
    shard: str
    row_groups: tuple[int, ...]
    rows: tuple[int, ...] | None


def labeled_pieces(
    number: int, dataset: Dataset, kinds: Sequence[str], where: str
) -> Iterator[tuple[LabeledPiece, str]]:
    """What shards are made from: some row groups of a shard each, and a digest of it.

    number: of the dataset among the sources. Raises InputError where labels are missing, or `where` selects nothing.
    """
    needs = [SEGMENTATION] if any(KINDS[kind][1] for kind in kinds) else []
    groups = [IMAGES, *needs, *([CAPTION] if dataset.declaration(CAPTION) else [])]
    footers = dataset.all_footers(groups)
    selection = select_rows(dataset, where) if where else None
    if selection and not selection.rows:
        raise InputError(f"{dataset.uri}: where {where!r} is true of none of its {selection.total} rows")
    for shard in dataset.shard_names:
        for group in needs:
            if shard not in footers[group]:
                raise InputError(
                    f"{dataset.uri}: no {group} of shard {shard}; make it with `label {dataset.uri} {group}`, or make "
                    f"edits without: --make style"
                )
        of_shard = {group: footers[group][shard] for group in groups if shard in footers[group]}
        taken = np.ones(of_shard[IMAGES].rows, bool) if selection is None else selection.mask(shard).copy()
        taken[dataset.removed_rows(shard)] = False
        content = {group: footer.content for group, footer in of_shard.items()}
        for row_groups, first, end in _cut(of_shard[IMAGES].row_groups):
            here = np.flatnonzero(taken[first:end]).tolist()
            if here:
                rows = None if len(here) == end - first else tuple(here)
                piece = LabeledPiece(number, shard, row_groups, rows)
                yield piece, digest_json([content, row_groups, rows])


def _cut(row_groups: Sequence[int]) -> Iterator[tuple[tuple[int, ...], int, int]]:
    """Numbers of row groups that make a shard of sets together, and the rows that they begin and end with."""
    numbers: list[int] = []
    first = end = 0
    for number, rows in enumerate(row_groups):
        if numbers and end + rows - first > SHARD_SETS:
            yield tuple(numbers), first, end
            numbers, first = [], end
        numbers.append(number)
        end += rows
    if numbers:
        yield tuple(numbers), first, end


def write_made(
    shard: SetShard, sources: Sequence[Dataset], options: Mapping[str, Any], dataset: Dataset, groups: Sequence[str]
) -> tuple[int, int]:
    """Write one shard of made edits; how many sets it has, and how many pictures make none.

    shard.work: a `LabeledPiece`; options: the parameters of `EditingOptions`.
    """
    piece: LabeledPiece = shard.work
    source = sources[piece.dataset]
    known = source.footer(IMAGES, piece.shard).columns
    columns: dict[str, list[str]] = {IMAGES: [name for name in _SAID if name in known]}
    has_segments = any(KINDS[kind][1] for kind in options["make"])
    columns |= {SEGMENTATION: ["mask", "names"]} if has_segments else {}
    columns |= {CAPTION: [CAPTION]} if source.declaration(CAPTION) else {}
    table = source.join(piece.shard, columns, list(piece.row_groups), skip_missing=True)
    sets, rejected = [], []
    for number in range(table.num_rows) if piece.rows is None else piece.rows:
        row = table.slice(number, 1).to_pylist()[0]
        try:
            sets.append(_set(piece.dataset, row, options))
        except Exception as error:  # one picture may not end the job
            rejected.append(rejected_row(row["images.source"] or row["images.id"], error))
    write_sets(dataset, shard, sets, rejected, groups)
    return len(sets), len(rejected)


def _set(number: int, row: Mapping[str, Any], options: Mapping[str, Any]) -> list[SetPicture]:
    """Raises InputError for a picture that none of the kinds of edits can be made of."""
    picture = decode_picture(row["images.image"])
    random = np.random.default_rng(_seed(options["seed"], row["images.id"]))
    regions = _regions(row, options["area"])
    edits = _edits(picture, regions, options, random)
    original = _copied(number, row)
    backs = [edit for edit in edits if edit.back]
    if backs and random.random() < options["reversed"]:
        edit = backs[0]
        first = _made(original, edit.picture, original.caption, edit.method)
        back = SetPicture(**{**vars(original), "caption": edit.back})
        return [first, back]
    return [original, *(_made(original, edit.picture, edit.instruction, edit.method) for edit in edits)]


def _edits(
    picture: Picture, regions: Sequence[Region], options: Mapping[str, Any], random: np.random.Generator
) -> list[Edit]:
    possible = [kind for kind in options["make"] if regions or not KINDS[kind][1]]
    if is_gray(picture):
        possible = [kind for kind in possible if kind != "recolor"]
    if not possible:
        least, most = options["area"]
        raise InputError(f"nothing segmented that can be edited so covers {least:.0%} to {most:.0%} of it")
    edits = []
    for index in random.permutation(len(possible))[: options["edits"]]:
        make, needs_region = KINDS[possible[index]]
        region = regions[int(random.integers(len(regions)))] if needs_region else None
        edits.append(make(picture, region, random))  # type: ignore[arg-type]
    return edits


def _regions(row: Mapping[str, Any], area: Sequence[float]) -> list[Region]:
    if row.get("segmentation.mask") is None:
        return []
    mask = decode_gray(row["segmentation.mask"])
    if mask.shape != (row["images.height"], row["images.width"]):
        return []
    return regions_of(mask, row["segmentation.names"], (area[0], area[1]))


def _copied(number: int, row: Mapping[str, Any]) -> SetPicture:
    caption = row.get("caption.caption") or row["images.text"] or ""
    columns = {name: row.get(f"images.{name}") for name in _SAID}
    return SetPicture(
        row["images.image"],
        row["images.width"],
        row["images.height"],
        caption,
        ORIGINAL,
        columns={name: columns[name] for name in ("id", "source", "author", "licence", "metadata")},
        origin={"dataset": number, "row": row["images.id"]},
    )


def _made(original: SetPicture, picture: Picture, caption: str, method: str) -> SetPicture:
    encoded = encode_jpeg(picture)
    identity = hashlib.blake2b(encoded, digest_size=16).hexdigest()
    columns = {**original.columns, "id": identity}
    return SetPicture(
        encoded, original.width, original.height, caption, method, columns=columns, origin=original.origin
    )


def _seed(seed: int, identity: str) -> int:
    digest = hashlib.blake2b(json.dumps([seed, identity]).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
