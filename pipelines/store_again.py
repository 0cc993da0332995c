"""Storing shards as they would be stored now, without computing a label: their values and recipes stay."""

from __future__ import annotations

from collections.abc import Sequence

from labeling.dataset import Dataset, in_parallel, is_stored_as_now, lease, write_shard
from model.inputs import InputError, nearest

_AT_A_TIME = 4  # shards in memory


def store_again(dataset_uri: str, groups: Sequence[str], shards: tuple[int, int] | None = None) -> dict[str, int]:
    """Group → how many of its shards had no checksums, or lists of float16, and have now what new shards have.

    groups: names; empty for every group. shards: [first, end) of the dataset's, in order; all by default. Their content
    stays what it is, so nothing becomes stale and runs go on. Raises InputError for a group that there is not, while a
    job works on one of them, and for a damaged shard, which it leaves as it is.
    """
    dataset = Dataset.open(dataset_uri)
    there = dataset.groups()
    if unknown := [group for group in groups if group not in there]:
        hint = nearest(unknown[0], there) or f"; there are {', '.join(there)}"
        raise InputError(f"{dataset_uri}: no group {unknown[0]!r}{hint}")
    part = slice(*(shards or (None,)))
    stored: dict[str, int] = {}
    for group in groups or there:
        entries = dataset.shard_entries(group)
        present = [shard for shard in dataset.shard_names[part] if shard in entries]

        def store(shard: str, group: str = group) -> bool:
            if is_stored_as_now(dataset.store, group, shard):
                return False
            footer = dataset.footer(group, shard)
            table = dataset.read(group, shard)
            write_shard(dataset.store, group, shard, table, footer.row_groups, footer.recipe, footer.content)
            return True

        with lease(dataset.store, [group], shards):
            stored[group] = sum(in_parallel(store, present, _AT_A_TIME))
            if stored[group]:
                dataset.save_index(group, dataset.footers(group, shards=shards), shards)
    return stored
