"""What is fresh, by the shards' own footers, in the words that Dagster compares: data versions and code versions.

Dagster calls an asset stale when its code version is not the one it was made with, or the data version of something it
was made from has changed since. Here a code version is the digest of what group.json declares, and a data version the
digest of the `content` of a range of shards. Where the footers know better than that (values that came out the same,
a change to a column that nobody reads), a report with new versions puts Dagster right; see `reporting`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from labeling.content import digest_json
from labeling.plan import expected_recipe
from labeling.shards import Dataset, Footer, open_store
from labeling.storage import Store
from model.errors import InputError
from pipelines.dashboard.ranges import Range
from pipelines.dashboard.snapshots import Snapshot
from pipelines.run_summary import EVALUATION, read_json
from training.loop import MANIFEST

Key = tuple[str, ...]
Footers = dict[str, dict[str, Footer]]
MISSING = "missing"


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
    """What is there of a dataset: group → key of a range → its state; and the footers it was seen by."""

    snapshot: Snapshot
    ranges: dict[str, dict[str, RangeState]]
    footers: Footers
    contents: dict[str, str]  # group → digest of all of its shards

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


def dataset_state(snapshot: Snapshot) -> DatasetState:
    """Look at all footers of a dataset. Costs one listing a group, and the footers that changed."""
    dataset = Dataset.open(snapshot.place.address)
    footers = {group: _footers(dataset, group) for group in snapshot.groups}
    names = [shard.name for shard in dataset.shards]
    ranges = {
        group: {
            part.key: _range_state(snapshot.groups[group], group, names[part.first : part.end], footers)
            for part in snapshot.ranges
        }
        for group in snapshot.groups
    }
    contents = {group: _content(names, footers[group]) for group in snapshot.groups}
    return DatasetState(snapshot, ranges, footers, contents)


def _footers(dataset: Dataset, group: str) -> dict[str, Footer]:
    with suppress(InputError, OSError):  # the cache of footers is only a help: one may read where one may not write
        return dataset.footers(group, save=True)
    return dataset.footers(group)


def _range_state(declared: Mapping[str, Any], group: str, shards: Sequence[str], footers: Footers) -> RangeState:
    fresh = stale = rows = errors = 0
    for shard in shards:
        footer = footers[group].get(shard)
        if footer is None:
            continue
        rows += footer.rows
        errors += footer.errors
        # A group that reads nothing is a source (ingest, views): it is what it is.
        good = not declared.get("reads") or footer.recipe == expected_recipe(declared, shard, footers)
        fresh += good
        stale += not good
    return RangeState(fresh, stale, len(shards) - fresh - stale, rows, errors, _content(shards, footers[group]))


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

    return digest_json(parse_config(snapshot.config, snapshot.place.address).fixed())


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
    learnt = _learnt(store, snapshot.config)
    inputs: dict[Key, str] = {}
    current: dict[Key, str] = {}
    for address, group in snapshot.reads:
        if address not in names:
            continue
        key = (names[address], group)
        inputs[key] = learnt.get((address, group), MISSING)
        current[key] = datasets[address].contents.get(group, MISSING) if address in datasets else inputs[key]
    last = f"{store.uri}/{checkpoint_name(steps[-1])}"
    content = digest_json([checkpoint_name(steps[-1]), load_state(store, steps[-1])])
    code = run_code_version(snapshot)
    yield Version((name, "checkpoints"), None, content, code, inputs == current, inputs, current)
    evaluation = read_json(store, EVALUATION)
    if evaluation:
        fresh = evaluation.get("checkpoint") in (None, last)
        yield Version((name, "evaluation"), None, digest_json(evaluation), None, fresh)


def _learnt(store: Store, config: Mapping[str, Any]) -> dict[tuple[str, str], str]:
    """(dataset, group) → digest of the shards' content that the run's manifest pins, as `DatasetState.contents`."""
    manifest = read_json(store, MANIFEST) or {"sources": {}}
    found: dict[tuple[str, str], str] = {}
    for name, source in manifest["sources"].items():
        address = config["mixture"].get(name, source)["dataset"]  # it may have moved since
        for group in source["declarations"]:
            pins = [(shard["name"], shard["content"][group]) for shard in source["shards"]]
            found[open_store(address).uri, group] = digest_json(pins)
    return found
