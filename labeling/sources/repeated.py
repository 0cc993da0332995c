"""Rows of a dataset that have the id of an earlier row: found in little memory, however many rows there are."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_PARTS = 64
_SPOOL_BYTES = 2 << 20  # of each part that stay in memory
_RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("shard", "<u4"), ("row", "<u4")])


def repeated_rows(ids: Iterable[tuple[str, pa.Array]]) -> dict[str, NDArray[Any]]:
    """Shard → numbers of its rows whose id an earlier row has, sorted; shards without one are left out.

    ids: (shard, ids of its rows), in the order of the dataset; an id is 32 hexadecimal digits. Ids are dealt out to
    temporary files by their first digits, so that only a part of them is in memory at a time: 24 bytes a row on disk.
    """
    shards: list[str] = []
    with ExitStack() as stack:
        parts: list[Any] = [stack.enter_context(tempfile.SpooledTemporaryFile(_SPOOL_BYTES)) for _ in range(_PARTS)]
        for shard, values in ids:
            records = np.empty(len(values), _RECORD)
            digits = np.frombuffer(bytes.fromhex("".join(values.to_pylist())), ">u8").reshape(-1, 2)
            records["high"], records["low"] = digits[:, 0], digits[:, 1]
            records["shard"], records["row"] = len(shards), np.arange(len(values))
            shards.append(shard)
            part = records["high"] % _PARTS
            for number in np.unique(part):
                parts[number].write(records[part == number].tobytes())
        repeated = [_repeated(part) for part in parts]
    found = np.sort(np.concatenate(repeated), order=("shard", "row"))
    numbers, starts = np.unique(found["shard"], return_index=True)
    rows = np.split(found["row"], starts[1:]) if len(numbers) else []
    return {shards[number]: some for number, some in zip(numbers, rows, strict=True)}


def _repeated(part: Any) -> NDArray[Any]:
    """Records of one part whose id an earlier one has."""
    part.seek(0)
    records = np.frombuffer(part.read(), _RECORD)
    records = records[np.lexsort((records["row"], records["shard"], records["low"], records["high"]))]
    same = (records["high"][1:] == records["high"][:-1]) & (records["low"][1:] == records["low"][:-1])
    return records[1:][same]
