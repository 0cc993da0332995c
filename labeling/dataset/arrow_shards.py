"""A group's shards as one Arrow dataset, whose files are read as far as somebody asks for rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.dataset as arrow
from numpy.typing import NDArray
from pyarrow.fs import LocalFileSystem

from labeling.dataset.dataset import Dataset, ShardInfo
from labeling.dataset.shards import shard_file
from model.inputs import InputError

MAX_FILLER = 1 << 16  # rows of nulls in one piece, in the place of shards that are missing


class Files(arrow.FileSystemDataset):
    """Files whose footers are held no longer than they are read: 15 kB a file of two columns, of 10⁵ files too many."""

    def scanner(self, **options: Any) -> arrow.Scanner:
        """See arrow.Dataset."""
        return super().scanner(**{"cache_metadata": False, **options})


class FilesAndNulls(arrow.UnionDataset):
    """As `Files`, between rows of nulls."""

    def scanner(self, **options: Any) -> arrow.Scanner:
        """See arrow.Dataset."""
        return super().scanner(**{"cache_metadata": False, **options})


@dataclass(frozen=True)
class Places:
    """Where each shard of a dataset is among the footers of a group.

    positions: (shards,) −1 where there is none; rows, sizes: of each footer's file.
    """

    positions: NDArray[Any]
    rows: NDArray[Any]
    sizes: NDArray[Any]


def arrow_shards(
    dataset: Dataset, group: str, schema: pa.Schema, places: Places, first: int, end: int | None, is_aligned: bool
) -> arrow.Dataset:
    """The rows of a group's shards [first, end), in order.

    is_aligned: whether it has a row for each of the dataset's; then there are nulls for shards that are missing.
    Raises InputError for a shard with other rows.
    """
    filesystem, root = dataset.store.arrow()
    # Arrow would hold files twice, as they are and as rows; of a bucket it does, to read them in few requests.
    ahead = not isinstance(filesystem, LocalFileSystem)
    options = arrow.ParquetFragmentScanOptions(pre_buffer=ahead, use_buffered_stream=not ahead)
    kind = arrow.ParquetFileFormat(default_fragment_scan_options=options)
    parts: list[arrow.Dataset] = []
    fragments: list[Any] = []
    lacking = 0  # rows

    def flush() -> None:
        nonlocal lacking
        if fragments:
            parts.append(Files(list(fragments), schema, kind, filesystem))
            fragments.clear()
        for start in range(0, lacking, MAX_FILLER):
            parts.append(arrow.InMemoryDataset(_nulls(schema, min(MAX_FILLER, lacking - start))))
        lacking = 0

    shards: Sequence[ShardInfo] = dataset.shards[first:end]
    for shard, position in zip(shards, places.positions[first:end].tolist(), strict=True):
        if position < 0:
            if is_aligned:
                if fragments:
                    flush()
                lacking += shard.rows
            continue
        if is_aligned and places.rows[position] != shard.rows:
            raise InputError(f"{dataset.uri}/{group}/{shard.name}: other rows than the dataset's; label it again")
        if lacking:
            flush()
        size = int(places.sizes[position])  # which saves a request where it is known
        path = f"{root}/{shard_file(group, shard.name)}"
        fragments.append(kind.make_fragment(path, filesystem, file_size=size if ahead and size > 0 else None))
    flush()
    if not parts:
        return arrow.InMemoryDataset(schema.empty_table())
    return parts[0] if len(parts) == 1 else FilesAndNulls(schema, parts)


def _nulls(schema: pa.Schema, rows: int) -> pa.Table:
    return pa.table([pa.nulls(rows, field.type) for field in schema], schema=schema)
