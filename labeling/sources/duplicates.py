"""Equal pictures of different shards: settled when all are written, so that every file is read once.

The first of equal ones stays: of shards that the dataset had, else in the order of the listing, whatever the number of
workers. Ids are compared as two numbers each, in parts that fit in memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from labeling.dataset import IMAGES, REJECTED, REJECTED_SCHEMA, Dataset
from labeling.sources.ingest import same_bytes, write_images
from labeling.sources.seen import SEEN_SCHEMA, read_seen

PART_IDS = 16 << 20  # that are compared at a time: 400 MB
_THREADS = 16
_RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("shard", "<u4"), ("item", "<u4")])


@dataclass(frozen=True)
class Losers:
    """Pictures of a shard that equal earlier ones. items, first_items: places among all that the shards tell of, which
    stay as they are while other shards lose pictures; first_shards: those of the pictures that stay."""

    shard: int
    items: NDArray[np.uint32]
    first_shards: NDArray[np.uint32]
    first_items: NDArray[np.uint32]


def find_duplicates(dataset: Dataset, shards: Sequence[str], new: int, part_ids: int = PART_IDS) -> list[Losers]:
    """Pictures of the shards from number `new` on that equal an earlier row, by shard. shards: all, in order."""
    pairs_by_part: list[NDArray[np.void]] = []
    with tempfile.TemporaryDirectory(prefix="onediffusion-ids-") as folder:
        for part in _parts(dataset, shards, Path(folder), part_ids):
            part = part[np.lexsort((part["item"], part["shard"], part["low"], part["high"]))]
            same = (part["high"][1:] == part["high"][:-1]) & (part["low"][1:] == part["low"][:-1])
            starts = np.concatenate([[0], np.cumsum(~same)]) if len(part) else np.zeros(0, int)
            first = part[np.unique(starts, return_index=True)[1]] if len(part) else part
            lost = np.concatenate([[False], same])[: len(part)] & (part["shard"] >= new)
            pairs = np.zeros(int(lost.sum()), np.dtype([("loser", _RECORD), ("first", _RECORD)]))
            pairs["loser"], pairs["first"] = part[lost], first[starts[lost]]
            pairs_by_part.append(pairs)
    losers = np.concatenate(pairs_by_part)
    losers = losers[np.lexsort((losers["loser"]["item"], losers["loser"]["shard"]))]
    numbers, starts = np.unique(losers["loser"]["shard"], return_index=True)
    return [
        Losers(int(number), part["loser"]["item"], part["first"]["shard"], part["first"]["item"])
        for number, part in zip(numbers, np.split(losers, starts[1:]) if len(numbers) else (), strict=True)
    ]


def _parts(dataset: Dataset, shards: Sequence[str], folder: Path, part_ids: int) -> Iterator[NDArray[np.void]]:
    """The ids of all shards, in parts of which each has all that are equal."""
    batches: list[NDArray[np.void]] = []
    count = 0
    with ThreadPoolExecutor(_THREADS) as pool:
        for records in pool.map(lambda number: _ids(dataset, shards[number], number), range(len(shards))):
            batches.append(records)
            count += len(records)
            if count >= part_ids:
                _spill(batches, folder)
                batches, count = [], 0
    files = sorted(folder.iterdir())
    if not files:
        yield np.concatenate([np.zeros(0, _RECORD), *batches])
        return
    _spill(batches, folder)
    for file in sorted(folder.iterdir()):
        yield np.fromfile(file, _RECORD)


def _spill(batches: Sequence[NDArray[np.void]], folder: Path) -> None:
    """Append ids to one file for each first byte: 256 parts serve for 10⁹ ids."""
    records = np.concatenate([np.zeros(0, _RECORD), *batches])
    first = (records["high"] >> np.uint64(56)).astype(np.uint8)
    for byte in np.unique(first):
        with (folder / f"{byte:02x}").open("ab") as file:
            records[first == byte].tofile(file)


def _ids(dataset: Dataset, shard: str, number: int) -> NDArray[np.void]:
    seen = read_seen(dataset, shard)
    taken = seen["taken"].to_numpy()
    ids = seen["id"].filter(seen["taken"]).to_pylist()
    records = np.zeros(len(ids), _RECORD)
    raw = np.frombuffer(bytes.fromhex("".join(ids)), ">u8").reshape(-1, 2)
    records["high"], records["low"] = raw[:, 0], raw[:, 1]
    records["shard"], records["item"] = number, np.flatnonzero(taken)
    return records


def drop_duplicates(dataset: Dataset, shards: Sequence[str], losers: Losers, new: int, settled: str) -> int:
    """Move rows of a shard that equal earlier ones to its rejected rows; how many rows it has left.

    settled: the recipe of the shard when that is done.
    """

    @lru_cache(maxsize=256)
    def names(shard: int) -> list[str]:
        return list(read_seen(dataset, shards[shard])["name"].to_pylist())

    shard = shards[losers.shard]
    seen = read_seen(dataset, shard).to_pylist()
    reasons: dict[str, str] = {}
    for item, first_shard, first_item in zip(losers.items, losers.first_shards, losers.first_items, strict=True):
        known = f"in the dataset already, as {seen[item]['id']}"
        reasons[seen[item]["name"]] = known if first_shard < new else same_bytes(names(int(first_shard))[first_item])
    images = dataset.read(IMAGES, shard)
    keep = np.ones(images.num_rows, bool)
    keep[np.cumsum([one["taken"] for one in seen])[losers.items] - 1] = False
    rejected = {row["source"]: row for row in dataset.read(REJECTED, shard).to_pylist()}
    for one in seen:
        if one["name"] in reasons:
            one["taken"] = False
            rejected[one["name"]] = {"source": one["name"], "size": one["size"], "reason": reasons[one["name"]]}
    order = {one["name"]: number for number, one in enumerate(seen)}
    ordered = sorted(rejected.values(), key=lambda row: order.get(row["source"], -1))
    write_images(
        dataset,
        shard,
        images.filter(pa.array(keep)),
        pa.Table.from_pylist(ordered, REJECTED_SCHEMA),
        pa.Table.from_pylist(seen, SEEN_SCHEMA),
        settled,
    )
    return int(keep.sum())
