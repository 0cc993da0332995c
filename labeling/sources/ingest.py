"""What becomes of the files of a source: rows of the images group, or rejected with a reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from labeling.dataset import (
    DATASET_FILE,
    IMAGE_SCHEMA,
    IMAGES,
    REJECTED,
    REJECTED_SCHEMA,
    Dataset,
    ShardInfo,
    digest_json,
    recipe,
    write_shard,
)
from labeling.sources.container import Item
from labeling.sources.cutting import cut_row_groups
from labeling.sources.folder import Metadata, read_companions
from labeling.sources.normalize import EncodedImage, Rejected, image_id, normalize
from labeling.sources.source import Source
from model.inputs import InputError

VERSION = 1
THREADS = 8  # that read and decode the items of a shard; decoding releases the interpreter lock


@dataclass(frozen=True)
class Limits:
    """What an image must satisfy: at most so many pixels, and so many on the shorter side."""

    max_pixels: int
    min_side: int


@dataclass(frozen=True)
class SeenFiles:
    """Files of a source that a dataset has looked at: taken, by name; rejected, by name with their size then, in bytes.

    A size of None, from before sizes were kept, stands for any.
    """

    taken: set[str] = field(default_factory=set)
    rejected: dict[str, int | None] = field(default_factory=dict)

    def add_shard(self, dataset: Dataset, shard: str) -> None:
        """Add what became of the files of a shard."""
        self.taken.update(dataset.read(IMAGES, shard, ["source"])["source"].to_pylist())
        for row in dataset.read(REJECTED, shard).to_pylist():
            self.rejected[row["source"]] = row.get("size")

    def new(self, items: Sequence[Item]) -> list[Item]:
        """Items not seen, and rejected ones whose size has changed: they may have been copied halfway."""
        return [
            item
            for item in items
            if item.name not in self.taken and self.rejected.get(item.name, -1) not in (item.size, None)
        ]


@dataclass(frozen=True)
class Survey:
    """A dataset before an ingest, and what of a source is new there.

    description: the bytes of dataset.json, None where there is no dataset yet; source_number: index of the source
    in `sources`; image_ids: of all images of the dataset; new: items to ingest.
    """

    description: bytes | None
    shards: list[ShardInfo]
    sources: list[dict[str, Any]]
    source_number: int
    seen: SeenFiles
    image_ids: set[str]
    new: list[Item]


@dataclass(frozen=True)
class ShardTask:
    """A shard to write. twins: name of an item → name of the earlier item that has the same bytes."""

    shard: str
    items: list[Item]
    twins: dict[str, str]
    recipe: str


def survey_dataset(source: Source, items: Sequence[Item], dataset_uri: str) -> Survey:
    """What of a source a dataset does not have yet. Raises InputError for a dataset of sets."""
    description = read_description(dataset_uri)
    if description is None:
        return Survey(None, [], [{"uri": source.address}], 0, SeenFiles(), set(), list(items))
    dataset = Dataset.open(dataset_uri)
    if dataset.has_sets:
        raise InputError(f"{dataset_uri}: a dataset of {dataset.kind}; pictures are ingested into one of pictures")
    sources = list(dataset.description["sources"])
    if {"uri": source.address} not in sources:
        sources.append({"uri": source.address})
    number = sources.index({"uri": source.address})
    seen, ids = SeenFiles(), set()
    for shard in dataset.shards:
        ids.update(dataset.read(IMAGES, shard.name, ["id"])["id"].to_pylist())
        if shard.source == number:
            seen.add_shard(dataset, shard.name)
    return Survey(description, dataset.shards, sources, number, seen, ids, seen.new(items))


def read_description(dataset_uri: str) -> bytes | None:
    """The bytes of dataset.json, None where there is none: they tell whether another job has changed the dataset."""
    try:
        return Dataset(dataset_uri).store.read(DATASET_FILE)
    except FileNotFoundError:
        return None


def plan_shard(
    shard: str,
    items: list[Item],
    twins: Mapping[str, str],
    declaration: Mapping[str, Any],
    known_ids: set[str],
    metadata: Metadata,
) -> ShardTask:
    """The task of one shard; its recipe holds all that the shard depends on, so that a rerun knows a finished one."""
    own_twins = {item.name: twins[item.name] for item in items if item.name in twins}
    state = digest_json([[asdict(item) for item in items], own_twins, sorted(known_ids), metadata])
    return ShardTask(shard, items, own_twins, recipe(declaration, {"source": state}))


def ingest_shard(
    task: ShardTask, source: Source, metadata: Metadata, dataset: Dataset, known_ids: set[str], limits: Limits
) -> int:
    """Read, check and write the items of one shard; the number of its rows."""

    def read(item: Item) -> dict[str, Any]:
        try:
            return _read_row(item, task, source, metadata.get(item.name, {}), known_ids, limits)
        except Rejected as error:
            return {"source": item.name, "size": item.size, "reason": str(error)}

    with ThreadPoolExecutor(THREADS) as pool:
        rows = list(pool.map(read, task.items))
    rejected = pa.Table.from_pylist([row for row in rows if "reason" in row], REJECTED_SCHEMA)
    accepted = [row for row in rows if "reason" not in row]
    images = [[EncodedImage(row["image"], row["width"], row["height"])] for row in accepted]
    # The images shard is written last: it says that both are there.
    write_shard(dataset.store, REJECTED, task.shard, rejected, [rejected.num_rows], task.recipe)
    table = pa.Table.from_pylist(accepted, IMAGE_SCHEMA)
    write_shard(dataset.store, IMAGES, task.shard, table, cut_row_groups(images), task.recipe)
    return len(accepted)


def _read_row(
    item: Item, task: ShardTask, source: Source, described: Mapping[str, str], known_ids: set[str], limits: Limits
) -> dict[str, Any]:
    """A row of the images group; described: what metadata.csv says of the item. Raises Rejected."""
    if item.name in task.twins:
        raise Rejected(f"same bytes as {task.twins[item.name]}")
    raw, facts = source.read(item)
    identity = image_id(raw)
    if identity in known_ids:
        raise Rejected(f"in the dataset already, as {identity}")
    image = normalize(raw, limits.max_pixels, limits.min_side)
    facts = {**facts, **described}
    try:
        companions = read_companions(source.store, facts)
    except FileNotFoundError as error:
        raise Rejected(str(error)) from None
    return {
        "id": identity,
        "image": image.encoded,
        "width": image.width,
        "height": image.height,
        "source": item.name,
        **companions,
        **{key: facts.get(key) for key in ("author", "licence", "text")},
    }


def forget_rejected(dataset: Dataset, shards: Sequence[ShardInfo], names: set[str]) -> None:
    """Remove files that were looked at again from the rejected rows of earlier shards."""
    for shard in shards if names else ():
        rejected = dataset.read(REJECTED, shard.name)
        is_left = [name not in names for name in rejected["source"].to_pylist()]
        left = rejected.filter(pa.array(is_left, pa.bool_()))
        if left.num_rows < rejected.num_rows:
            shard_recipe = dataset.footer(REJECTED, shard.name).recipe
            write_shard(dataset.store, REJECTED, shard.name, left, [left.num_rows], shard_recipe)
