"""Where shards and row groups end."""

from __future__ import annotations

from labeling.sources.container import Item
from labeling.sources.cutting import ROW_GROUP_PIXELS, ROW_GROUP_ROWS, cut_row_groups, cut_shards
from labeling.sources.normalize import EncodedImage


def test_row_groups_keep_within_rows_bytes_and_pixels() -> None:
    small, wide = [EncodedImage(b"x", 100, 100)], [EncodedImage(b"x", 8192, 2048)]
    assert cut_row_groups([]) == []
    assert cut_row_groups([small] * (ROW_GROUP_ROWS + 1)) == [ROW_GROUP_ROWS, 1]
    assert cut_row_groups([wide] * 5) == [ROW_GROUP_PIXELS // (8192 * 2048)] * 2 + [1]
    assert cut_row_groups([[EncodedImage(b"x" * (9 << 20), 9, 9)]] * 2) == [1, 1]
    assert cut_row_groups([small] * (ROW_GROUP_ROWS + 1), max_rows=64) == [ROW_GROUP_ROWS + 1]
    assert cut_row_groups([wide * 3, small]) == [1, 1]  # a set of views that is above a limit by itself


def test_shards_keep_within_rows_and_bytes() -> None:
    items = [Item(f"{index}", size, f"{index}") for index, size in enumerate((5, 5, 5, 20, 1))]
    assert [len(shard) for shard in cut_shards(items, 2, 100)] == [2, 2, 1]
    assert [len(shard) for shard in cut_shards(items, 9, 10)] == [2, 1, 1, 1]
