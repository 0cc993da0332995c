"""Where a dataset is cut: the listing of a source into shards, the rows of a shard into row groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labeling.sources.normalize import EncodedImage

SHARD_ROWS = 1024
SHARD_BYTES = 256 << 20
ROW_GROUP_ROWS = 16
ROW_GROUP_BYTES = 16 << 20
ROW_GROUP_PIXELS = 32 << 20  # 96 MB decoded: what a labeling job holds of one row group


def cut_shards(sizes: NDArray[np.int64], max_rows: int, max_bytes: int) -> list[tuple[int, int]]:
    """Cut a sorted listing into shards, as [first, end) of its items: at most `max_rows` items and `max_bytes` bytes.

    sizes: (items,) in bytes. An item that is above the limit by itself has a shard of its own.
    """
    ends = np.cumsum(sizes, dtype=np.int64)
    shards: list[tuple[int, int]] = []
    first = 0
    while first < len(sizes):
        before = int(ends[first - 1]) if first else 0
        fitting = int(np.searchsorted(ends, before + max_bytes, side="right"))
        end = max(first + 1, min(fitting, first + max_rows))
        shards.append((first, end))
        first = end
    return shards


def join_shards(shards: Sequence[tuple[int, int]], units: Sequence[Any], most: int) -> list[list[int]]:
    """Numbers of the shards that are read together, since the last item of one and the first of the next share a unit.

    units: of each item what comes at the price of one (file and row group), None of one that is read by itself.
    """
    runs: list[list[int]] = []
    for number, (first, _) in enumerate(shards):
        shares = first > 0 and units[first] is not None and units[first] == units[first - 1]
        if runs and shares and len(runs[-1]) < most:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs


def cut_row_groups(rows: Sequence[Sequence[EncodedImage]], max_rows: int = ROW_GROUP_ROWS) -> list[int]:
    """Rows of each row group, so that none has more rows, encoded bytes or pixels than the limits above.

    rows: the images of each row; a row that is above a limit by itself has a row group of its own.
    """
    groups: list[int] = []
    size = pixels = 0
    for images in rows:
        row_size = sum(len(image.encoded) for image in images)
        row_pixels = sum(image.width * image.height for image in images)
        full = groups and (
            groups[-1] >= max_rows or size + row_size > ROW_GROUP_BYTES or pixels + row_pixels > ROW_GROUP_PIXELS
        )
        if full or not groups:
            groups.append(0)
            size = pixels = 0
        groups[-1] += 1
        size += row_size
        pixels += row_pixels
    return groups
