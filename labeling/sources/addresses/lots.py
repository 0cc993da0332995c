"""The work of an ingest of a list, cut into lots: shards that one worker makes one after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow.compute as pc

from labeling.dataset import IMAGES, REJECTED, Dataset, digest_json, recipe
from labeling.sources.addresses.fetch import is_transient
from labeling.sources.addresses.rows import ListFile, RowRange
from labeling.sources.addresses.shards import ListedRow, Making, write_rows
from labeling.sources.seen import read_seen

LOT_SHARDS = 8


@dataclass(frozen=True)
class ListWork:
    """What is the same for all lots of an ingest. declaration: of the group of images."""

    dataset: Dataset
    files: Mapping[str, ListFile]
    making: Making
    declaration: Mapping[str, Any]

    def recipe(self, *parts: Any) -> str:
        """Recipe of a shard of these parts of the list. How they are fetched is no part of it."""
        return recipe(self.declaration, {"source": digest_json([asdict(self.making.columns), list(parts)])})


@dataclass(frozen=True)
class ShardOutcome:
    """What became of the rows of a shard: how many were taken, and the reasons of the others, counted by kind."""

    shard: str
    taken: int
    reasons: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Lot:
    """Consecutive ranges of a file, each with the shard that it becomes; one pass through the file reads them all."""

    shards: tuple[str, ...]
    ranges: tuple[RowRange, ...]

    @property
    def rows(self) -> int:
        """Rows of the list."""
        return sum(one.rows for one in self.ranges)

    def write(self, work: ListWork) -> list[ShardOutcome]:
        """Make the shards that are not there yet."""
        recipes = [work.recipe(one.file, one.first, one.rows, one.digest) for one in self.ranges]
        done = [_is_done(work.dataset, *pair) for pair in zip(self.shards, recipes, strict=True)]
        if not all(done):
            rows = work.files[self.ranges[0].file].read(self.ranges)
            for one, some, shard, shard_recipe, is_done in zip(
                self.ranges, rows, self.shards, recipes, done, strict=True
            ):
                if not is_done:
                    listed = [ListedRow(one.file, one.first + index, row) for index, row in enumerate(some)]
                    write_rows(work.dataset, shard, listed, work.making, shard_recipe)
        return [_outcome(work.dataset, shard) for shard in self.shards]


@dataclass(frozen=True)
class RetryLot:
    """A shard of rows that failed earlier. earlier: shards that rejected them, each with ranges in which they lie."""

    shard: str
    earlier: tuple[tuple[str, tuple[RowRange, ...]], ...]
    rows: int

    def write(self, work: ListWork) -> list[ShardOutcome]:
        """Make the shard, if it is not there yet."""
        names = [shard for shard, _ in self.earlier]
        digests = [one.digest for _, ranges in self.earlier for one in ranges]
        shard_recipe = work.recipe("again", names, digests, self.rows)
        if not _is_done(work.dataset, self.shard, shard_recipe):
            listed = [row for shard, ranges in self.earlier for row in self._read(work, shard, ranges)]
            write_rows(work.dataset, self.shard, listed, work.making, shard_recipe)
        return [_outcome(work.dataset, self.shard)]

    def _read(self, work: ListWork, shard: str, ranges: Sequence[RowRange]) -> Iterator[ListedRow]:
        failures = {(file, place) for file, place in failed_rows(work.dataset, shard)}
        for one in ranges:
            (rows,) = work.files[one.file].read([one])
            for index, row in enumerate(rows):
                if (one.file, one.first + index) in failures:
                    yield ListedRow(one.file, one.first + index, row)


def cut_lots(ranges: Sequence[RowRange], first_shard: int, workers: int) -> Iterator[Lot]:
    """Lots of some consecutive ranges of a file, whose shards are numbered from `first_shard`.

    A lot has several shards, since reading a range may mean decoding what lies before it; fewer where else some of the
    workers would have nothing to do.
    """
    size = max(1, min(LOT_SHARDS, len(ranges) // (2 * workers)))
    for start in range(0, len(ranges), size):
        some = ranges[start : start + size]
        names = tuple(f"{first_shard + start + index:06d}" for index in range(len(some)))
        yield Lot(names, tuple(some))


def failed_rows(dataset: Dataset, shard: str) -> list[tuple[str, int]]:
    """File and number of the rows that a shard rejected for a reason that may have passed."""
    seen = read_seen(dataset, shard)
    if "place" not in seen.column_names:
        return []
    rows = seen.select(["file", "place", "reason"]).filter(pc.is_valid(seen["reason"])).to_pylist()
    return [(row["file"], row["place"]) for row in rows if is_transient(row["reason"])]


def _is_done(dataset: Dataset, shard: str, shard_recipe: str) -> bool:
    try:
        return dataset.footer(IMAGES, shard).recipe == shard_recipe
    except FileNotFoundError:
        return False


def _outcome(dataset: Dataset, shard: str) -> ShardOutcome:
    reasons = dataset.read(REJECTED, shard, ["reason"])["reason"].to_pylist()
    return ShardOutcome(shard, dataset.footer(IMAGES, shard).rows, Counter(kind(reason) for reason in reasons))


def kind(reason: str) -> str:
    """A reason without what is particular to a row: by it reasons are counted."""
    head, colon, _ = reason.partition(":")
    particular = colon and head != "X-Robots-Tag"
    head = head if particular else reason
    for start in ("same bytes as", "in the dataset already", "host ", "cut off", "decompression bomb", "too small"):
        if head.startswith(start):
            return "host failed too often" if start == "host " else start
    return head
