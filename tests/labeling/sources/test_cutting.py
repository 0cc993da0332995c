"""Where shards and row groups end."""

from __future__ import annotations

import numpy as np

from labeling.sources.cutting import ROW_GROUP_PIXELS, ROW_GROUP_ROWS, cut_row_groups, cut_shards, join_shards
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
    sizes = np.array([5, 5, 5, 20, 1])
    assert cut_shards(sizes, 2, 100) == [(0, 2), (2, 4), (4, 5)]
    assert cut_shards(sizes, 9, 10) == [(0, 2), (2, 3), (3, 4), (4, 5)]
    assert cut_shards(sizes[:0], 9, 10) == []


def test_shards_of_one_row_group_are_read_together() -> None:
    units = ["a", "a", "a", "b", "b", None, None]
    assert join_shards([(0, 2), (2, 4), (4, 5), (5, 6), (6, 7)], units, 9) == [[0, 1, 2], [3], [4]]
    assert join_shards([(0, 1), (1, 2), (2, 3)], units, 2) == [[0, 1], [2]]
