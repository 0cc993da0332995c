"""Where a dataset is cut: the listing of a source into shards, the rows of a shard into row groups."""

from __future__ import annotations

from collections.abc import Sequence

from labeling.sources.container import Item
from labeling.sources.normalize import EncodedImage

SHARD_ROWS = 1024
SHARD_BYTES = 256 << 20
ROW_GROUP_ROWS = 16
ROW_GROUP_BYTES = 16 << 20
ROW_GROUP_PIXELS = 32 << 20  # 96 MB decoded: what a labeling job holds of one row group


def cut_shards(items: Sequence[Item], max_rows: int, max_bytes: int) -> list[list[Item]]:
    """Cut a sorted listing into the items of each shard: at most `max_rows` items and `max_bytes` bytes."""
    shards: list[list[Item]] = []
    size = 0
    for item in items:
        if not shards or len(shards[-1]) >= max_rows or size + item.size > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(item)
        size += item.size
    return shards


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
