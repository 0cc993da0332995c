"""New pictures in the places that a dataset's pictures came from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from labeling.content import digest_json
from labeling.shards import Dataset
from labeling.sources import Source
from model.errors import InputError
from pipelines.dashboard.checks import Verdict
from pipelines.dashboard.snapshots import Snapshot

MOST_NAMES = 2_000_000  # of pictures ingested; beyond, new ones are only counted


@dataclass(frozen=True)
class News:
    """A source with pictures that are not in the dataset yet: how many, and some of their names."""

    source: str
    count: int
    names: list[str] = field(default_factory=list)


def listing(snapshot: Snapshot) -> str:
    """Digest of what lies in a dataset's sources; files are listed, none is opened. Raises InputError."""
    found = []
    for uri in snapshot.sources:
        source = Source(uri)
        found.append([uri, [(name, entry.size, entry.tag) for name, entry in source.store.walk().items()]])
    return digest_json(found)


def news(snapshot: Snapshot) -> list[News]:
    """The sources that have new pictures. Raises InputError for one that cannot be listed."""
    dataset = Dataset.open(snapshot.place.address)
    rejected, images = dataset.footers("rejected"), dataset.footers("images")
    found = []
    for number, uri in enumerate(snapshot.sources):
        shards = [shard.name for shard in dataset.shards if shard.source == number and shard.name in images]
        known = sum(images[shard].rows for shard in shards)
        known += sum(rejected[shard].rows for shard in shards if shard in rejected)
        try:
            items = Source(uri).items()
        except InputError as error:
            if "no files there" in str(error):  # emptied since: nothing is new
                continue
            raise
        if known > MOST_NAMES:
            if len(items) > known:
                found.append(News(uri, len(items) - known))
            continue
        names: set[str] = set()
        for shard in shards:
            names.update(dataset.read("images", shard, ["source"])["source"].to_pylist())
            if shard in rejected:
                names.update(dataset.read("rejected", shard, ["source"])["source"].to_pylist())
        fresh = [item.name for item in items if item.name not in names]
        if fresh:
            found.append(News(uri, len(fresh), fresh[:20]))
    return found


def source_verdict(snapshot: Snapshot, found: list[News] | None = None) -> Iterator[Verdict]:
    """The check `sources` of a dataset, where it has sources."""
    if not snapshot.sources or snapshot.kind != "pictures":
        return
    found = news(snapshot) if found is None else found
    count = sum(one.count for one in found)
    said = "; ".join(f"{one.count} new in {one.source}" for one in found) or "all pictures are in the dataset"
    if count:
        said += ": run the job ingest_pictures to add and label them"
    yield Verdict((snapshot.place.name, "images"), "sources", not count, said, {"new pictures": count})
