"""Near-duplicates: groups of rows of the whole dataset whose pictures are nearly the same, and which one to keep."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from labeling import labeler
from labeling.labeler import WholeLabeler
from labeling.near_duplicates import group_hashes, group_vectors

HASH, EMBEDDING = "hashes.phash", "embedding.embedding"


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
        """Held are what rows are compared by and some numbers, and the ids of groups that are not whole yet."""
        known, areas, values = [], [], []
        for table in tables:
            column = table[self._column].combine_chunks()
            known.append(column.is_valid().to_numpy(zero_copy_only=False))
            area = _numbers(table["images.width"]) * _numbers(table["images.height"])
            areas.append(np.where(table["removed"].to_numpy(), -1, area))
            if values_here := self._values(column.drop_null()):
                values.append(values_here[0])
        ends = np.cumsum([len(one) for one in known]).tolist()
        rows = np.flatnonzero(np.concatenate(known))
        groups = np.arange(ends[-1])
        if len(rows):
            groups[rows] = rows[self._grouped(values)]
        sizes = np.bincount(groups, minlength=len(groups)).astype(np.int32)
        kept = _largest(groups, np.concatenate(areas))
        names: dict[int, tuple[str, int]] = {}  # first row of a group → its id, and how many rows are still to come
        for end, table, is_known in zip(ends, tables, known, strict=True):
            here = slice(end - len(is_known), end)
            yield pa.table(
                {
                    "id": table["id"],
                    "group": pa.array(_names(table["id"].to_pylist(), groups[here], sizes, names), pa.string()),
                    "rows": sizes[groups[here]],
                    "keep": kept[here],
                    "error": pa.array([None if one else self._reason for one in is_known.tolist()], pa.string()),
                }
            )

    @property
    def _reason(self) -> str:
        return f"no {self._column.partition('.')[0]}: {self._column} is missing"

    def _values(self, present: Any) -> list[NDArray[Any]]:
        """What rows are compared by: (rows, 4) words of hashes, or (rows, width) of embeddings; nothing of no rows."""
        if not len(present):
            return []
        if self.parameters.by == "hash":
            return [np.frombuffer(b"".join(present.to_pylist()), np.uint64).reshape(-1, 4)]
        return [present.flatten().to_numpy(zero_copy_only=False).reshape(len(present), -1)]

    def _grouped(self, values: list[NDArray[Any]]) -> NDArray[np.int64]:
        whole = np.concatenate(values)
        values.clear()
        if self.parameters.by == "hash":
            return group_hashes(whole, self.parameters.distance)
        return group_vectors(whole, self.parameters.similarity)


def _largest(groups: NDArray[np.int64], areas: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(rows,) whether a row's picture is the largest of its group, of equal ones the first."""
    order = np.lexsort((-areas, groups))  # which keeps the order of rows that are equal in both
    largest = np.zeros(len(groups), bool)
    largest[order[np.flatnonzero(np.diff(groups[order], prepend=-1))]] = True
    return largest


def _names(
    ids: Sequence[str],
    groups: NDArray[np.int64],
    sizes: NDArray[np.int32],
    names: dict[int, tuple[str, int]],
) -> list[str]:
    """The id of the first row of each row's group. names: of the groups that were begun before, kept up to date."""
    found = list(ids)
    for place in np.flatnonzero(sizes[groups] > 1).tolist():
        group = int(groups[place])
        name, left = names.pop(group, (ids[place], int(sizes[group])))
        found[place] = name
        if left > 1:
            names[group] = (name, left - 1)
    return found


def _numbers(column: pa.ChunkedArray) -> NDArray[np.int64]:
    return np.asarray(column.fill_null(0).to_numpy(), np.int64)
