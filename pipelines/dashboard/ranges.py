"""Ranges of shards: the partitions that a large dataset is shown and rebuilt in."""

from __future__ import annotations

from dataclasses import dataclass

FEW_SHARDS = 10  # fewer are one range: Dagster shows what is stale best where there are no partitions
MOST_RANGES = 99  # Dagster compares no data versions of what depends on a hundred partitions or more


@dataclass(frozen=True)
class Range:
    """Shards [first, end) of a dataset. key: "000010-000019", the same while the dataset grows within its size."""

    key: str
    first: int
    end: int


def cut_ranges(shards: int) -> list[Range]:
    """Ranges of 1, 10, 100, … shards, whatever makes at most MOST_RANGES of them; of few shards, one."""
    if 0 < shards < FEW_SHARDS:
        return [Range("all", 0, shards)]
    size = 1
    while shards > MOST_RANGES * size:
        size *= 10
    found = []
    for first in range(0, shards, size):
        key = f"{first:06d}" if size == 1 else f"{first:06d}-{first + size - 1:06d}"
        found.append(Range(key, first, min(first + size, shards)))
    return found
