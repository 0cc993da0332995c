"""The writer of shards: the finished columns of a shard come together in one process, which writes it."""

from __future__ import annotations

from collections.abc import Mapping
from threading import Lock
from typing import Any

import pyarrow as pa

from labeling.dataset import (
    ID_COLUMN,
    IMAGES,
    Dataset,
    Footer,
    Footers,
    FooterTable,
    IndexLog,
    digest_column,
    digest_json,
    recipe,
    write_shard,
)
from labeling.labeler import Labeler
from labeling.plan import Wave
from labeling.results import group_schema
from pipelines.labeling_job.parts import Part
from pipelines.labeling_job.tables import from_bytes

Declarations = Mapping[str, Mapping[str, Any]]  # group → what it declares, each group after those that it reads


class ShardWriter:
    """An actor that collects the parts of shards and writes each shard when its last part has come.

    Several threads call it: while one waits for the disk with a shard, the parts of others come.
    """

    def __init__(self, dataset: Dataset, declarations: Declarations) -> None:
        self.dataset = dataset
        self.declarations = declarations
        self.log = IndexLog(dataset.store)
        self.parts: dict[str, dict[int, Mapping[str, bytes]]] = {}  # shard → first row group → columns by group
        self.lock = Lock()  # of the parts and the log

    def add(self, part: Part, tables: Mapping[str, bytes]) -> bool:
        """Take the columns of a part, by group; those of a whole shard are written. Whether they were.

        A part may come twice, from a process that was lost after it had sent it.
        """
        with self.lock:
            parts = self.parts.setdefault(part.shard, {})
            parts[part.first] = tables
            tables_of = [parts[first] for first in sorted(parts)]
            if sum(from_bytes(tables[part.groups[0]]).num_rows for tables in tables_of) < sum(part.row_groups):
                return False
            del self.parts[part.shard]
        digests = dict(part.digests)
        for group in part.groups:
            table = pa.concat_tables([from_bytes(tables[group]) for tables in tables_of])
            footer = write_group(self.dataset, self.declarations[group], group, part, table, digests)
            with self.lock:
                self.log.add(group, part.shard, footer)
            digests |= column_digests(group, footer)
        return True


def write_group(
    dataset: Dataset,
    declaration: Mapping[str, Any],
    group: str,
    part: Part,
    table: pa.Table,
    digests: Mapping[str, str],
) -> Footer:
    """Write one shard of a group; its footer.

    digests: of the columns that it was made of. Where rows in error were tried again in vain, the file stays as it is,
    unless other rows are to be labeled now.
    """
    made_of = recipe(declaration, {column: digests[column] for column in (ID_COLUMN, *declaration["reads"])})
    if part.only_errors:
        footer = dataset.footer(group, part.shard)
        content = digest_json({name: digest_column(table[name]) for name in table.column_names})
        if (footer.recipe, footer.content) == (made_of, content):
            return footer
    return write_shard(dataset.store, group, part.shard, table, part.row_groups, made_of)


def column_digests(group: str, footer: Footer) -> dict[str, str]:
    """The digests of a shard's columns, as "group.column"."""
    return {f"{group}.{name}": digest for name, digest in footer.columns.items()}


def write_empty_shards(
    dataset: Dataset, wave: Wave, labelers: Mapping[str, Labeler], declarations: Declarations, footers: Footers
) -> None:
    """Write the shards of a wave that have no row, every file of theirs being rejected."""
    images = FooterTable.of(footers[IMAGES])
    for shard, groups in wave.work.items():
        if images.row_groups(shard):
            continue
        digests: dict[str, str] = {}
        part = Part(shard, 0, 0, [], groups, digests)
        for group in groups:
            for column in (ID_COLUMN, *declarations[group]["reads"]):
                read, _, name = column.partition(".")
                if column not in digests:
                    digests[column] = footers[read][shard].columns[name]
            table = group_schema(labelers[group], dataset.has_sets).empty_table()
            footer = write_group(dataset, declarations[group], group, part, table, digests)
            digests |= column_digests(group, footer)
