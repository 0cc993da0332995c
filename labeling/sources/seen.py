"""What a dataset knows of the items that it was made from: by it a later ingest sees what is new, changed or gone.

`items/` has a file for each shard of images, with a row for each item that an ingest looked at. It is no column group.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from labeling.dataset import IMAGES, REJECTED, Dataset, ShardInfo, shard_file, write_shard
from labeling.sources.listing import Listing

ITEMS = "items"
SEEN_SCHEMA = pa.schema(
    [
        ("name", pa.string()),  # as in images.source
        ("file", pa.string()),  # the archive or table that it lies in, null for a file of its own
        ("size", pa.int64()),  # as the listing had it; null: not known
        ("tag", pa.string()),  # likewise; null in shards from before it was kept
        ("id", pa.string()),  # digest of its bytes, null where they could not be read
        ("said", pa.string()),  # digest of what was said of it
        ("taken", pa.bool_()),  # whether it is a row of images; those are in the order of the rows
    ]
)
_THREADS = 32


def write_seen(dataset: Dataset, shard: str, table: pa.Table, shard_recipe: str) -> None:
    """Write the items of a shard, sorted as they were read."""
    write_shard(dataset.store, ITEMS, shard, table, [table.num_rows] if table.num_rows else [], shard_recipe)


def read_seen(dataset: Dataset, shard: str) -> pa.Table:
    """The items of a shard (SEEN_SCHEMA); of one from before they were kept, what its other files tell."""
    try:
        return dataset.read(ITEMS, shard)
    except FileNotFoundError:
        images = dataset.read(IMAGES, shard, ["source", "id"])
        rows = [{"name": row["source"], "id": row["id"], "taken": True} for row in images.to_pylist()]
        for row in dataset.read(REJECTED, shard).to_pylist() if dataset.has_shard(REJECTED, shard) else ():
            rows.append({"name": row["source"], "size": row.get("size"), "taken": False})
        return pa.Table.from_pylist(rows, SEEN_SCHEMA)


def has_items(dataset: Dataset, shard: str) -> bool:
    """Whether the items of a shard were kept."""
    return dataset.store.exists(shard_file(ITEMS, shard))


@dataclass(frozen=True)
class SeenItems:
    """Items of some shards: SEEN_SCHEMA with `shard` (index into shards) and `row` (in the shard, of a taken one)."""

    shards: Sequence[str]
    table: pa.Table

    @classmethod
    def read(cls, dataset: Dataset, shards: Sequence[ShardInfo]) -> SeenItems:
        """Read the items of these shards of a dataset."""
        names = [shard.name for shard in shards]

        def load(number: int) -> pa.Table:
            table = read_seen(dataset, names[number])
            taken = table["taken"].combine_chunks()
            row = pc.subtract(pc.cumulative_sum(taken.cast(pa.int32())), pa.scalar(1, pa.int32()))
            table = table.append_column("shard", pa.array(np.full(len(table), number, np.int32)))
            return table.append_column("row", pc.if_else(taken, row, pa.scalar(None, pa.int32())))

        with ThreadPoolExecutor(_THREADS) as pool:
            parts = list(pool.map(load, range(len(names))))
        fields = [*SEEN_SCHEMA, pa.field("shard", pa.int32()), pa.field("row", pa.int32())]
        return cls(names, pa.concat_tables([pa.schema(fields).empty_table(), *parts]).combine_chunks())

    @cached_property
    def packed_tags(self) -> dict[str, str]:
        """Archive or table → the tag it had; without those of which items were seen at different times."""
        packed = self.table.filter(pc.is_valid(self.table["file"]))
        tags = pc.list_element(pc.split_pattern(packed["tag"], "+", max_splits=1), 0)
        pairs = pa.table({"file": packed["file"], "tag": tags}).group_by(["file", "tag"]).aggregate([])
        tag_of: dict[str, str] = {}
        doubtful = set()
        for row in pairs.to_pylist():
            if row["tag"] is None or tag_of.setdefault(row["file"], row["tag"]) != row["tag"]:
                doubtful.add(row["file"])
        return {file: tag for file, tag in tag_of.items() if file not in doubtful}

    def compare(self, listing: Listing) -> Comparison:
        """What of a listing is new, and what of the items seen may have changed or is gone."""
        items = listing.items
        at = pc.index_in(items["name"], value_set=self.table["name"])
        seen = self.table.take(at)
        is_new = pc.is_null(at)
        same_tag = pc.equal(pc.fill_null(seen["tag"], ""), items["tag"])
        same_size = pc.equal(pc.fill_null(seen["size"], -1), items["size"])
        has_tag = pc.is_valid(seen["tag"])
        taken = pc.fill_null(seen["taken"], False)
        differs = pc.if_else(has_tag, pc.invert(pc.and_(same_tag, same_size)), pc.invert(same_size))
        differs = pc.if_else(pc.and_(pc.invert(has_tag), pc.is_null(seen["size"])), False, differs)
        again = pc.and_(pc.and_(pc.invert(is_new), pc.invert(taken)), differs)
        maybe = pc.and_(pc.and_(taken, has_tag), differs)
        locations = seen.select(["shard", "row", "id", "said"]).filter(maybe)
        candidates = items.filter(maybe)
        for name in ("shard", "row"):
            candidates = candidates.append_column(name, locations[name])
        return Comparison(
            new=items.filter(pc.or_(is_new, again)),
            again=items["name"].filter(again).combine_chunks(),
            candidates=candidates,
            gone=self._gone(listing),
            there=self._there(listing),
        )

    def _there(self, listing: Listing) -> pa.Array:
        """(items seen,) which of them the source still has; what could not be looked into is taken to be there."""
        mask = pc.is_in(self.table["name"], value_set=listing.items["name"])
        kept = pa.array([*listing.unchanged, *(trouble.name for trouble in listing.troubles)], pa.string())
        mask = pc.or_(mask, pc.fill_null(pc.is_in(self.table["file"], value_set=kept), False))
        folders = [trouble.name for trouble in listing.troubles if trouble.reason.startswith("folder")]
        for folder in folders:
            mask = pc.or_(mask, pc.starts_with(self.table["name"], f"{folder}/"))
        return mask

    def _gone(self, listing: Listing) -> pa.Table:
        gone = pc.and_(self.table["taken"], pc.invert(self._there(listing)))
        return self.table.select(["name", "id", "shard", "row"]).filter(gone)


@dataclass(frozen=True)
class Comparison:
    """A listing beside what was seen.

    new: items to ingest (ITEM_SCHEMA); again: names of those that were rejected as they were before; candidates:
    items with `shard` and `row` that may have changed, which only reading them tells; gone: name, id, shard and row
    of taken items that the source has no more; there: (items seen,) whether the source still has each.
    """

    new: pa.Table
    again: pa.Array
    candidates: pa.Table
    gone: pa.Table
    there: pa.Array
