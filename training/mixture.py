"""What a run is trained on: datasets, the tasks each serves, and a manifest that pins every shard used."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labeling.dataset import CAMERAS, IMAGES, RECIPE_FIELDS, TEXT, Dataset, Footer, ShardInfo, entry_columns
from model.conditions import CONTENT_COLUMNS
from model.inputs import InputError
from model.prompts import DEGRADED, RAYS, Task, find_task
from training.config import SourceConfig
from training.seeded_generator import SeededGenerator

_READ_THREADS = 16
_MANIFEST_VERSION = 1


@dataclass(frozen=True)
class Stream:
    """One task served by one source: what samples are drawn from. rows: how many are eligible."""

    source: str
    task: str
    weight: float
    size: int
    rows: int = 0

    @property
    def latents(self) -> str:
        """The group of the pictures' latents."""
        return f"latents-{self.size}"

    @property
    def condition(self) -> str | None:
        """The group of the condition's latents, None where frame 1 is not stored."""
        label = find_task(self.task).label
        return label and f"{self.latents}-{label}"

    @property
    def groups(self) -> tuple[str, ...]:
        """Every group that a sample of this stream is read or judged from."""
        condition = find_task(self.task).condition
        groups = [self.latents, TEXT]
        if condition == DEGRADED:
            groups.append(IMAGES)
        elif condition == RAYS:
            groups.append(CAMERAS)
        elif condition is not None:
            groups += [f"{self.latents}-{condition}", *([condition] if condition in CONTENT_COLUMNS else [])]
        return tuple(groups)


@dataclass(frozen=True)
class ShardPin:
    """One shard as the run uses it.

    content: of every group used. eligible: task@size → hex bits over the rows, None where all are.
    views: views of each row of a dataset of sets, else empty.
    """

    name: str
    row_groups: list[int]
    content: dict[str, str]
    eligible: dict[str, str | None]
    views: list[int] = field(default_factory=list)

    def eligible_counts(self, stream: Stream) -> list[int]:
        """How many rows of each row group the stream may use."""
        if self.eligible[_key(stream)] is None:
            return self.row_groups
        starts = np.cumsum([0, *self.row_groups])
        kept = np.concatenate([[0], np.cumsum(self.mask(stream))])
        return [int(count) for count in np.diff(kept[starts])]

    def mask(self, stream: Stream) -> NDArray[np.bool_]:
        """(rows,) which rows the stream may use."""
        rows = sum(self.row_groups)
        bits = self.eligible[_key(stream)]
        if bits is None:
            return np.ones(rows, bool)
        return np.unpackbits(np.frombuffer(bytes.fromhex(bits), np.uint8), count=rows).astype(bool)


@dataclass(frozen=True)
class SourcePin:
    """A dataset as the run uses it; declarations: group → what it declares (labeler, version, parameters, weights)."""

    dataset: str
    kind: str
    declarations: dict[str, dict[str, Any]]
    shards: list[ShardPin]


@dataclass(frozen=True)
class Manifest:
    """The content of every shard used, and which rows are eligible for each task."""

    sources: dict[str, SourcePin]
    streams: list[Stream]

    def to_json(self) -> str:
        """As a JSON document."""
        return json.dumps({"version": _MANIFEST_VERSION, **asdict(self)}, separators=(",", ":"), sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Back from `to_json`. Raises InputError for another version."""
        values = json.loads(text)
        if values["version"] != _MANIFEST_VERSION:
            raise InputError(f"the run's manifest has version {values['version']}; begin a new run")
        sources = {
            name: SourcePin(**{**source, "shards": [ShardPin(**shard) for shard in source["shards"]]})
            for name, source in values["sources"].items()
        }
        return cls(sources, [Stream(**stream) for stream in values["streams"]])

    def at_addresses(self, datasets: Mapping[str, str]) -> Manifest:
        """The same shards in datasets that may have moved: source → address of its dataset now."""
        sources = {name: replace(pin, dataset=Dataset(datasets[name]).uri) for name, pin in self.sources.items()}
        return Manifest(sources, self.streams)

    def split(self, share: float, seed: int) -> tuple[Manifest, Manifest]:
        """(rows to train on, validation rows): the second has about this share of the rows of every source.

        A row is on the same side for all tasks, or one task would train on an image that another validates on.
        Raises InputError when one side is empty.
        """
        sides: dict[bool, dict[str, SourcePin]] = {False: {}, True: {}}
        for name, source in self.sources.items():
            streams = [stream for stream in self.streams if stream.source == name]
            shards: dict[bool, list[ShardPin]] = {False: [], True: []}
            for shard in source.shards:
                # Another seed than "held out" would move rows of existing runs to the other side.
                generator = SeededGenerator(seed, "held out", name, shard.name)
                validates = generator.uniforms(sum(shard.row_groups)) < share
                for side in sides:
                    eligible = {_key(stream): _bits(shard.mask(stream) & (validates == side)) for stream in streams}
                    shards[side].append(replace(shard, eligible=eligible))
            for side in sides:
                sides[side][name] = replace(source, shards=shards[side])
        training, validation = (Manifest(sides[side], _counted(sides[side], self.streams)) for side in (False, True))
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


def build_manifest(mixture: Mapping[str, SourceConfig], size: int) -> Manifest:
    """Pin the shards of a mixture and count the rows eligible for each task.

    A row is eligible when nothing that the task needs of it is in error, it has a prompt for the task, its boxes,
    segmentation or pose show something, and its picture was not removed at the source. Raises InputError for an unknown
    task, a group or shards that are not there, parts made with different codecs or text encoders, and a mixture
    without a single eligible row.
    """
    sources: dict[str, SourcePin] = {}
    streams: list[Stream] = []
    for name, source in mixture.items():
        own = [Stream(name, task, weight, source.size or size) for task, weight in source.tasks.items()]
        dataset = Dataset.open(source.dataset)
        for stream in own:
            _check_task(find_task(stream.task), dataset)
        sources[name] = _pin(dataset, own)
        streams += _counted(sources, own)
    if not any(stream.rows for stream in streams):
        raise InputError(f"no row of {', '.join(s.dataset for s in mixture.values())} is eligible for any of the tasks")
    _check_same_encoders(sources)
    return Manifest(sources, streams)


def _counted(sources: Mapping[str, SourcePin], streams: Iterable[Stream]) -> list[Stream]:
    """The streams, each with the number of rows that are eligible for it."""
    return [
        replace(stream, rows=sum(sum(shard.eligible_counts(stream)) for shard in sources[stream.source].shards))
        for stream in streams
    ]


def _check_task(task: Task, dataset: Dataset) -> None:
    """Raise InputError for a task that cannot be trained, or that needs another kind of dataset."""
    if task.condition is None and task.name != "text2image":
        raise InputError(f"task {task.name!r} cannot be trained yet; take it out of the mixture")
    needed = "sets" if task.condition == RAYS else "pictures"
    if dataset.kind != needed:
        raise InputError(f"{dataset.uri}: a dataset of {dataset.kind}, but task {task.name!r} needs one of {needed}")


def _pin(dataset: Dataset, streams: list[Stream]) -> SourcePin:
    """Pin all shards of a dataset for these streams. Raises InputError for groups or shards that are missing."""
    groups = list(dict.fromkeys(group for stream in streams for group in stream.groups))
    declarations = {}
    footers = dataset.all_footers(groups)
    for group in groups:
        declaration = dataset.declaration(group)
        if declaration is None and not footers[group]:
            users = ", ".join(dict.fromkeys(stream.task for stream in streams if group in stream.groups))
            raise InputError(f"{dataset.uri}: no group {group!r}, which {users} needs; make it with `label`")
        missing = [shard.name for shard in dataset.shards if shard.name not in footers[group]]
        if missing:
            raise InputError(
                f"{dataset.uri}: group {group!r} lacks {len(missing)} of {len(dataset.shards)} shards "
                f"({missing[0]} …); finish it with `label`"
            )
        declarations[group] = {key: (declaration or {}).get(key) for key in RECIPE_FIELDS}

    def pin(shard: ShardInfo) -> ShardPin:
        return _pin_shard(dataset, shard.name, {group: footers[group][shard.name] for group in groups}, streams)

    with ThreadPoolExecutor(_READ_THREADS) as pool:
        return SourcePin(dataset.uri, dataset.kind, declarations, list(pool.map(pin, dataset.shards)))


def _pin_shard(dataset: Dataset, shard: str, footers: Mapping[str, Footer], streams: Iterable[Stream]) -> ShardPin:
    """Pin one shard: its content, and the rows that are eligible for each stream. footers: by group."""
    row_groups = next(iter(footers.values())).row_groups
    for group, footer in footers.items():
        if footer.row_groups != row_groups:
            raise InputError(f"{dataset.uri}/{group}/{shard}: row groups unlike the other groups'; label it again")
    without_error = {group: _without_error(dataset, group, shard, footer) for group, footer in footers.items()}
    sets = dataset.has_sets
    prompts = _prompted(dataset, shard, sets)
    eligible: dict[str, str | None] = {}
    views: list[int] = []
    for stream in streams:
        mask = np.logical_and.reduce([without_error[group] for group in stream.groups])
        mask &= np.array([stream.task in tasks for tasks in prompts], bool)
        mask[dataset.removed_rows(shard)] = False
        label = find_task(stream.task).condition
        if label in CONTENT_COLUMNS:
            column = dataset.read(label, shard, [CONTENT_COLUMNS[label]])[CONTENT_COLUMNS[label]]
            mask &= np.array([len(value) > 0 if value.is_valid else False for value in column], bool)
        if sets:
            column = dataset.read(stream.latents, shard, ["latent_height"])["latent_height"]
            views = [len(value) if value.is_valid else 0 for value in column]
            mask &= np.array(views) > 0
        eligible[_key(stream)] = _bits(mask)
    content = {group: footer.content for group, footer in footers.items()}
    return ShardPin(shard, row_groups, content, eligible, views)


def _without_error(dataset: Dataset, group: str, shard: str, footer: Footer) -> NDArray[np.bool_]:
    """(rows,) which rows of a group's shard are not in error."""
    if footer.errors == 0:
        return np.ones(footer.rows, bool)
    errors = dataset.read(group, shard, ["error"])["error"]
    return np.array([not value.is_valid for value in errors], bool)


def _prompted(dataset: Dataset, shard: str, sets: bool) -> list[set[str]]:
    """For each row the tasks it has a prompt for (of a set: that its first view has); embeddings are not read."""
    rows = dataset.read(TEXT, shard, entry_columns(sets, "task"))["entries"].to_pylist()
    firsts = [(row[0] if row else None) if sets else row for row in rows]
    return [{entry["task"] for entry in entries or ()} for entries in firsts]


def _check_same_encoders(sources: Mapping[str, SourcePin]) -> None:
    """Raise InputError unless all latents are of one codec and all texts of one encoder.

    Otherwise the model would see the same thing encoded in two ways.
    """
    for what, prefix in (("latents", "latents-"), ("text", "text")):
        groups: dict[str, str] = {}  # digest of weights → the first group made with them
        for source in sources.values():
            for group, declaration in source.declarations.items():
                if group.startswith(prefix):
                    groups.setdefault(str(declaration["weights"]), f"{source.dataset}/{group}")
        if len(groups) > 1:
            raise InputError(f"{' and '.join(groups.values())} come from different weights; {what} must be of one kind")


def _bits(mask: NDArray[np.bool_]) -> str | None:
    """(rows,) as ShardPin keeps it."""
    return None if mask.all() else np.packbits(mask).tobytes().hex()


def _key(stream: Stream) -> str:
    return f"{stream.task}@{stream.size}"
