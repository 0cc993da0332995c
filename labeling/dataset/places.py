"""Where single latents, embeddings and pictures lie in a shard, so that one row can be read alone.

A row group's arrays are one page without compression, which ends with its values: 4 bytes of length and the bytes of
each. So their places follow from their sizes, and those from heights, widths and tokens. Reading these small columns
would cost a request for each row group; the footer, which is read anyway, has them once more. Of pictures, which are
compressed, it has the sizes themselves.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from labeling.dataset.arrays import ITEM, MAX_PAGE
from model.constants import LATENT_CHANNELS
from model.inputs import InputError, one_line

PLACES = "places"  # key of the footer: JSON, compressed with zlib, in base64
SIZES = "sizes"  # the same for the column `image`
LENGTH_BYTES = 4  # before each value of a page
_LATENT, _ENTRIES, IMAGE = "latent", "entries", "image"
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class LatentPlaces:
    """firsts: (rows + 1,) the first value of each row, which is one or, of a set, one a view; of each value its height
    and width, 0 where there is none, and the byte that its numbers start at in the file; pages: (2, row groups) the
    first byte and the end of the values of each."""

    firsts: Integers
    heights: NDArray[np.int32]
    widths: NDArray[np.int32]
    starts: Integers
    pages: Integers

    def value(self, row: int, view: int = 0) -> int:
        """Number of the value of a row (and view). Raises IndexError where there is none."""
        value = int(self.firsts[row]) + view
        if value >= self.firsts[row + 1] or not self.heights[value]:
            raise IndexError(value)
        return value

    def shape(self, value: int) -> tuple[int, int, int]:
        """(C, h, w) of a value."""
        return LATENT_CHANNELS, int(self.heights[value]), int(self.widths[value])


@dataclass(frozen=True)
class EntryPlaces:
    """views: (rows + 1,) the first list of each row, which has one or, of a set, one a view; firsts: (lists + 1,) the
    first entry of each list; of each entry its task (index into `tasks`), tokens, and the byte that its embedding
    starts at in the file; width: of the embeddings; pages: as of latents."""

    views: Integers
    firsts: Integers
    tasks: list[str]
    task: NDArray[np.int16]
    tokens: NDArray[np.int32]
    width: int
    starts: Integers
    pages: Integers
    _found: dict[str, NDArray[np.int32]] = field(default_factory=dict)
    _shares: dict[str, float] = field(default_factory=dict)

    def value(self, row: int, task: str, view: int = 0) -> int:
        """Number of the entry of a task. Raises KeyError where there is none, IndexError where no such view is."""
        number = int(self.views[row]) + view
        if number >= self.views[row + 1]:
            raise IndexError(number)
        value = int(self._entries_of(task)[number])
        if value < 0:
            raise KeyError(task)
        return value

    def share(self, task: str) -> float:
        """How much of the shard's bytes the entries of a task are."""
        if task not in self._shares:
            chosen = self.task == (self.tasks.index(task) if task in self.tasks else -1)
            self._shares[task] = float(self.tokens[chosen].sum() / max(1, self.tokens.sum()))
        return self._shares[task]

    def _entries_of(self, task: str) -> NDArray[np.int32]:
        """(lists,) the entry of a task in each list, -1 where there is none; kept, since it is asked for each row."""
        if task not in self._found:
            entries = np.full(len(self.firsts) - 1, -1, np.int32)
            if task in self.tasks:
                chosen = np.flatnonzero(self.task == self.tasks.index(task))[::-1]  # of equal ones the first stays
                entries[np.searchsorted(self.firsts, chosen, side="right") - 1] = chosen
            self._found[task] = entries
        return self._found[task]

    def shape(self, value: int) -> tuple[int, int]:
        """(L, Y) of an entry's embedding."""
        return int(self.tokens[value]), self.width


@dataclass(frozen=True)
class PicturePlaces:
    """firsts: (rows + 1,) the first picture of each row, which has one or, of a set, one a view; of each its bytes, 0
    where there is none, and the byte that it starts at in the file; pages: as of latents."""

    firsts: Integers
    sizes: Integers
    starts: Integers
    pages: Integers

    def value(self, row: int, view: int = 0) -> int:
        """Number of the picture of a row (and view). Raises IndexError where there is none."""
        value = int(self.firsts[row]) + view
        if value >= self.firsts[row + 1] or not self.sizes[value]:
            raise IndexError(value)
        return value


Places = LatentPlaces | EntryPlaces | PicturePlaces


def places_text(table: pa.Table, arrays: Sequence[str]) -> str | None:
    """What the footer of a shard with these columns says of its places; None where they cannot be told.

    arrays: the columns that are stored as bytes.
    """
    # Batches do not copy, and one array could not hold all numbers of a large shard.
    if list(arrays) == [_LATENT] and {"latent_height", "latent_width"} <= set(table.column_names):
        batches = table.select([_LATENT, "latent_height", "latent_width"]).to_batches()
        parts = [_of_latents(*batch.columns) for batch in batches]
    elif list(arrays) == [f"{_ENTRIES}.embedding"]:
        parts = [_of_entries(batch.column(0)) for batch in table.select([_ENTRIES]).to_batches()]
    else:
        return None
    whole = [part for part in parts if part is not None]
    if not whole or len(whole) < len(parts):
        return None
    known: dict[str, Any] = {key: [value for part in whole for value in part[key]] for key in whole[0]}
    if "task" in known:
        widths = {width for width in known["width"] if width} or {0}
        if len(widths) > 1:
            return None
        coded = pa.array(known["task"], pa.string()).dictionary_encode()
        known |= {"tasks": coded.dictionary.to_pylist(), "task": coded.indices.to_pylist(), "width": widths.pop()}
    return _packed(known)


def sizes_text(table: pa.Table, row_groups: Sequence[int]) -> str | None:
    """What the footer of a shard says of the sizes of its pictures; None where it has none, or too many for a page."""
    if IMAGE not in table.column_names:
        return None
    kind = table[IMAGE].type
    if not pa.types.is_binary(kind.value_type if pa.types.is_list(kind) else kind):
        return None
    views: list[int] = []
    sizes: list[int] = []
    for rows, end in zip(row_groups, np.cumsum(row_groups).tolist(), strict=True):
        page = 0
        for chunk in table[IMAGE].slice(end - rows, rows).chunks:
            is_set = pa.types.is_list(chunk.type)
            views += _lengths(chunk).tolist() if is_set else [1] * len(chunk)
            bytes_of = pc.binary_length(chunk.flatten() if is_set else chunk).fill_null(0).to_pylist()
            sizes += bytes_of
            page += sum(bytes_of) + (LENGTH_BYTES + 4) * len(bytes_of)
        if page > MAX_PAGE:
            return None
    return _packed({"views": views, "bytes": sizes})


def _packed(known: dict[str, Any]) -> str:
    return base64.b64encode(zlib.compress(json.dumps(known, separators=(",", ":")).encode(), 9)).decode()


def read_places(metadata: pq.FileMetaData, address: str) -> Places | None:
    """The places of a shard's latents, embeddings or pictures, None where it does not say them. Raises InputError."""
    said = metadata.metadata or {}
    text = said.get(PLACES.encode(), said.get(SIZES.encode()))
    if text is None:
        return None
    try:
        known = json.loads(zlib.decompress(base64.b64decode(text)))
    except (ValueError, zlib.error) as error:
        raise InputError(f"{address}: damaged ({one_line(error, 120)}); delete it and label its group again") from None
    rows = np.concatenate(
        [[0], np.cumsum([metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)])]
    ).astype(np.int64)
    if "bytes" in known:
        firsts, sizes = _firsts(known["views"]), np.array(known["bytes"], np.int64)
        places = _starts(metadata, IMAGE, firsts[rows], np.where(sizes, sizes + LENGTH_BYTES, 0))
        return PicturePlaces(firsts, sizes, *places)
    if "tokens" in known:
        tokens, views, firsts = np.array(known["tokens"], np.int32), *map(_firsts, (known["views"], known["counts"]))
        width = known["width"]
        sizes = tokens.astype(np.int64) * (width * ITEM.itemsize) + LENGTH_BYTES
        starts, pages = _starts(metadata, _ENTRIES, firsts[views[rows]], sizes)
        task = np.array(known["task"], np.int16)
        return EntryPlaces(views, firsts, known["tasks"], task, tokens, width, starts, pages)
    heights, widths = (np.array(known[name], np.int32) for name in ("height", "width"))
    firsts = _firsts(known["views"])
    sizes = LATENT_CHANNELS * ITEM.itemsize * heights.astype(np.int64) * widths
    starts, pages = _starts(metadata, _LATENT, firsts[rows], np.where(sizes, sizes + LENGTH_BYTES, 0))
    return LatentPlaces(firsts, heights, widths, starts, pages)


def _of_latents(latents: pa.Array, heights: pa.Array, widths: pa.Array) -> dict[str, list[Any]] | None:
    views = np.ones(len(latents), np.int64)
    if pa.types.is_list(latents.type.value_type):  # of sets
        counts = [_lengths(column) for column in (latents, heights, widths)]
        if not all(np.array_equal(counts[0], other) for other in counts):
            return None
        views, (latents, heights, widths) = counts[0], (column.flatten() for column in (latents, heights, widths))
    height, width = (column.fill_null(0).to_numpy(zero_copy_only=False) for column in (heights, widths))
    sizes = _lengths(latents)
    is_there = latents.is_valid().to_numpy(zero_copy_only=False)
    if not np.array_equal(sizes, np.where(is_there, LATENT_CHANNELS * height * width, 0)) or not sizes[is_there].all():
        return None
    height, width = (np.where(is_there, side, 0).tolist() for side in (height, width))
    return {"height": height, "width": width, "views": views.tolist()}


def _of_entries(entries: pa.Array) -> dict[str, list[Any]] | None:
    views = np.ones(len(entries), np.int64)
    if pa.types.is_list(entries.type.value_type):  # of sets
        views, entries = _lengths(entries), entries.flatten()
    structs = entries.flatten()
    if structs.null_count or not {"task", "tokens"} <= {field.name for field in structs.type}:
        return None
    task, tokens, embedding = (structs.field(name) for name in ("task", "tokens", "embedding"))
    if task.null_count or tokens.null_count or embedding.null_count:
        return None
    sizes, count = _lengths(embedding), tokens.to_numpy().astype(np.int64)
    width = int(sizes[count > 0][0] // count[count > 0][0]) if (count > 0).any() else 0
    if not np.array_equal(sizes, count * width):
        return None
    return {
        "views": views.tolist(),
        "counts": _lengths(entries).tolist(),
        "tasks": [],
        "task": task.to_pylist(),
        "tokens": count.tolist(),
        "width": [width],
    }


def _starts(metadata: pq.FileMetaData, column: str, bounds: Integers, sizes: Integers) -> tuple[Integers, Integers]:
    """(the byte that each value starts at, first byte and end of the values of each row group).

    bounds: (row groups + 1,) the first value of each row group; sizes: of each value with its length, 0 where it is
    null and has none.
    """
    ends = np.zeros(metadata.num_row_groups, np.int64)
    for group in range(metadata.num_row_groups):
        chunk = _chunk(metadata.row_group(group), column)
        ends[group] = chunk.data_page_offset + chunk.total_compressed_size
    before = np.concatenate([[0], np.cumsum(sizes)])
    counts = np.diff(bounds)
    after = np.repeat(before[bounds[1:]], counts) - before[:-1]  # bytes of the row group from each value on
    whole = before[bounds[1:]] - before[bounds[:-1]]
    return np.repeat(ends, counts) - after + LENGTH_BYTES, np.stack([ends - whole, ends])


def _chunk(group: pq.RowGroupMetaData, column: str) -> pq.ColumnChunkMetaData:
    """The column chunk of `latent` or `image`, or of the embedding within `entries`."""
    for index in range(group.num_columns):
        chunk = group.column(index)
        first, *rest = chunk.path_in_schema.split(".")
        if first == column and (column != _ENTRIES or rest[-1] == "embedding"):
            return chunk
    raise KeyError(column)


def _lengths(array: pa.Array) -> Integers:
    return np.asarray(array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)).astype(np.int64)


def _firsts(counts: Sequence[int]) -> Integers:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
