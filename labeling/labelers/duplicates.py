"""Near-duplicates: groups of rows of the whole dataset whose pictures are nearly the same, and which one to keep."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from labeling import labeler
from labeling.labeler import WholeLabeler
from labeling.near_duplicates import Groups, group_hashes, group_vectors, records_of
from labeling.scratch import ScratchRows, ScratchTexts, scratch_array
from model.inputs import InputError

HASH, EMBEDDING = "hashes.phash", "embedding.embedding"
_WORDS = 4  # of 64 bits, in a hash
_BLOCK = 1 << 18  # rows that are looked at together


class DuplicatesLabeler(WholeLabeler):
    """Rows are in one group where a chain of pairs connects them, each of which is near enough.

    `where: duplicates.keep` trains on one picture of each group: the largest, of equal ones the first.
    """

    name = "duplicates"
    version = 1
    schema = pa.schema([("group", pa.string()), ("rows", pa.int32()), ("keep", pa.bool_())])

    class Parameters(labeler.Parameters):
        """by: perceptual hash, or embedding; distance: most of the hash's 256 bits in which two rows of a pair differ;
        similarity: least cosine of their embeddings."""

        by: Literal["hash", "embedding"] = "hash"
        distance: int = Field(56, ge=0, le=128)
        similarity: float = Field(0.95, gt=0, le=1)

    parameters: Parameters

    def __init__(self, group: str, parameters: BaseModel) -> None:
        super().__init__(group, parameters)
        self._column = HASH if self.parameters.by == "hash" else EMBEDDING
        self.reads = (self._column, "images.width", "images.height")

    @property
    def model(self) -> str:
        if self.parameters.by == "hash":
            return f"perceptual hash, at most {self.parameters.distance} bits apart"
        return f"embedding, cosine at least {self.parameters.similarity:g}"

    def label_tables(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """What is known of each row lies in files for the time being, so that memory does not grow with the rows."""
        areas, values = ScratchRows(np.int64, 1), None
        for table in tables:
            column = table[self._column].combine_chunks()
            area = _numbers(table["images.width"]) * _numbers(table["images.height"])
            values = self._append(values, column, len(areas))
            areas.append(np.where(table["removed"].to_numpy(), -1, area))
        rows = len(areas)
        groups = self._grouped(values, rows)
        sizes, kept = _sizes_and_kept(groups, areas)
        names = ScratchTexts(rows)
        start = 0
        for table in tables:
            here = np.arange(start, start + len(table))
            first = groups.first_rows(here)
            is_known = table[self._column].combine_chunks().is_valid().to_pylist()
            yield pa.table(
                {
                    "id": table["id"],
                    "group": pa.array(_names(table["id"].to_pylist(), here, first, sizes[first], names), pa.string()),
                    "rows": sizes[first],
                    "keep": kept[first] == here,
                    "error": pa.array([None if one else self._reason for one in is_known], pa.string()),
                }
            )
            start += len(table)

    @property
    def _reason(self) -> str:
        return f"no {self._column.partition('.')[0]}: {self._column} is missing"

    def _append(self, values: ScratchRows | None, column: pa.Array, start: int) -> ScratchRows | None:
        """Keep what rows are compared by: records of hashes, or embeddings, which are zeros where there are none.

        column: of the rows from `start` on.
        """
        present = column.drop_null()
        if not len(present):
            if values is not None and self.parameters.by == "embedding":
                values.append(np.zeros((len(column), values.width)))
            return values
        there = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
        if self.parameters.by == "hash":
            words = np.frombuffer(b"".join(present.to_pylist()), np.uint64).reshape(-1, _WORDS)
            values = values or ScratchRows(np.uint64, 1 + _WORDS)
            values.append(records_of(start + there, words))
            return values
        vectors = present.flatten().to_numpy(zero_copy_only=False).reshape(len(present), -1)
        if values is None:
            values = ScratchRows(vectors.dtype, vectors.shape[1])
            values.skip(start)
        elif vectors.shape[1] != values.width:
            raise InputError(
                f"{self.group}: {EMBEDDING} has {values.width} numbers in some shards and {vectors.shape[1]} in "
                "others; label embedding again first"
            )
        whole = np.zeros((len(column), values.width), vectors.dtype)
        whole[there] = vectors
        values.append(whole)
        return values

    def _grouped(self, values: ScratchRows | None, rows: int) -> Groups:
        if values is None:
            return Groups(rows)
        if self.parameters.by == "hash":
            return group_hashes(values, rows, self.parameters.distance)
        return group_vectors(values, self.parameters.similarity)


def _sizes_and_kept(groups: Groups, areas: ScratchRows) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """(rows,) of the first row of each group how many rows it has, and its largest picture, of equal ones the first."""
    rows = len(areas)
    sizes, largest, kept = (scratch_array(rows, dtype) for dtype in (np.int32, np.int64, np.int64))
    for start, area in _blocks(areas):
        here = np.arange(start, start + len(area))
        largest[here], kept[here] = -1, rows
    for start, area in _blocks(areas):
        first = groups.first_rows(np.arange(start, start + len(area)))
        np.add.at(sizes, first, 1)
        np.maximum.at(largest, first, area)
    for start, area in _blocks(areas):
        here = np.arange(start, start + len(area))
        first = groups.first_rows(here)
        is_largest = area == largest[first]
        np.minimum.at(kept, first[is_largest], here[is_largest])
    return sizes, kept


def _blocks(areas: ScratchRows) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """The number of a block's first row, and (N,) its areas."""
    start = 0
    for block in areas.blocks(_BLOCK):
        yield start, block[:, 0]
        start += len(block)


def _names(
    ids: Sequence[str],
    rows: NDArray[np.int64],
    first: NDArray[np.int64],
    sizes: NDArray[np.int32],
    names: ScratchTexts,
) -> list[str]:
    """The id of the first row of each row's group. names: of the groups that have begun, kept up to date."""
    found = list(ids)
    for place in np.flatnonzero(sizes > 1).tolist():
        row, group = int(rows[place]), int(first[place])
        if row == group:
            names[row] = ids[place]
        else:
            found[place] = names[group]
    return found


def _numbers(column: pa.ChunkedArray) -> NDArray[np.int64]:
    return np.asarray(column.fill_null(0).to_numpy(), np.int64)
