"""Data versions and code versions of assets, by which Dagster decides what is stale.

Dagster calls an asset stale when its code version is not the one it was made with, or when the data version of one of
its inputs has changed since. Here a code version is the digest of a group's declaration (group.json), and a data
version the digest of the `content` of a range of shards. Footers may know better than these versions: values may have
come out the same, or a column may have changed that nobody reads. `reporting` then corrects Dagster.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from labeling.dataset import Store, digest_json, open_store
from pipelines.dashboard.dataset_state import NO_CONTENT, DatasetState
from pipelines.dashboard.partitions import ShardRange
from pipelines.dashboard.snapshots import Snapshot
from pipelines.file_cache import FileCache
from pipelines.reports.figures import EVALUATION, read_json
from training.plan.manifest import FIRST_MANIFEST, MANIFEST, Manifest

Key = tuple[str, ...]  # of an asset: the name of a dataset or run, and what it is of that
EVALUATION_CODE = "1"  # an evaluation has no declaration that could change


@dataclass(frozen=True)
class AssetVersion:
    """An asset, or one partition of it, as Dagster is to know it.

    content: its data version; code: its declared code version, None where nothing here can make it again; inputs: the
    data versions of what it was made from; current: the data versions of the same inputs now; fresh: by the footers,
    whatever those versions say.
    """

    key: Key
    partition: str | None
    content: str
    code: str | None
    fresh: bool
    inputs: Mapping[Key, str] = field(default_factory=dict)
    current: Mapping[Key, str] = field(default_factory=dict)


def dataset_versions(state: DatasetState) -> Iterator[AssetVersion]:
    """Versions of all groups and ranges of a dataset, each after those of its inputs."""
    snapshot = state.snapshot
    for group in topological_order(snapshot):
        ranges = state.ranges[group]
        # Those without rows come first: an asset's page shows its newest event, which then has pictures.
        for part in sorted(snapshot.ranges, key=lambda part: ranges[part.key].rows > 0):
            counts = ranges[part.key]
            inputs: dict[Key, str] = {
                (snapshot.tracked.name, upstream): state.ranges[upstream][part.key].content
                for upstream in snapshot.upstream(group)
            }
            key = (snapshot.tracked.name, group)
            code = snapshot.code_version(group)
            yield AssetVersion(key, partition_of(snapshot, part), counts.content, code, counts.is_fresh, inputs, inputs)


def topological_order(snapshot: Snapshot) -> list[str]:
    """The groups of a dataset, each after those that it is made from."""
    ordered: dict[str, None] = {}

    def visit(group: str, above: tuple[str, ...] = ()) -> None:
        for upstream in snapshot.upstream(group):
            if upstream not in above:
                visit(upstream, (*above, group))
        ordered.setdefault(group)

    for group in snapshot.groups:
        visit(group)
    return list(ordered)


def partition_of(snapshot: Snapshot, part: ShardRange) -> str | None:
    """The partition that shows a range of shards; None where the dataset has a single range."""
    return part.key if len(snapshot.ranges) > 1 else None


def run_code_version(snapshot: Snapshot) -> str:
    """Digest of the part of a run's configuration that must stay the same while it trains."""
    from training.config import parse_config

    return parse_config(snapshot.config, snapshot.tracked.address).digest()


def run_versions(
    snapshot: Snapshot, names: Mapping[str, str], datasets: Mapping[str, DatasetState]
) -> Iterator[AssetVersion]:
    """Versions of a run's checkpoints and evaluation, as far as they exist.

    names: address → name, of the datasets on the dashboard; datasets: by address, those that could be read. The run's
    manifest pins the content of every shard it learns from. Checkpoints are fresh while the datasets hold that content;
    a dataset that is out of reach is assumed to hold it.
    """
    from training.checkpoint import checkpoint_name, load_state, whole_checkpoints

    store, name = open_store(snapshot.tracked.address), snapshot.tracked.name
    steps = whole_checkpoints(store)
    if not steps:
        return
    pinned = _pinned_contents(store, snapshot.config)
    inputs: dict[Key, str] = {}
    current: dict[Key, str] = {}
    for address, group in snapshot.reads:
        if address not in names:
            continue
        key = (names[address], group)
        inputs[key] = pinned.get((address, group), NO_CONTENT)
        current[key] = datasets[address].contents.get(group, NO_CONTENT) if address in datasets else inputs[key]
    newest = f"{store.uri}/{checkpoint_name(steps[-1])}"
    content = digest_json([checkpoint_name(steps[-1]), load_state(store, steps[-1])])
    code = run_code_version(snapshot)
    yield AssetVersion((name, "checkpoints"), None, content, code, inputs == current, inputs, current)
    evaluation = read_json(store, EVALUATION)
    if evaluation:
        evaluated = str(evaluation.get("checkpoint") or newest).rpartition("/")[2]
        fresh = evaluated == newest.rpartition("/")[2]
        expected: dict[Key, str] = {(name, "checkpoints"): content}
        made_from = expected if fresh else dict.fromkeys(expected, NO_CONTENT)
        digest = digest_json(evaluation)
        yield AssetVersion((name, "evaluation"), None, digest, EVALUATION_CODE, fresh, made_from, expected)


def _pinned_contents(store: Store, config: Mapping[str, Any]) -> dict[tuple[str, str], str]:
    """(dataset, group) → digest of the content that the run's manifest pins, comparable to `DatasetState.contents`."""
    files = store.files()
    file = MANIFEST if MANIFEST in files else FIRST_MANIFEST
    sources = _manifests.get(store, file, files[file]) if file in files else {}
    return {
        # The configuration knows the dataset's address where it was moved since.
        (open_store(config["mixture"].get(name, {}).get("dataset", dataset)).uri, group): digest
        for name, (dataset, digests) in sources.items()
        for group, digest in digests.items()
    }


def _read_manifest(store: Store, name: str) -> dict[str, tuple[str, dict[str, str]]]:
    """Source → (dataset's address, group → digest of its shards' content). A manifest itself is too large to keep."""
    manifest = Manifest.find(store)
    sources = {}
    for source, pin in manifest.sources.items() if manifest else ():
        names = pin.shards.names.to_pylist()
        digests = {
            group: digest_json(list(zip(names, pin.shards.content[group].to_pylist(), strict=True)))
            for group in pin.shards.content  # not of what is encoded when it is used, which no group holds
        }
        sources[source] = pin.dataset, digests
    return sources


_manifests = FileCache(_read_manifest, capacity=64)
