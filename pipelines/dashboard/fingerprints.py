"""What is fresh, by the shards' own footers, in the words that Dagster compares: data versions and code versions.

Dagster calls an asset stale when its code version is not the one it was made with, or the data version of something it
was made from has changed since. Here a code version is the digest of what group.json declares, and a data version the
digest of the `content` of a range of shards. Where the footers know better than that (values that came out the same,
a change to a column that nobody reads), a report with new versions puts Dagster right; see `reporting`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from labeling.dataset import Dataset, Entry, Footer, Store, digest_json, group_status, open_store
from pipelines.dashboard.labeling_history import Labeling, labelings
from pipelines.dashboard.ranges import Range
from pipelines.dashboard.snapshots import Snapshot
from pipelines.file_cache import FileCache
from pipelines.reports.run import EVALUATION, read_json
from training.run import MANIFEST

Key = tuple[str, ...]
Footers = dict[str, dict[str, Footer]]
Listings = dict[str, dict[str, Entry]]
MISSING = "missing"
EVALUATION_CODE = "1"  # nothing about an evaluation can be declared


@dataclass(frozen=True)
class RangeState:
    """Shards of a range that are fresh, stale and missing; rows, and rows in error; digest of what is there."""

    fresh: int
    stale: int
    missing: int
    rows: int
    errors: int
    content: str

    @property
    def is_fresh(self) -> bool:
        return not (self.stale or self.missing)


@dataclass(frozen=True)
class Version:
    """An asset, or one partition of it, as Dagster is to know it.

    content: its data version; code: the code version that is declared, None where nothing here can make it anew;
    inputs: the data versions of what it was made from; current: those of the same things now. fresh: by the footers,
    whatever those versions say.
    """

    key: Key
    partition: str | None
    content: str
    code: str | None
    fresh: bool
    inputs: Mapping[Key, str] = field(default_factory=dict)
    current: Mapping[Key, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DatasetState:
    """What is there of a dataset: group → key of a range → its state; and what it was seen by.

    listings: group → shard → its file; contents: group → digest of all of its shards; labelings: see `Labeling`.
    """

    snapshot: Snapshot
    shards: Sequence[str]
    ranges: dict[str, dict[str, RangeState]]
    listings: Listings
    footers: Footers
    contents: dict[str, str]
    labelings: Sequence[Labeling]

    def totals(self, group: str) -> RangeState:
        """Of all ranges together."""
        states = list(self.ranges[group].values())
        return RangeState(
            fresh=sum(state.fresh for state in states),
            stale=sum(state.stale for state in states),
            missing=sum(state.missing for state in states),
            rows=sum(state.rows for state in states),
            errors=sum(state.errors for state in states),
            content=self.contents[group],
        )


def dataset_state(snapshot: Snapshot, before: DatasetState | None = None) -> DatasetState:
    """Look at the shards of a dataset. Costs one listing a group, and the footers that changed.

    before: as it was seen last; of what has not changed since, it is taken, and returned itself where that is all.
    """
    dataset = Dataset.open(snapshot.place.address)
    shards = [shard.name for shard in dataset.shards]
    listings: Listings = {}
    footers: Footers = {}
    for group in snapshot.groups:
        listings[group] = dataset.shard_entries(group)
        footers[group] = _footers(dataset, group, listings[group], before)
    done = labelings(dataset.store)
    if before and (snapshot, shards, listings, done) == (
        before.snapshot,
        before.shards,
        before.listings,
        before.labelings,
    ):
        return before
    ranges: dict[str, dict[str, RangeState]] = {}
    contents: dict[str, str] = {}
    for group in snapshot.groups:
        if before and _is_unchanged(group, snapshot, shards, listings, before):
            ranges[group], contents[group] = before.ranges[group], before.contents[group]
            continue
        declared = snapshot.groups[group]
        ranges[group] = {
            part.key: _range_state(declared, group, shards[part.first : part.end], footers) for part in snapshot.ranges
        }
        contents[group] = _content(shards, footers[group])
    return DatasetState(snapshot, shards, ranges, listings, footers, contents, done)


def _footers(
    dataset: Dataset, group: str, listing: Mapping[str, Entry], before: DatasetState | None
) -> dict[str, Footer]:
    if before is None or group not in before.footers:
        return dataset.footers(group, save=True)
    known, listed = before.footers[group], before.listings[group]
    if listing == listed:
        return known
    found = {}
    for shard, entry in listing.items():
        if shard in known and listed.get(shard) == entry:
            found[shard] = known[shard]
        else:
            with suppress(FileNotFoundError):  # deleted since it was listed
                found[shard] = dataset.footer(group, shard)
    return found


def _is_unchanged(
    group: str, snapshot: Snapshot, shards: Sequence[str], listings: Listings, before: DatasetState
) -> bool:
    """Whether a group is declared and made from the same as before."""
    if (snapshot.shards, shards) != (before.snapshot.shards, before.shards):
        return False
    return all(
        snapshot.groups[one] == before.snapshot.groups.get(one) and listings[one] == before.listings[one]
        for one in (group, *snapshot.upstream(group))
    )


def _range_state(declared: Mapping[str, Any], group: str, shards: Sequence[str], footers: Footers) -> RangeState:
    status = group_status(group, declared, shards, footers)
    return RangeState(**asdict(status), content=_content(shards, footers[group]))


def _content(shards: Sequence[str], footers: Mapping[str, Footer]) -> str:
    there = [(shard, footers[shard].content) for shard in shards if shard in footers]
    return digest_json(there) if there else MISSING


def dataset_versions(state: DatasetState) -> Iterator[Version]:
    """All groups and ranges, each after what it is made from."""
    snapshot = state.snapshot
    for group in in_order(snapshot):
        for part in snapshot.ranges:
            own = state.ranges[group][part.key]
            inputs: dict[Key, str] = {
                (snapshot.place.name, upstream): state.ranges[upstream][part.key].content
                for upstream in snapshot.upstream(group)
            }
            key = (snapshot.place.name, group)
            code = snapshot.code_version(group)
            yield Version(key, partition_of(snapshot, part), own.content, code, own.is_fresh, inputs, inputs)


def in_order(snapshot: Snapshot) -> list[str]:
    """The groups of a dataset, each after what it is made from."""
    found: dict[str, None] = {}

    def visit(group: str, above: tuple[str, ...] = ()) -> None:
        for upstream in snapshot.upstream(group):
            if upstream not in above:
                visit(upstream, (*above, group))
        found.setdefault(group)

    for group in snapshot.groups:
        visit(group)
    return list(found)


def partition_of(snapshot: Snapshot, part: Range) -> str | None:
    """The partition that a range is shown as; None where the dataset has only one."""
    return part.key if len(snapshot.ranges) > 1 else None


def run_code_version(snapshot: Snapshot) -> str:
    """Digest of what must stay the same in a run."""
    from training.config import parse_config

    return parse_config(snapshot.config, snapshot.place.address).digest()


def run_versions(
    snapshot: Snapshot, names: Mapping[str, str], datasets: Mapping[str, DatasetState]
) -> Iterator[Version]:
    """A run's checkpoints and its evaluation, as far as they are there.

    names: address → name, of the datasets that are shown; datasets: by address, those that could be looked at. The
    run's manifest pins the content of every shard it learns from: checkpoints are fresh while that is what the datasets
    hold (of one that is out of reach, that is taken to be so).
    """
    from training.checkpoint import checkpoint_name, load_state, whole_checkpoints

    store, name = open_store(snapshot.place.address), snapshot.place.name
    steps = whole_checkpoints(store)
    if not steps:
        return
    learned = _learned(store, snapshot.config)
    inputs: dict[Key, str] = {}
    current: dict[Key, str] = {}
    for address, group in snapshot.reads:
        if address not in names:
            continue
        key = (names[address], group)
        inputs[key] = learned.get((address, group), MISSING)
        current[key] = datasets[address].contents.get(group, MISSING) if address in datasets else inputs[key]
    last = f"{store.uri}/{checkpoint_name(steps[-1])}"
    content = digest_json([checkpoint_name(steps[-1]), load_state(store, steps[-1])])
    code = run_code_version(snapshot)
    yield Version((name, "checkpoints"), None, content, code, inputs == current, inputs, current)
    evaluation = read_json(store, EVALUATION)
    if evaluation:
        of = str(evaluation.get("checkpoint") or last).rpartition("/")[2]
        fresh = of == last.rpartition("/")[2]
        newest: dict[Key, str] = {(name, "checkpoints"): content}
        made_from = newest if fresh else dict.fromkeys(newest, MISSING)
        digest = digest_json(evaluation)
        yield Version((name, "evaluation"), None, digest, EVALUATION_CODE, fresh, made_from, newest)


def _learned(store: Store, config: Mapping[str, Any]) -> dict[tuple[str, str], str]:
    """(dataset, group) → digest of the shards' content that the run's manifest pins, as `DatasetState.contents`."""
    entry = store.files().get(MANIFEST)
    pinned = _manifests.get(store, MANIFEST, entry) if entry else {}
    return {
        (open_store(config["mixture"].get(name, {}).get("dataset", dataset)).uri, group): digest  # moved, perhaps
        for name, (dataset, digests) in pinned.items()
        for group, digest in digests.items()
    }


def _pinned(store: Store, name: str) -> dict[str, tuple[str, dict[str, str]]]:
    """Source → (dataset's address, group → digest of its shards' content): all that is needed of it, and small."""
    manifest = read_json(store, name) or {"sources": {}}
    found = {}
    for source, values in manifest["sources"].items():
        digests = {
            group: digest_json([(shard["name"], shard["content"][group]) for shard in values["shards"]])
            for group in values["declarations"]
        }
        found[source] = values["dataset"], digests
    return found


_manifests = FileCache(_pinned, capacity=64)
