"""Ranges of shards: the partitions in which a large dataset is shown and rebuilt."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.dashboard.dagster_internals import UNCOMPARED_PARTITIONS

FEW_SHARDS = 10  # fewer are one range: Dagster shows what is stale best where there are no partitions
MAX_PARTITIONS = UNCOMPARED_PARTITIONS - 1


@dataclass(frozen=True)
class ShardRange:
    """Shards [first, end) of a dataset. key: the partition's, as "000010-000019"; it stays when the dataset grows."""

    key: str
    first: int
    end: int


def shard_ranges(shards: int) -> list[ShardRange]:
    """Cut a number of shards into ranges of 1, 10, 100, … shards: the smallest that give at most MAX_PARTITIONS.

    Fewer shards than FEW_SHARDS are one range.
    """
    if 0 < shards < FEW_SHARDS:
        return [ShardRange("all", 0, shards)]
    size = 1
    while shards > MAX_PARTITIONS * size:
        size *= 10
    ranges = []
    for first in range(0, shards, size):
        key = f"{first:06d}" if size == 1 else f"{first:06d}-{first + size - 1:06d}"
        ranges.append(ShardRange(key, first, min(first + size, shards)))
    return ranges
