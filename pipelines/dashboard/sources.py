"""What a dataset lacks: pictures that are new in the places its pictures came from, and labels of its shards."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import dataclass

from labeling.dataset import LEASE_EXPIRY, LEASE_FILE, Dataset, digest_json
from labeling.sources.ingest import SeenFiles
from labeling.sources.source import Source
from model.inputs import InputError, one_line
from pipelines.dashboard.checks import Verdict
from pipelines.dashboard.snapshots import Snapshot

MOST_NAMES = 2_000_000  # of pictures ingested; beyond, new ones are only counted
SHOWN_NAMES = 20


@dataclass(frozen=True)
class News:
    """A source with pictures that are not in the dataset yet: how many, some of their names, and what tells them apart.

    identity: digest of all of their names.
    """

    source: str
    count: int
    names: list[str]
    identity: str


def listing(snapshot: Snapshot) -> str:
    """Digest of the files that a dataset's sources name, and their sizes; none is opened. Raises InputError, OSError.

    Files beside them, such as those of the dataset itself, do not count.
    """
    return digest_json(
        [[uri, [(name, entry.size) for name, entry in Source(uri).files().items()]] for uri in snapshot.sources]
    )


def news(snapshot: Snapshot) -> list[News]:
    """The sources that have new pictures. Raises InputError, or OSError, for one that cannot be listed."""
    dataset = Dataset.open(snapshot.place.address)
    there = dataset.store.files("images")  # it comes last of what a shard has
    found = []
    for number, uri in enumerate(snapshot.sources):
        try:
            items = Source(uri).items()
        except InputError as error:
            if "no files there" in str(error):  # emptied since: nothing is new
                continue
            raise
        shards = [shard for shard in dataset.shards if shard.source == number]
        if sum(shard.rows for shard in shards) > MOST_NAMES:
            rejected = dataset.footers("rejected", save=True)
            known = sum(shard.rows for shard in shards)
            known += sum(rejected[shard.name].rows for shard in shards if shard.name in rejected)
            if len(items) > known:
                found.append(News(uri, len(items) - known, [], digest_json(len(items))))
            continue
        seen = SeenFiles()
        for shard in shards:
            if f"{shard.name}.parquet" in there:
                seen.add_shard(dataset, shard.name)
        fresh = [item.name for item in seen.new(items)]
        if fresh:
            found.append(News(uri, len(fresh), fresh[:SHOWN_NAMES], digest_json(fresh)))
    return found


def unlabeled(snapshot: Snapshot) -> dict[str, list[str]]:
    """Group → shards that have no label of it, though it is declared. Costs a listing a group."""
    dataset = Dataset.open(snapshot.place.address)
    found = {}
    for group in snapshot.labels:
        files = dataset.store.files(group)
        missing = [shard.name for shard in dataset.shards if f"{shard.name}.parquet" not in files]
        if missing:
            found[group] = missing
    return found


def worked_on_now(snapshot: Snapshot) -> str:
    """A group of a dataset that a job holds now, "" if there is none: another job on it would be refused."""
    store = Dataset(snapshot.place.address).store
    for group in snapshot.groups:
        with suppress(FileNotFoundError, ValueError, KeyError):
            if time.time() - json.loads(store.read(f"{group}/{LEASE_FILE}"))["time"] < LEASE_EXPIRY:
                return group
    return ""


def source_verdict(snapshot: Snapshot) -> tuple[Verdict, list[News]]:
    """The check `sources` of a dataset, and what is new: nothing, where a source cannot be listed."""
    key = (snapshot.place.name, "images")
    try:
        found = news(snapshot)
    except (InputError, OSError) as error:
        return Verdict(key, "sources", False, f"a source cannot be listed: {one_line(error)}"), []
    count = sum(one.count for one in found)
    said = "; ".join(f"{one.count} new in {one.source}" for one in found) or "all pictures are in the dataset"
    if count:
        said += ": run the job ingest_pictures to add and label them"
    return Verdict(key, "sources", not count, said, {"new pictures": count}), found
