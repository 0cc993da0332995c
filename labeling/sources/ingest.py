"""What becomes of the items of a source: rows of the images group, or rejected with a reason."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import pyarrow as pa

from labeling.dataset import (
    IMAGE_SCHEMA,
    IMAGES,
    REJECTED,
    REJECTED_SCHEMA,
    Dataset,
    Footer,
    digest_column,
    digest_json,
    in_parallel,
    recipe,
    write_shard,
)
from labeling.sources.cutting import cut_row_groups
from labeling.sources.facts import BESIDE, NOTHING, Described, Naming, describe
from labeling.sources.folder import read_companions
from labeling.sources.items import Item, Reading, Trouble, items_of, printable
from labeling.sources.normalize import EncodedImage, Rejected, image_id, normalize
from labeling.sources.seen import SEEN_SCHEMA, write_seen
from labeling.sources.source import Source
from model.inputs import InputError

VERSION = 1


@dataclass(frozen=True)
class Limits:
    """What an image must satisfy: at most so many pixels, and so many on the shorter side."""

    max_pixels: int
    min_side: int


@dataclass(frozen=True)
class ShardTask:
    """A shard to write: its items (ITEM_SCHEMA), and troubles that are listed among what it rejects."""

    shard: str
    items: pa.Table
    troubles: Sequence[Trouble] = ()

    def recipe(self, declaration: Mapping[str, Any], naming: Naming) -> str:
        """Digest of all that the shard depends on, so that a rerun knows a finished one."""
        digests = [digest_column(self.items[name]) for name in self.items.column_names]
        troubles = [asdict(trouble) for trouble in self.troubles]
        return recipe(declaration, {"source": digest_json([digests, troubles, asdict(naming)])})


@dataclass
class ShardResult:
    """Rows and rejected rows of a shard; kept: columns of the source that went to `metadata` alone; footer: of the
    shard's images, where they were written just now."""

    shard: str
    rows: int
    rejected: int
    kept: set[str] = field(default_factory=set)
    footer: Footer | None = None


@dataclass(frozen=True)
class Ingestion:
    """What is the same for all shards of an ingest. threads: that decode pictures, where processes do not."""

    source: Source
    dataset: Dataset
    limits: Limits
    declaration: Mapping[str, Any]
    threads: int = 1

    def ingest(self, tasks: Sequence[ShardTask]) -> list[ShardResult]:
        """Read, check and write the items of shards, which are read together where they lie in one file.

        Raises RuntimeError for a shard of which items were not read, once the others are written: it would lack them.
        """
        items = {task.shard: items_of(task.items) for task in tasks}
        shard_of = {id(item): shard for shard, some in items.items() for item in some}
        looked: dict[str, list[Looked]] = {task.shard: [] for task in tasks}
        by_name = {task.shard: task for task in tasks}
        results: list[ShardResult] = []
        for one in self.look(self.source.read([item for some in items.values() for item in some])):
            shard = shard_of[id(one.item)]
            looked[shard].append(one)
            if len(looked[shard]) == len(items[shard]):
                results.append(self._write(by_name[shard], items[shard], looked.pop(shard)))
        for shard in looked:
            if items[shard]:
                count = len(items[shard]) - len(looked[shard])
                raise RuntimeError(f"{self.source.uri}: {count} items of shard {shard} were not read")
            results.append(self._write(by_name[shard], [], []))
        return results

    def look(self, readings: Iterable[Reading]) -> Iterator[Looked]:
        """What each reading becomes, in the order of the readings."""
        return in_parallel(self._look, readings, self.threads)

    def _look(self, reading: Reading) -> Looked:
        item = reading.item
        seen: dict[str, Any] = {
            "name": item.name,
            "file": printable(item.file) if item.place is not None else None,
            "size": item.size,
            "tag": item.tag,
            "taken": False,
        }
        if reading.reason:
            return Looked(item, seen, reason=reading.reason)
        seen["id"] = image_id(reading.raw)
        # An archive may come from anyone: only a table of the folder names files that belong to a row.
        facts = {**reading.facts, **{key: value for key, value in item.described.items() if key not in BESIDE}}
        described = describe(facts, self.source.naming) if facts else NOTHING
        try:
            companions = read_companions(self.source.store, item.described)
            image = normalize(reading.raw, self.limits.max_pixels, self.limits.min_side)
        except InputError:  # of the store, as credentials that have expired, and no fault of the picture
            raise
        except (Rejected, ValueError) as error:
            return Looked(item, seen, reason=str(error))
        seen["said"] = _said(described, companions) if facts or companions else _NOTHING_SAID
        row = {
            "id": seen["id"],
            "image": image.encoded,
            "width": image.width,
            "height": image.height,
            "source": item.name,
            **companions,
            **described.columns,
        }
        return Looked(item, seen, row, kept=described.kept)

    def _write(self, task: ShardTask, items: Sequence[Item], looked: Sequence[Looked]) -> ShardResult:
        """Write what became of the items of a shard; of equal ones the first one stays."""
        order = {id(item): number for number, item in enumerate(items)}
        rows: dict[str, dict[str, Any]] = {}
        seen, rejected = [], [{"source": one.name, "size": one.size, "reason": one.reason} for one in task.troubles]
        kept: set[str] = set()
        for one in sorted(looked, key=lambda one: order[id(one.item)]):
            reason = one.reason
            if one.row is not None:
                first = rows.setdefault(one.row["id"], one.row)
                reason = "" if first is one.row else same_bytes(first["source"])
                kept |= one.kept
            if reason:
                rejected.append({"source": one.item.name, "size": one.item.size, "reason": reason})
            seen.append({**one.seen, "taken": not reason})
        seen += [{"name": one.name, "size": one.size, "tag": "", "taken": False} for one in task.troubles]
        shard_recipe = task.recipe(self.declaration, self.source.naming)
        footer = write_images(
            self.dataset,
            task.shard,
            pa.Table.from_pylist(list(rows.values()), IMAGE_SCHEMA),
            pa.Table.from_pylist(rejected, REJECTED_SCHEMA),
            pa.Table.from_pylist(seen, SEEN_SCHEMA),
            shard_recipe,
        )
        return ShardResult(task.shard, len(rows), len(rejected), kept, footer)


@dataclass(frozen=True)
class Looked:
    """What became of an item: a row of images, or a reason. seen: its row of SEEN_SCHEMA."""

    item: Item
    seen: dict[str, Any]
    row: dict[str, Any] | None = None
    reason: str = ""
    kept: frozenset[str] = frozenset()


def same_bytes(name: str) -> str:
    """The reason of an item that equals an earlier one."""
    return f"same bytes as {name}"


def write_images(
    dataset: Dataset, shard: str, images: pa.Table, rejected: pa.Table, seen: pa.Table, shard_recipe: str
) -> Footer:
    """Write the three files of a shard, that of images last: it says that all are there. The footer of images."""
    write_seen(dataset, shard, seen, shard_recipe)
    write_shard(dataset.store, REJECTED, shard, rejected, [rejected.num_rows], shard_recipe)
    return write_pictures(dataset, shard, images, shard_recipe)


def write_pictures(dataset: Dataset, shard: str, images: pa.Table, shard_recipe: str) -> Footer:
    """Write the images of a shard (IMAGE_SCHEMA); the footer."""
    sizes = zip(images["image"], images["width"].to_pylist(), images["height"].to_pylist(), strict=True)
    row_groups = cut_row_groups(
        [[EncodedImage(cast(bytes, memoryview(one.as_buffer())), *size)] for one, *size in sizes]
    )
    return write_shard(dataset.store, IMAGES, shard, images, row_groups, shard_recipe)


def _said(described: Described, companions: Mapping[str, Any]) -> str:
    """Digest of what is said of an item and of the files that belong to it."""
    digests = {key: image_id(value) if isinstance(value, bytes) else value for key, value in companions.items()}
    return digest_json([described.columns, digests])


_NOTHING_SAID = _said(NOTHING, {})
