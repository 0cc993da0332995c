"""Ids that are in a dataset twice."""

from __future__ import annotations

import hashlib

import pyarrow as pa
import pytest

from labeling.sources import repeated
from labeling.sources.repeated import repeated_rows


@pytest.mark.parametrize("spool", [repeated._SPOOL_BYTES, 100])
def test_of_equal_ids_the_first_stays(spool: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeated, "_SPOOL_BYTES", spool)

    def digests(*names: int) -> pa.Array:
        return pa.array([hashlib.blake2b(b"%d" % name, digest_size=16).hexdigest() for name in names], pa.string())

    shards = [
        ("000000", digests(*range(100), 7)),
        ("000001", digests(100, 101)),
        ("000002", digests()),
        ("000003", digests(102, 5, 103, 102)),
    ]
    found = {shard: rows.tolist() for shard, rows in repeated_rows(shards).items()}
    assert found == {"000000": [100], "000003": [1, 3]}
    assert repeated_rows([]) == {}
