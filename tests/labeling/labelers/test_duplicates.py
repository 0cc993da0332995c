"""Labels of near-duplicates over shards that are read one after the other."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from labeling.registry import load_labeler

ROWS, SHARDS = 40, 6


class Shards:
    """Hashes of six pictures in turn, some of them missing or removed; what was read and is still held is counted."""

    def __init__(self) -> None:
        self.held: list[Any] = []
        self.most = 0

    def __iter__(self) -> Iterator[pa.Table]:
        random = np.random.default_rng(0)
        kinds = [random.bytes(32) for _ in range(6)]
        for shard in range(SHARDS):
            rows = range(shard * ROWS, shard * ROWS + ROWS)
            table = pa.table(
                {
                    "id": [f"row {row}" for row in rows],
                    "hashes.phash": pa.array([None if row % 7 == 0 else kinds[row % 6] for row in rows], pa.binary()),
                    "images.width": pa.array([10 + row % 5 for row in rows], pa.int32()),
                    "images.height": pa.array([10] * ROWS, pa.int32()),
                    "removed": [row % 11 == 0 for row in rows],
                }
            )
            self.held.append(weakref.ref(table))
            self.most = max(self.most, sum(one() is not None for one in self.held))
            yield table


def test_groups_reach_over_shards_of_which_few_are_held() -> None:
    shards, labeler = Shards(), load_labeler("duplicates", {})
    sizes, labels = [], []
    for table in labeler.label_tables(shards):  # type: ignore[attr-defined]
        sizes.append(len(table))
        labels += table.to_pylist()
    assert sizes == [ROWS] * SHARDS and shards.most <= 3
    members = {kind: [row for row in range(ROWS * SHARDS) if row % 7 and row % 6 == kind] for kind in range(6)}
    for row, label in enumerate(labels):
        if row % 7 == 0:
            assert (label["group"], label["rows"], label["keep"]) == (f"row {row}", 1, True)
            assert label["error"] == "no hashes: hashes.phash is missing"
            continue
        same = members[row % 6]
        best = min(same, key=lambda one: (one % 11 == 0, -(one % 5), one))
        assert (label["group"], label["rows"]) == (f"row {same[0]}", len(same))
        assert label["keep"] == (row == best) and label["error"] is None
