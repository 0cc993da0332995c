"""Labels that depend on all rows of a dataset, made in the process of the job itself once what they read is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from labeling.dataset import (
    ID_COLUMN,
    Dataset,
    FooterTable,
    IndexLog,
    digest_json,
    expected_recipe,
    fresh_shards,
    groups_of,
    in_parallel,
    write_shard,
)
from labeling.declaration import declare
from labeling.labeler import WholeLabeler
from labeling.results import group_schema
from model.inputs import InputError


def declare_whole(dataset: Dataset, labeler: WholeLabeler, footers: Mapping[str, FooterTable]) -> dict[str, Any]:
    """The content of group.json for such a labeler, of what its columns hold now.

    Raises InputError while a shard that it reads is missing, and for a dataset of sets.
    """
    if dataset.has_sets:
        raise InputError(f"{labeler.group}: rows of {dataset.uri} are view sets, which it does not know")
    shards = dataset.shard_names
    contents: list[Any] = []
    for group in groups_of(sorted(labeler.needs)):
        table = footers[group]
        positions = table.positions(shards)
        missing = int((positions < 0).sum())
        if missing:
            raise InputError(
                f"{labeler.group}: {group} lacks {missing} of {len(shards)} shards, and all are needed; label it first"
            )
        contents.append([group, [digest.hex() if digest else "" for digest in table.kept("content", positions)]])
    removed = {shard: rows for shard in shards if (rows := dataset.removed_rows(shard))}
    labeler.digest_of_rows = digest_json([contents, removed])
    return declare(labeler)


def label_whole(
    dataset: Dataset,
    labeler: WholeLabeler,
    declaration: Mapping[str, Any],
    footers: Mapping[str, FooterTable],
) -> int:
    """Write the shards that are not as declared; how many were written. footers: of the group and of what it reads."""
    group, shards = labeler.group, dataset.shard_names
    if fresh_shards(declaration, shards, footers, group).all():
        return 0
    columns: dict[str, list[str]] = {"images": ["id"]}
    for name in labeler.reads:
        columns.setdefault(name.partition(".")[0], []).append(name.partition(".")[2])

    def read(shard: str) -> pa.Table:
        table = dataset.join(shard, columns)
        removed = np.zeros(len(table), bool)
        removed[dataset.removed_rows(shard)] = True
        return table.rename_columns(["id" if name == ID_COLUMN else name for name in table.column_names]).append_column(
            "removed", pa.array(removed)
        )

    schema, images = group_schema(labeler, sets=False), footers["images"]
    log = IndexLog(dataset.store)

    def write(labeled: tuple[str, pa.Table]) -> None:
        shard, labels = labeled
        more = {"model": [labeler.model] * len(labels), "version": [labeler.version] * len(labels)}
        values = {**more, **{name: labels[name] for name in labels.column_names}}
        table = pa.table([pa.chunked_array(_chunks(values[field.name], field.type)) for field in schema], schema=schema)
        made_of = expected_recipe(declaration, shard, footers)
        assert made_of is not None, "every shard read is there"
        log.add(group, shard, write_shard(dataset.store, group, shard, table, images.row_groups(shard), made_of))

    tables = _Tables(read, shards, dataset.store.parallel)
    labels = zip(shards, labeler.label_tables(tables), strict=True)
    for _ in in_parallel(write, labels, dataset.store.parallel):
        pass
    return len(shards)


@dataclass(frozen=True)
class _Tables:
    """What is read of each shard, anew each time that it is iterated over."""

    read: Callable[[str], pa.Table]
    shards: Sequence[str]
    parallel: int

    def __iter__(self) -> Iterator[pa.Table]:
        return in_parallel(self.read, self.shards, self.parallel)


def _chunks(values: Any, kind: pa.DataType) -> list[pa.Array]:
    return values.cast(kind).chunks if isinstance(values, pa.ChunkedArray) else [pa.array(values, kind)]
