"""The manifest of a run: what it is trained on, and in which lanes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from labeling.dataset import Dataset, LocalStore, Store
from model.inputs import InputError, one_line
from training.plan.pinned_shards import Eligible, ShardPin, Shards
from training.plan.streams import Stream
from training.seeded_generator import SeededGenerator

if TYPE_CHECKING:
    import pyarrow as pa

MANIFEST, FIRST_MANIFEST = "manifest.arrow", "manifest.json"  # as runs have it, and as those of version 1 do
_VERSION = 2
_HEADER = b"manifest"


@dataclass(frozen=True)
class SourcePin:
    """A dataset as the run uses it.

    declarations: group → what it declares (labeler, version, parameters, weights). selection: where the source has a
    condition on rows, it ("where"), how many rows it is true of ("rows"), and the fingerprint of these; the bits are
    among those of `shards`.
    """

    dataset: str
    kind: str
    declarations: dict[str, dict[str, Any]]
    shards: Shards
    selection: dict[str, Any] | None = None


@dataclass(frozen=True)
class Manifest:
    """The content of every shard used, and which rows are eligible for each task.

    lanes: into which the samples of a step are divided; 0 for the order of samples of version 1, which has none.
    """

    sources: dict[str, SourcePin]
    streams: list[Stream]
    lanes: int = 0

    def write(self, store: Store) -> None:
        """Write it as the run's manifest."""
        store.put(MANIFEST, self.to_bytes())

    @classmethod
    def read(cls, store: Store) -> Manifest:
        """Read a run's manifest. Raises InputError where it is gone, damaged, or of an unknown version."""
        import pyarrow as pa

        remedy = f"restore it, or remove {store.uri} to begin again"
        name = MANIFEST if store.exists(MANIFEST) else FIRST_MANIFEST
        try:
            if name == FIRST_MANIFEST:
                return cls.from_json(store.read(name))
            if isinstance(store, LocalStore):
                return cls.from_buffer(pa.memory_map(str(store.root / name)))
            return cls.from_buffer(pa.BufferReader(store.read(name)))
        except InputError:
            raise
        except FileNotFoundError:
            raise InputError(f"{store.uri}/{MANIFEST}: the run's manifest is gone; {remedy}") from None
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:  # Arrow's are ValueErrors, too
            raise InputError(
                f"{store.uri}/{name}: the run's manifest is damaged ({one_line(error, 100)}); {remedy}"
            ) from None

    @classmethod
    def find(cls, store: Store) -> Manifest | None:
        """Read a run's; None where it is absent or damaged."""
        try:
            return cls.read(store)
        except InputError:
            return None

    def to_bytes(self) -> bytes:
        """An Arrow IPC file of one row, whose cells are the columns of each source."""
        import pyarrow as pa

        cells: dict[str, pa.Array] = {}
        sources = {}
        for number, (name, pin) in enumerate(self.sources.items()):
            shards, keys = pin.shards, list(pin.shards.eligible)
            cells |= {
                f"{number}.names": shards.names,
                f"{number}.group_starts": pa.array(shards.group_starts),
                f"{number}.group_rows": pa.array(shards.group_rows),
                f"{number}.row_starts": pa.array(shards.row_starts),
                f"{number}.views": pa.array(shards.views),
            }
            cells |= {f"{number}.content.{group}": digests for group, digests in shards.content.items()}
            for key in keys:
                if (eligible := shards.eligible[key]) is not None:
                    cells[f"{number}.bits.{key}"] = pa.array(eligible.bits)
                    cells[f"{number}.counts.{key}"] = pa.array(eligible.counts)
            facts = {"dataset": pin.dataset, "kind": pin.kind, "declarations": pin.declarations, "keys": keys}
            if pin.selection:
                facts["selection"] = pin.selection
            sources[name] = facts | {"groups": list(shards.content)}
        header = {"version": _VERSION, "lanes": self.lanes, "sources": sources}
        header["streams"] = [asdict(stream) for stream in self.streams]
        lists = [pa.LargeListArray.from_arrays([0, len(cell)], cell) for cell in cells.values()]
        batch = pa.record_batch(lists, list(cells)).replace_schema_metadata({_HEADER: json.dumps(header)})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
        return sink.getvalue().to_pybytes()

    @classmethod
    def from_buffer(cls, file: pa.NativeFile) -> Manifest:
        """Back from `to_bytes`, without a copy of what the file holds in memory or maps."""
        import pyarrow as pa

        reader = pa.ipc.open_file(file)
        header = json.loads(reader.schema.metadata[_HEADER])
        _check_version(header["version"], _VERSION)
        batch = reader.get_batch(0)
        cells = {name: batch.column(place).values for place, name in enumerate(batch.schema.names)}
        arrays = {name: cell.to_numpy() for name, cell in cells.items() if not pa.types.is_string(cell.type)}
        sources = {}
        for number, (name, facts) in enumerate(header["sources"].items()):
            bits = {key: arrays.get(f"{number}.bits.{key}") for key in facts["keys"]}
            shards = Shards(
                cells[f"{number}.names"],
                {group: cells[f"{number}.content.{group}"] for group in facts["groups"]},
                arrays[f"{number}.group_starts"],
                arrays[f"{number}.group_rows"],
                arrays[f"{number}.row_starts"],
                {
                    key: None if each is None else Eligible(each, arrays[f"{number}.counts.{key}"])
                    for key, each in bits.items()
                },
                arrays[f"{number}.views"],
            )
            described = (facts["dataset"], facts["kind"], facts["declarations"])
            sources[name] = SourcePin(*described, shards, facts.get("selection"))
        return cls(sources, [Stream(**stream) for stream in header["streams"]], header["lanes"])

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """The manifest of a run of version 1. Raises InputError for another version."""
        values = json.loads(text)
        _check_version(values["version"], 1)
        sources = {
            name: SourcePin(**{**source, "shards": Shards.of(ShardPin(**shard) for shard in source["shards"])})
            for name, source in values["sources"].items()
        }
        return cls(sources, [Stream(**stream) for stream in values["streams"]])

    def at_addresses(self, datasets: Mapping[str, str]) -> Manifest:
        """Point to datasets that have moved: source → address of its dataset now. The shards stay the same."""
        sources = {name: replace(pin, dataset=Dataset(datasets[name]).uri) for name, pin in self.sources.items()}
        return replace(self, sources=sources)

    def split(self, share: float, seed: int) -> tuple[Manifest, Manifest]:
        """(rows to train on, validation rows): the second has about this share of the rows of every source.

        A row is on the same side for all tasks, or one task would train on an image that another validates on.
        Raises InputError when one side is empty.
        """
        sides: list[dict[str, SourcePin]] = [{}, {}]
        for name, source in self.sources.items():
            shards = source.shards
            # Another seed than "held out" would move rows of existing runs to the other side.
            generators = (SeededGenerator(seed, "held out", name, shards.name(number)) for number in range(len(shards)))
            held_out = [np.packbits(each.uniforms(shards.rows(n)) < share) for n, each in enumerate(generators)]
            for sources, bits in zip(sides, ([~each for each in held_out], held_out), strict=True):
                sources[name] = replace(source, shards=shards.kept(bits))
        training, validation = (
            replace(self, sources=sources, streams=counted(sources, self.streams)) for sources in sides
        )
        for manifest, purpose in ((validation, "for validation"), (training, "to train on")):
            if not any(stream.rows for stream in manifest.streams):
                most = max(stream.rows for stream in self.streams)
                raise InputError(
                    f"validation.share {share:g} of {most} rows leaves none {purpose}; change it, or set it to 0"
                )
        return training, validation

    def counts(self) -> dict[str, int]:
        """Eligible rows of each task, over all sources."""
        counts: dict[str, int] = {}
        for stream in self.streams:
            counts[stream.task] = counts.get(stream.task, 0) + stream.rows
        return counts


def counted(sources: Mapping[str, SourcePin], streams: Iterable[Stream]) -> list[Stream]:
    """The streams, each with the number of rows that are eligible for it."""
    return [
        replace(stream, rows=int(sources[stream.source].shards.counts(stream.key).sum(dtype=np.int64)))
        for stream in streams
    ]


def _check_version(version: int, known: int) -> None:
    if version != known:
        raise InputError(f"the run's manifest has version {version}; begin a new run")
