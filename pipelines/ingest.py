"""The ingest job: raw pictures → the images group and rejected/, one Ray Data row a shard."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from cluster.session import ray_session
from labeling.dataset import SCHEMA_VERSION, Dataset, ShardInfo, digest_json, lease, open_store, recipe, write_shard
from labeling.sources.ingest import (
    IMAGES,
    REJECTED,
    SHARD_BYTES,
    SHARD_ROWS,
    VERSION,
    Picture,
    Rejected,
    cut_row_groups,
    normalize,
    picture_id,
)
from labeling.sources.source import Item, Source, cut
from model.constants import MAX_PIXELS, MIN_SIDE
from model.inputs import InputError
from pipelines.progress import progress

READERS = 8  # threads a shard is read and decoded with; decoding releases the interpreter lock


@dataclass(frozen=True)
class IngestResult:
    """Pictures added by this run, files rejected by it, and how many pictures the dataset has now."""

    added: int
    rejected: int
    pictures: int


def ingest(
    source_uri: str,
    dataset_uri: str,
    shard_rows: int = SHARD_ROWS,
    shard_bytes: int = SHARD_BYTES,
    max_pixels: int = MAX_PIXELS,
    min_side: int = MIN_SIDE,
) -> IngestResult:
    """Add the pictures of a source that the dataset does not have yet, on the Ray of `cluster.session`.

    Shards are cut from the sorted listing; of equal files the first one stays, the others go to rejected/ with what
    they equal. An interrupted run continues with the shards it had not written. Raises InputError for an empty source,
    a target that cannot be written, a dataset of sets, or a source with no picture at all.
    """
    source = Source(source_uri)
    items = source.items()
    store = open_store(dataset_uri)
    seen = _look(source, items, dataset_uri)
    if not seen.fresh:
        return IngestResult(0, 0, sum(shard.rows for shard in seen.shards))
    parameters = {"max_pixels": max_pixels, "min_side": min_side}
    declaration = {"labeler": "ingest", "version": VERSION, "parameters": parameters, "weights": "", "reads": []}
    with lease(store, ["images"]), ray_session():
        if _description(dataset_uri) != seen.description:  # another ingest has ended since
            seen = _look(source, items, dataset_uri)
        before, met, ids, fresh = seen.shards, seen.met, seen.ids, seen.fresh
        total = sum(shard.rows for shard in before)
        if not fresh:
            return IngestResult(0, 0, total)
        Dataset(dataset_uri).declare("images", declaration)
        twins = _duplicates(source, fresh)
        jobs = []
        for index, part in enumerate(cut(fresh, shard_rows, shard_bytes), start=len(before)):
            same = {item.name: twins[item.name] for item in part if item.name in twins}
            state = digest_json([[asdict(item) for item in part], same, sorted(ids), source.metadata()])
            jobs.append(_Job(f"{index:06d}", part, same, recipe(declaration, {"source": state})))
        shards = _run(jobs, source, dataset_uri, ids, max_pixels, min_side, seen.number)
        added = sum(shard.rows for shard in shards)
        rejected = len(fresh) - added
        if not added and not before:
            reasons = Counter(row["reason"] for row in Dataset(dataset_uri).read("rejected", "000000").to_pylist())
            for shard in shards:
                for group in ("images", "rejected"):
                    store.delete(f"{group}/{shard.name}.parquet")
            store.delete("images/group.json")
            raise InputError(f"{source_uri}: none of {len(fresh)} files is a picture ({reasons.most_common(1)[0][0]})")
        description = {
            "schema": SCHEMA_VERSION,
            "kind": "pictures",
            "shards": [asdict(shard) for shard in [*before, *shards]],
            "sources": seen.sources,
        }
        store.put("dataset.json", json.dumps(description, indent=1).encode() + b"\n")
        _forget(Dataset(dataset_uri), seen.number, before, {item.name for item in fresh if item.name in met.rejected})
    return IngestResult(added, rejected, total + added)


@dataclass(frozen=True)
class Met:
    """Files of a source that a dataset has looked at: taken, by name; rejected, by name with their size then, in bytes.

    A size of None, from before sizes were kept, stands for any.
    """

    taken: set[str]
    rejected: dict[str, int | None]

    def see(self, dataset: Dataset, shard: str) -> None:
        """Add what became of the files of a shard."""
        self.taken.update(dataset.read("images", shard, ["source"])["source"].to_pylist())
        for row in dataset.read("rejected", shard).to_pylist():
            self.rejected[row["source"]] = row.get("size")

    def fresh(self, items: Sequence[Item]) -> list[Item]:
        """Those not met, and those rejected that are no longer as they were: they may have been half copied."""
        return [
            item
            for item in items
            if item.name not in self.taken and self.rejected.get(item.name, -1) not in (item.size, None)
        ]


@dataclass(frozen=True)
class _Seen:
    """A dataset as an ingest finds it, and what of its source is new there. number: of the source among `sources`."""

    description: bytes | None
    shards: list[ShardInfo]
    sources: list[dict[str, Any]]
    number: int
    met: Met
    ids: set[str]
    fresh: list[Item]


def _description(dataset_uri: str) -> bytes | None:
    store = open_store(dataset_uri)
    return store.read("dataset.json") if store.exists("dataset.json") else None


def _look(source: Source, items: Sequence[Item], dataset_uri: str) -> _Seen:
    """Raises InputError for a dataset of sets."""
    description = _description(dataset_uri)
    dataset = Dataset.open(dataset_uri) if description else None
    if dataset and dataset.kind != "pictures":
        raise InputError(f"{dataset_uri}: a dataset of {dataset.kind}; pictures are ingested into one of pictures")
    sources: list[dict[str, Any]] = list(dataset.description["sources"]) if dataset else []
    address = {"uri": source.uri if source.uri.startswith("s3://") else open_store(source.uri).uri}
    if address not in sources:
        sources.append(address)
    number = sources.index(address)
    met, ids = _known(dataset, number) if dataset else (Met(set(), {}), set())
    return _Seen(description, dataset.shards if dataset else [], sources, number, met, ids, met.fresh(items))


@dataclass(frozen=True)
class _Job:
    shard: str
    items: list[Item]
    twins: dict[str, str]
    recipe: str


def _known(dataset: Dataset, source: int) -> tuple[Met, set[str]]:
    """What the dataset has met of the source, and the ids of all its pictures."""
    met = Met(set(), {})
    ids: set[str] = set()
    for shard in dataset.shards:
        ids.update(dataset.read("images", shard.name, ["id"])["id"].to_pylist())
        if shard.source == source:
            met.see(dataset, shard.name)
    return met, ids


def _forget(dataset: Dataset, source: int, before: Sequence[ShardInfo], names: set[str]) -> None:
    """Take rejected files that were looked at once more out of what is told of earlier shards."""
    for shard in before if names else ():
        if shard.source != source:
            continue
        rejected = dataset.read("rejected", shard.name)
        stays = [name not in names for name in rejected["source"].to_pylist()]
        kept = rejected.filter(pa.array(stays, pa.bool_()))
        if kept.num_rows < rejected.num_rows:
            made = dataset.footer("rejected", shard.name).recipe
            write_shard(dataset.store, "rejected", shard.name, kept, [kept.num_rows], made)


def _duplicates(source: Source, items: Sequence[Item]) -> dict[str, str]:
    """Items equal to an earlier one → that one's name. Only files of equal size can be equal, so only they are read."""
    import ray

    sizes = Counter(item.size for item in items)
    suspects = [asdict(item) for item in items if sizes[item.size] > 1]
    if not suspects:
        return {}

    def hashed(row: dict[str, Any]) -> dict[str, Any]:
        return {"name": row["name"], "id": picture_id(source.read(Item(**row))[0])}

    first: dict[str, str] = {}
    twins: dict[str, str] = {}
    rows = ray.data.from_items(suspects).map(hashed, num_cpus=0.5).take_all()
    for row in sorted(rows, key=lambda row: str(row["name"])):
        if first.setdefault(row["id"], row["name"]) != row["name"]:
            twins[row["name"]] = first[row["id"]]
    return twins


def _run(
    jobs: Sequence[_Job],
    source: Source,
    dataset_uri: str,
    ids: set[str],
    max_pixels: int,
    min_side: int,
    number: int,
) -> list[ShardInfo]:
    import ray

    target = Dataset(dataset_uri)
    rows: dict[str, int] = {}
    waiting = []
    for job in jobs:
        name = f"images/{job.shard}.parquet"
        footer = target.footer("images", job.shard) if target.store.exists(name) else None
        if footer and footer.recipe == job.recipe:
            rows[job.shard] = footer.rows
        else:
            waiting.append(job)
    known = ray.put(ids)
    metadata = source.metadata()

    def write(row: dict[str, Any]) -> dict[str, Any]:
        job = waiting[row["id"]]
        return {"shard": job.shard, "rows": _write(job, source, metadata, target, ray.get(known), max_pixels, min_side)}

    with progress("ingest", sum(len(job.items) for job in waiting), "files") as advance:
        if waiting:
            sizes = {job.shard: len(job.items) for job in waiting}
            dataset = ray.data.range(len(waiting), override_num_blocks=len(waiting)).map(write, num_cpus=1)
            for row in dataset.iter_rows():
                rows[row["shard"]] = row["rows"]
                advance(sizes[row["shard"]])
    return [ShardInfo(job.shard, rows[job.shard], number) for job in jobs]


def _write(
    job: _Job,
    source: Source,
    metadata: Mapping[str, Mapping[str, str]],
    target: Dataset,
    known: set[str],
    max_pixels: int,
    min_side: int,
) -> int:
    def row_of(item: Item) -> dict[str, Any]:
        named = {"source": item.name, "size": item.size}
        if item.name in job.twins:
            return {**named, "reason": f"same bytes as {job.twins[item.name]}"}
        raw, said = source.read(item)
        identity = picture_id(raw)
        if identity in known:
            return {**named, "reason": f"in the dataset already, as {identity}"}
        try:
            picture = normalize(raw, max_pixels, min_side)
            said = {**said, **metadata.get(item.name, {})}
            return {"id": identity, "picture": picture, "source": item.name, **_pair(source, said), **_words(said)}
        except Rejected as error:
            return {**named, "reason": str(error)}

    with ThreadPoolExecutor(READERS) as pool:
        found = list(pool.map(row_of, job.items))
    kept = [row for row in found if "picture" in row]
    pictures: list[Picture] = [row.pop("picture") for row in kept]
    for row, picture in zip(kept, pictures, strict=True):
        row.update(image=picture.encoded, width=picture.width, height=picture.height)
    rejected = pa.Table.from_pylist([row for row in found if "reason" in row], REJECTED)
    # The images shard comes last: it is what says that both are there.
    write_shard(target.store, "rejected", job.shard, rejected, [rejected.num_rows], job.recipe)
    table = pa.Table.from_pylist(kept, IMAGES)
    write_shard(target.store, "images", job.shard, table, cut_row_groups(pictures), job.recipe)
    return len(kept)


def _words(said: Mapping[str, Any]) -> dict[str, str | None]:
    return {key: said.get(key) for key in ("author", "licence", "text")}


def _pair(source: Source, said: Mapping[str, Any]) -> dict[str, Any]:
    """Columns for a stereo pair's right picture and true disparity, where metadata.csv names them."""
    pair: dict[str, Any] = {}
    for key in ("right", "disparity"):
        if key in said:
            try:
                pair[key] = source.store.read(said[key])
            except FileNotFoundError:
                raise Rejected(f"metadata.csv names {said[key]} as its {key}, which is not there") from None
    if "disparity" in pair:
        pair["disparity_scale"] = float(said.get("disparity_scale", 1.0))
    return pair
