"""Lists of addresses in Parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from labeling.dataset import Store, digest_json
from labeling.sources.addresses.rows import BadRow, Cut, Row, RowRange
from labeling.sources.facts import rows_of
from model.inputs import InputError, one_line

BATCH_ROWS = 1024  # decoded at once
LONGEST_REASON = 200  # characters


class ParquetList:
    """A list in a Parquet file."""

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name = store, name
        self.address = f"{store.uri}/{name}"

    @cached_property
    def _metadata(self) -> tuple[pa.Schema, list[int], list[list[Any]]]:
        """Schema, rows of each row group, and what tells the content of each row group from another."""
        try:
            with self.store.open(self.name) as opened:
                parquet = pq.ParquetFile(opened)
                metadata = parquet.metadata
                groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
                sizes = [
                    [group.num_rows, *((c.total_compressed_size, c.total_uncompressed_size) for c in _chunks(group))]
                    for group in groups
                ]
                return parquet.schema_arrow, [group.num_rows for group in groups], sizes
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{self.address} cannot be read ({one_line(error)}); is all of it there?") from None

    @property
    def columns(self) -> list[str]:
        return list(self._metadata[0].names)

    @property
    def holds_pictures(self) -> bool:
        return any(_has_bytes(field.type) for field in self._metadata[0])

    def cut(self, first: int, shard_rows: int) -> Cut:
        _, group_rows, sizes = self._metadata
        rows = sum(group_rows)
        digest = digest_json(sizes)
        ranges = [
            RowRange(self.name, start, min(shard_rows, rows - start), digest_json([digest, start]))
            for start in range(first, rows, shard_rows)
        ]
        ends = list(accumulate(group_rows))
        earlier = digest_json(sizes[: ends.index(first) + 1]) if first in ends else ""
        return Cut(ranges, rows, digest, earlier)

    def read(self, ranges: Sequence[RowRange]) -> Iterator[list[Row]]:
        first, end = ranges[0].first, ranges[-1].first + ranges[-1].rows
        groups, skip, start = [], 0, 0
        for index, rows in enumerate(self._metadata[1]):
            if start < end and start + rows > first:
                groups.append(index)
                if len(groups) == 1:
                    skip = first - start
            start += rows
        waiting: list[Row] = []
        left = list(ranges)
        with self.store.open(self.name) as opened:
            # Buffered columns are read on as rows are asked for; else pyarrow holds whole row groups.
            parquet = pq.ParquetFile(opened, buffer_size=1 << 20)
            for batch in self._batches(parquet, groups):
                dropped = min(skip, len(batch))
                skip -= dropped
                waiting += batch[dropped:]
                while left and len(waiting) >= left[0].rows:
                    count = left.pop(0).rows
                    yield waiting[:count]
                    waiting = waiting[count:]
                if not left:
                    return

    def _batches(self, parquet: pq.ParquetFile, groups: Sequence[int]) -> Iterator[list[Row]]:
        """The rows of row groups; those that a damaged one does not give have that as their reason."""
        for index in groups:
            missing = self._metadata[1][index]
            try:
                for batch in parquet.iter_batches(BATCH_ROWS, row_groups=[index]):
                    missing -= batch.num_rows
                    yield list(rows_of(batch))
            except InputError:  # of the store, and no fault of the rows
                raise
            except (pa.ArrowException, OSError, ValueError) as error:
                yield [BadRow(f"cannot be read from its table ({one_line(error, LONGEST_REASON)})")] * missing


def _chunks(group: Any) -> Iterator[Any]:
    for column in range(group.num_columns):
        yield group.column(column)


def _has_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(_has_bytes(field.type) for field in kind)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _has_bytes(kind.value_type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))
