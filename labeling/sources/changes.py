"""Items that have changed at their source since they were ingested: found by reading them again, and taken over."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from labeling.dataset import IMAGE_SCHEMA, IMAGES, REJECTED, REJECTED_SCHEMA, Dataset, ShardInfo, write_shard
from labeling.sources.ingest import Ingestion, Looked, write_pictures
from labeling.sources.items import ITEM_SCHEMA, items_of
from labeling.sources.seen import ITEMS, SEEN_SCHEMA, has_items, read_seen, write_seen


@dataclass
class Changes:
    """Items of a shard that differ from what was ingested: name → id of the bytes now, "" where they are no picture."""

    shard: str
    changed: dict[str, str] = dataclasses.field(default_factory=dict)


def find_changes(ingestion: Ingestion, shard: str, candidates: pa.Table) -> Changes:
    """Read items of a shard again. Those that are the same, as after a copy, keep their new tags.

    candidates: ITEM_SCHEMA.
    """
    seen = {row["name"]: row for row in read_seen(ingestion.dataset, shard).to_pylist()}
    changes = Changes(shard)
    touched = False
    for one in _look(ingestion, candidates):
        before = seen[one.item.name]
        if one.row is None or any(one.seen.get(key) != before[key] for key in ("id", "said")):
            changes.changed[one.item.name] = one.row["id"] if one.row else ""
        else:
            before.update(size=one.item.size, tag=one.item.tag)
            touched = True
    if touched:
        _write_seen(ingestion.dataset, shard, list(seen.values()))
    return changes


def replace_rows(ingestion: Ingestion, shard: str, items: pa.Table, taken_ids: Collection[str]) -> int:
    """Replace rows of a shard by what their items are now; how many were.

    A row whose item is no picture any more, or equals another row (taken_ids), stays as it was, and rejected/ says so.
    items: ITEM_SCHEMA.
    """
    dataset = ingestion.dataset
    images = dataset.read(IMAGES, shard)
    for name in IMAGE_SCHEMA.names:
        if name not in images.column_names:  # of a shard from before there was this column
            field = IMAGE_SCHEMA.field(name)
            images = images.append_column(field, pa.nulls(images.num_rows, field.type))
    images = images.select(IMAGE_SCHEMA.names)
    seen = {row["name"]: row for row in read_seen(dataset, shard).to_pylist()}
    rejected = {row["source"]: row for row in dataset.read(REJECTED, shard).to_pylist()}
    row_of = {name: row for row, name in enumerate(images["source"].to_pylist())}
    own_ids = {name: seen[name]["id"] for name in row_of}
    order = list(range(images.num_rows))
    rows: list[dict[str, Any]] = []
    for one in _look(ingestion, items):
        name = one.item.name
        reason = one.reason
        others = {identity for other, identity in own_ids.items() if other != name}
        if one.row and one.row["id"] != own_ids[name] and one.row["id"] in others.union(taken_ids):
            reason = f"in the dataset already, as {one.row['id']}"
        seen[name].update(size=one.item.size, tag=one.item.tag)
        rejected.pop(name, None)
        if reason or one.row is None:
            reason = f"changed at the source: {reason}; its row is as it was"
            rejected[name] = {"source": name, "size": one.item.size, "reason": reason}
            continue
        own_ids[name] = one.row["id"]
        seen[name].update(id=one.seen["id"], said=one.seen["said"])
        order[row_of[name]] = images.num_rows + len(rows)
        rows.append(one.row)
    images = pa.concat_tables([images, pa.Table.from_pylist(rows, IMAGE_SCHEMA)]).take(pa.array(order, pa.int64()))
    shard_recipe = dataset.footer(IMAGES, shard).recipe
    # The items last: until they are there an update that was killed finds the same changes again.
    write_pictures(dataset, shard, images, shard_recipe)
    reasons = pa.Table.from_pylist(list(rejected.values()), REJECTED_SCHEMA)
    write_shard(dataset.store, REJECTED, shard, reasons, [reasons.num_rows], shard_recipe)
    write_seen(dataset, shard, pa.Table.from_pylist(list(seen.values()), SEEN_SCHEMA), shard_recipe)
    return len(rows)


def forget_rejected(dataset: Dataset, shards: Sequence[ShardInfo], names: pa.Array) -> None:
    """Remove items that were looked at again from what earlier shards say of rejected ones."""
    gone_names = set(names.to_pylist())
    for shard in shards if gone_names else ():
        rejected = dataset.read(REJECTED, shard.name)
        left = rejected.filter(
            pa.array([name not in gone_names for name in rejected["source"].to_pylist()], pa.bool_())
        )
        if left.num_rows < rejected.num_rows:
            shard_recipe = dataset.footer(REJECTED, shard.name).recipe
            write_shard(dataset.store, REJECTED, shard.name, left, [left.num_rows], shard_recipe)
            if has_items(dataset, shard.name):
                rows = read_seen(dataset, shard.name).to_pylist()
                _write_seen(dataset, shard.name, [row for row in rows if row["taken"] or row["name"] not in gone_names])


def _look(ingestion: Ingestion, items: pa.Table) -> list[Looked]:
    wanted = items_of(items.select(ITEM_SCHEMA.names))
    order = {id(item): number for number, item in enumerate(wanted)}
    looked = ingestion.look(ingestion.source.read(wanted))
    return sorted(looked, key=lambda one: order[id(one.item)])


def _write_seen(dataset: Dataset, shard: str, rows: list[dict[str, Any]]) -> None:
    shard_recipe = dataset.footer(ITEMS, shard).recipe
    write_seen(dataset, shard, pa.Table.from_pylist(rows, SEEN_SCHEMA), shard_recipe)
