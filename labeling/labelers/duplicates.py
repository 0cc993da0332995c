"""Near-duplicates: groups of rows of the whole dataset whose pictures are nearly the same, and which one to keep."""

from __future__ import annotations

from collections.abc import Sequence
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

    def label_tables(self, tables: Sequence[pa.Table]) -> list[pa.Table]:
        ids = pa.chunked_array([table["id"].combine_chunks() for table in tables], pa.string()).combine_chunks()
        values = [table[self._column].combine_chunks() for table in tables]
        areas = np.concatenate([_numbers(t["images.width"]) * _numbers(t["images.height"]) for t in tables])
        known = np.concatenate([value.is_valid().to_numpy(zero_copy_only=False) for value in values])
        rows = np.flatnonzero(known)
        groups = np.arange(len(ids))
        if len(rows):
            groups[rows] = rows[self._grouped(values)]
        sizes = np.bincount(groups, minlength=len(ids))
        removed = np.concatenate([table["removed"].to_numpy() for table in tables])
        areas[removed] = -1
        # Rows are sorted by group, then by area from the largest, then by number.
        order = np.lexsort((np.arange(len(ids)), -areas, groups))
        kept = np.zeros(len(ids), bool)
        kept[order[np.flatnonzero(np.diff(groups[order], prepend=-1))]] = True
        reason = f"no {self._column.partition('.')[0]}: {self._column} is missing"
        table = pa.table(
            {
                "group": ids.take(pa.array(groups)),
                "rows": pa.array(sizes[groups], pa.int32()),
                "keep": pa.array(kept),
                "error": pa.array([None if one else reason for one in known.tolist()], pa.string()),
            }
        )
        ends = np.cumsum([len(value) for value in values]).tolist()
        return [table.slice(end - len(value), len(value)) for end, value in zip(ends, values, strict=True)]

    def _grouped(self, values: Sequence[Any]) -> NDArray[np.int64]:
        present = [value.drop_null() for value in values]
        if self.parameters.by == "hash":
            words = np.concatenate([np.frombuffer(b"".join(value.to_pylist()), np.uint64) for value in present])
            return group_hashes(words.reshape(-1, 4), self.parameters.distance)
        flat = [value.flatten().to_numpy(zero_copy_only=False) for value in present if len(value)]
        width = len(flat[0]) // len(next(value for value in present if len(value)))
        return group_vectors(np.concatenate(flat).reshape(-1, width), self.parameters.similarity)


def _numbers(column: pa.ChunkedArray) -> NDArray[np.int64]:
    return np.asarray(column.fill_null(0).to_numpy(), np.int64)
