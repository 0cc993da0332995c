"""A dataset before an ingest, and a listing of a source beside it: what is new, changed, gone or back again."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from labeling.dataset import DATASET_FILE, Dataset, ShardInfo
from labeling.sources.items import ITEM_SCHEMA, Trouble
from labeling.sources.listing import Listing
from labeling.sources.seen import Comparison, SeenItems
from model.inputs import InputError


@dataclass(frozen=True)
class Survey:
    """What a dataset has before an ingest.

    description: the bytes of dataset.json, None where there is no dataset yet; source_number: index of the source in
    `sources`; seen: items of that source; removed: shard → rows marked as removed.
    """

    description: bytes | None
    shards: list[ShardInfo]
    sources: list[dict[str, Any]]
    source_number: int
    seen: SeenItems
    removed: dict[str, list[int]]

    def findings(self, listing: Listing) -> Findings:
        """What of a listing the dataset does not have as it is."""
        comparison = self.seen.compare(listing)
        names, rows = self.seen.shards, self.removed
        marked = {(number, row) for number, name in enumerate(names) for row in rows.get(name, ())}
        gone: dict[str, tuple[str, int]] = {}
        for one in comparison.gone.to_pylist():
            if (one["shard"], one["row"]) not in marked:
                gone[one["id"]] = (names[one["shard"]], one["row"])
        back: dict[str, list[int]] = {}
        if marked:
            there = self.seen.table.filter(pc.and_(comparison.there, self.seen.table["taken"]))
            for shard, row in zip(there["shard"].to_pylist(), there["row"].to_pylist(), strict=True):
                if (shard, row) in marked:
                    back.setdefault(names[shard], []).append(row)
            comparison = replace(
                comparison, candidates=self._with_marked(comparison.candidates, listing, there, marked)
            )
        # A picture that has another name now is there, as one that equals it.
        twins = self.seen.table.filter(pc.and_(comparison.there, pc.invert(self.seen.table["taken"])))
        for identity in twins["id"].drop_null().to_pylist() if gone else ():
            gone.pop(identity, None)
        return Findings(comparison, self._new_troubles(listing), gone, back)

    @staticmethod
    def _with_marked(candidates: pa.Table, listing: Listing, there: pa.Table, marked: set[tuple[int, int]]) -> pa.Table:
        """The candidates, and all items with the name of a marked row: another picture may have that name now.

        there: rows of seen items that the source has.
        """
        pairs = zip(there["shard"].to_pylist(), there["row"].to_pylist(), strict=True)
        there = there.filter(pc.and_(pa.array([one in marked for one in pairs], pa.bool_()), pc.is_valid(there["tag"])))
        items = listing.items.filter(pc.is_in(listing.items["name"], value_set=there["name"].combine_chunks()))
        items = items.filter(pc.invert(pc.is_in(items["name"], value_set=candidates["name"].combine_chunks())))
        locations = there.take(pc.index_in(items["name"], value_set=there["name"].combine_chunks()))
        for name in ("shard", "row"):
            items = items.append_column(name, locations[name])
        return pa.concat_tables([candidates, items])

    def _new_troubles(self, listing: Listing) -> list[Trouble]:
        if not listing.troubles:
            return []
        names = pa.array([trouble.name for trouble in listing.troubles], pa.string())
        at = pc.index_in(names, value_set=self.seen.table["name"])
        sizes = self.seen.table["size"].take(at).to_pylist()
        return [
            trouble
            for trouble, location, size in zip(listing.troubles, at.to_pylist(), sizes, strict=True)
            if location is None or size != trouble.size
        ]


@dataclass(frozen=True)
class Findings:
    """What an ingest has to do. gone: id → shard and row of pictures that the source has no more; back: shard → rows
    marked as removed whose pictures are there again.
    """

    comparison: Comparison
    troubles: list[Trouble] = field(default_factory=list)
    gone: dict[str, tuple[str, int]] = field(default_factory=dict)
    back: dict[str, list[int]] = field(default_factory=dict)

    @property
    def new(self) -> pa.Table:
        """Items to ingest (ITEM_SCHEMA)."""
        return self.comparison.new

    @property
    def again(self) -> pa.Array:
        """Names of what was rejected and is looked at again."""
        return pa.concat_arrays([self.comparison.again, pa.array([one.name for one in self.troubles], pa.string())])

    @property
    def count(self) -> int:
        """Items and troubles to ingest."""
        return self.new.num_rows + len(self.troubles)

    def __bool__(self) -> bool:
        return bool(self.count or self.comparison.candidates.num_rows or self.gone or self.back)

    def candidates(self, shards: SeenItems) -> dict[str, pa.Table]:
        """Shard → its items that may have changed (ITEM_SCHEMA)."""
        table = self.comparison.candidates
        return {
            shards.shards[number]: table.filter(pc.equal(table["shard"], number)).select(ITEM_SCHEMA.names)
            for number in pc.unique(table["shard"]).to_pylist()
        }


def survey_dataset(address: str, dataset_uri: str) -> Survey:
    """What a dataset has of the source at an address. Raises InputError for a dataset of sets."""
    description = read_description(dataset_uri)
    dataset = Dataset(dataset_uri)
    if description is None:
        return Survey(None, [], [{"uri": address}], 0, SeenItems.read(dataset, []), {})
    dataset = Dataset.open(dataset_uri)
    if dataset.has_sets:
        raise InputError(f"{dataset_uri}: a dataset of {dataset.kind}; pictures are ingested into one of pictures")
    sources = list(dataset.description["sources"])
    numbers = [number for number, source in enumerate(sources) if source.get("uri") == address]
    if not numbers:
        sources.append({"uri": address})
    number = numbers[0] if numbers else len(sources) - 1
    own = [shard for shard in dataset.shards if shard.source == number]
    removed = {shard: list(rows) for shard, rows in dataset.description.get("removed", {}).items()}
    return Survey(description, dataset.shards, sources, number, SeenItems.read(dataset, own), removed)


def read_description(dataset_uri: str) -> bytes | None:
    """The bytes of dataset.json, None where there is none: they tell whether another job has changed the dataset."""
    try:
        return Dataset(dataset_uri).store.read(DATASET_FILE)
    except FileNotFoundError:
        return None
