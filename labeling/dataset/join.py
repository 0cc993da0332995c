"""Reading several groups of a shard side by side: the same rows in the same order, so a join is a zip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from labeling.dataset.arrays import with_lists
from labeling.dataset.checksums import changed_shard, open_parquet, read_verified
from labeling.dataset.images import IMAGES
from labeling.dataset.shards import row_groups_of, shard_file
from labeling.dataset.storage import Store
from model.inputs import InputError

Columns = Mapping[str, Sequence[str] | None]  # group → its columns, all of them where None


def read_columns(
    store: Store,
    group: str,
    shard: str,
    columns: Sequence[str] | None = None,
    row_groups: Sequence[int] | None = None,
    content: str | None = None,
) -> pa.Table:
    """Columns of a shard (all by default), of some of its row groups (all by default).

    content: what the footer of the file has to say, else InputError; None for any.
    """
    name = shard_file(group, shard)
    with store.open(name) as file, store.explained(name):
        parquet = open_parquet(file)
        if content is not None and (parquet.metadata.metadata or {}).get(b"content") != content.encode():
            raise changed_shard(f"{store.uri}/{name}")
        return _read(parquet, columns, row_groups, f"{store.uri}/{name}", bool(store.gap))


def join_groups(
    store: Store, shard: str, columns: Columns, row_groups: Sequence[int] | None = None, skip_missing: bool = False
) -> pa.Table:
    """Rows of several groups of a shard, as a table with the columns "group.column".

    row_groups: numbers of the row groups to read, all by default. skip_missing: leave out a group that lacks the shard
    or has other rows there than `images`; otherwise raises FileNotFoundError for the first and InputError for the
    second. Rows are compared by their row groups, and by their ids where the ids of both groups are read.
    """
    by_column: dict[str, pa.ChunkedArray] = {}
    boundaries: list[int] | None = None
    for group in sorted(columns, key=lambda group: (group != IMAGES, group)):
        try:
            name = shard_file(group, shard)
            with store.open(name) as file, store.explained(name):
                parquet = open_parquet(file)
                table = _read(parquet, columns[group], row_groups, f"{store.uri}/{name}", bool(store.gap))
                own = row_groups_of(parquet.metadata)
        except FileNotFoundError:
            if skip_missing:
                continue
            raise
        known = by_column.get(f"{IMAGES}.id")
        ids = table["id"] if "id" in table.column_names else known
        if (boundaries is not None and own != boundaries) or (known is not None and ids != known):
            if skip_missing:
                continue
            raise InputError(f"{store.uri}/{group}/{shard}: other rows than the other groups'; label it again")
        boundaries = own
        by_column |= {f"{group}.{name}": table[name] for name in table.column_names}
    return pa.table(by_column)


def _read(
    parquet: pq.ParquetFile, columns: Sequence[str] | None, row_groups: Sequence[int] | None, address: str, far: bool
) -> pa.Table:
    return with_lists(read_verified(parquet, columns, row_groups, address, far), parquet.metadata.metadata)
