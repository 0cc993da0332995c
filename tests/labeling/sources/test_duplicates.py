"""Equal pictures of different shards: the first one stays, in whatever parts ids are compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from labeling.dataset import Dataset
from labeling.sources.duplicates import find_duplicates
from labeling.sources.seen import SEEN_SCHEMA, write_seen


def test_rows_that_equal_an_earlier_one_are_found_in_parts_as_at_once(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    dataset = Dataset(tmp_path)
    first: dict[str, tuple[int, int]] = {}
    wanted: dict[int, dict[int, tuple[int, int]]] = {}
    names = [f"{number:06d}" for number in range(12)]
    for number, name in enumerate(names):
        ids = [f"{value:02x}" + "0" * 30 for value in random.integers(0, 200, 40)]
        taken = random.random(40) < 0.8
        rows = [
            {"name": f"{number}-{i}", "id": one, "taken": bool(t)}
            for i, (one, t) in enumerate(zip(ids, taken, strict=True))
        ]
        write_seen(dataset, name, pa.Table.from_pylist(rows, SEEN_SCHEMA), "recipe")
        for item, identity in ((item, one) for item, one in enumerate(ids) if taken[item]):
            winner = first.setdefault(identity, (number, item))
            if winner != (number, item) and number >= 3:
                wanted.setdefault(number, {})[item] = winner
    for part_ids in (1 << 20, 50, 1):
        found = {
            one.shard: dict(zip(one.items, zip(one.first_shards, one.first_items, strict=True), strict=True))
            for one in find_duplicates(dataset, names, 3, part_ids)
        }
        assert found == wanted
    assert find_duplicates(dataset, names[:1], 0)[0].shard == 0  # also rows of one shard
