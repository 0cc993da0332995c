"""What a run is trained on: datasets, the tasks each serves, and a manifest that pins every shard used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labeling.dataset import (
    IMAGES,
    RECIPE_FIELDS,
    TEXT,
    Dataset,
    Footer,
    Selection,
    ShardInfo,
    entry_columns,
    select_rows,
    text_group,
)
from model.conditions import CONTENT_COLUMNS
from model.inputs import InputError
from model.pictures import aspect_bucket
from model.prompts import Task, find_task
from training.config import TrainingConfig
from training.plan.manifest import Manifest, SourcePin, counted
from training.plan.pinned_shards import ShardPin, Shards, bits_of
from training.plan.streams import CAPTION, ITEM, SUBJECT, Stream
from training.source_config import SourceConfig

_READ_THREADS = 16
_SIDES = ["latent_height", "latent_width"]


def build_manifest(
    mixture: Mapping[str, SourceConfig],
    size: int,
    lanes: int = 128,
    text_encoder: str | None = None,
    codec: str | None = None,
) -> Manifest:
    """Pin the shards of a mixture and count the rows eligible for each task.

    lanes, text_encoder, codec: as `TrainingConfig` has them.

    A row is eligible when nothing that the task needs of it is in error, it has a prompt for the task, its boxes,
    segmentation or pose show something, its picture was not removed at the source, and its source's `where` is true of
    it; for a task with references its pictures must be several, of one size, all captioned, and a subject's named.
    Raises InputError for an unknown task, a group or shards that are not there, parts made with different codecs or
    text encoders, a condition that selects no row, and a mixture without a single eligible row.
    """
    sources: dict[str, SourcePin] = {}
    streams: list[Stream] = []
    for name, source in mixture.items():
        dataset = Dataset.open(source.dataset)
        own = [with_text_group(Stream.of(name, source, task, size), dataset) for task in source.tasks]
        for stream in own:
            _check_task(find_task(stream.task), dataset)
        sources[name] = _pin(dataset, own, source.where)
        sources[name].declarations.update(_online(source, own[0].latents, text_encoder, codec))
        streams += counted(sources, own)
    if not any(stream.rows for stream in streams):
        raise InputError(f"no row of {', '.join(s.dataset for s in mixture.values())} is eligible for any of the tasks")
    _check_same_encoders(sources)
    return Manifest(sources, streams, lanes)


def with_text_group(stream: Stream, dataset: Dataset) -> Stream:
    """The stream with the group that its stored prompts are in: that of its task, or the one of all where only that is
    there."""
    group = text_group(stream.task)
    if stream.text == "online" or (dataset.declaration(group) is None and dataset.declaration(TEXT) is not None):
        return stream
    return replace(stream, text_group=group)


def _check_task(task: Task, dataset: Dataset) -> None:
    """Raise InputError for a task that cannot be trained, or that needs another kind of dataset."""
    needed = "sets" if task.is_of_sets else "pictures"
    if dataset.kind != needed:
        raise InputError(f"{dataset.uri}: a dataset of {dataset.kind}, but task {task.name!r} needs one of {needed}")


def _pin(dataset: Dataset, streams: list[Stream], where: str | None) -> SourcePin:
    """Pin all shards of a dataset for these streams. Raises InputError for groups or shards that are missing."""
    selection = _select(dataset, where) if where is not None else None
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
        of_shard = {group: footers[group][shard.name] for group in groups}
        return _pin_shard(dataset, shard.name, of_shard, streams, selection)

    with ThreadPoolExecutor(_READ_THREADS) as pool:
        shards = Shards.of(pool.map(pin, dataset.shards))
    return SourcePin(dataset.uri, dataset.kind, declarations, shards, selection.facts() if selection else None)


def _select(dataset: Dataset, where: str) -> Selection:
    """The rows that a source's condition selects. Raises InputError where labels that it reads are missing."""
    selection = select_rows(dataset, where)
    for group in selection.condition.reads:
        missing = len(dataset.shards) - len(dataset.shard_entries(group))
        if missing:
            what = f"{dataset.uri}: where {where!r} reads {group!r}"
            raise InputError(f"{what}, which lacks {missing} of {len(dataset.shards)} shards; finish it with `label`")
    if not selection.rows:
        raise InputError(f"{dataset.uri}: where {where!r} is true of none of its {selection.total} rows")
    return selection


def _pin_shard(
    dataset: Dataset,
    shard: str,
    footers: Mapping[str, Footer],
    streams: Iterable[Stream],
    selection: Selection | None,
) -> ShardPin:
    """Pin one shard: its content, and the rows that are eligible for each stream. footers: by group."""
    row_groups = next(iter(footers.values())).row_groups
    for group, footer in footers.items():
        if footer.row_groups != row_groups:
            raise InputError(f"{dataset.uri}/{group}/{shard}: row groups unlike the other groups'; label it again")
    without_error = {group: _without_error(dataset, group, shard, footer) for group, footer in footers.items()}
    sets = dataset.has_sets
    prompted = {stream.text_group for stream in streams if stream.text == "stored"}
    prompts = {group: _prompted(dataset, group, shard, sets) for group in prompted}
    captioned = _captioned(dataset, shard, sets) if any(stream.text == "online" for stream in streams) else []
    referring = _referring(dataset, shard) if any(find_task(stream.task).references for stream in streams) else []
    eligible: dict[str, str | None] = {}
    views: list[int] = []
    for stream in streams:
        mask = np.logical_and.reduce([without_error[group] for group in stream.groups])
        stored = stream.text == "stored"
        mask &= np.array([stream.task in tasks for tasks in prompts[stream.text_group]] if stored else captioned, bool)
        mask[dataset.removed_rows(shard)] = False
        if selection:
            mask &= selection.mask(shard)
        label = find_task(stream.task).condition
        if label in CONTENT_COLUMNS:
            column = dataset.read(label, shard, [CONTENT_COLUMNS[label]])[CONTENT_COLUMNS[label]]
            mask &= np.array([len(value) > 0 if value.is_valid else False for value in column], bool)
        if sets:
            shapes = _shapes(dataset, shard, stream)
            views = [len(each) for each in shapes]
            mask &= np.array(views, int) > 0
            if find_task(stream.task).references:
                # Frames of a sample have one size.
                mask &= np.array([len(set(each)) == 1 < len(each) for each in shapes], bool)
                mask &= np.array(referring, bool)
        if stream.task == SUBJECT:
            named = dataset.read(SUBJECT, shard, [ITEM])[ITEM].to_pylist()
            mask &= np.array([bool(row) and all(row) for row in named], bool)
        eligible[stream.key] = bits_of(mask)
    content = {group: footer.content for group, footer in footers.items()}
    return ShardPin(shard, row_groups, content, eligible, views)


def _without_error(dataset: Dataset, group: str, shard: str, footer: Footer) -> NDArray[np.bool_]:
    """(rows,) which rows of a group's shard are not in error."""
    if footer.errors == 0:
        return np.ones(footer.rows, bool)
    errors = dataset.read(group, shard, ["error"])["error"]
    return np.array([not value.is_valid for value in errors], bool)


def _prompted(dataset: Dataset, group: str, shard: str, sets: bool) -> list[set[str]]:
    """For each row the tasks it has a prompt for (of a set: that its first view has); embeddings are not read."""
    rows = dataset.read(group, shard, entry_columns(sets, "task"))["entries"].to_pylist()
    firsts = [(row[0] if row else None) if sets else row for row in rows]
    return [{entry["task"] for entry in entries or ()} for entries in firsts]


def _captioned(dataset: Dataset, shard: str, sets: bool) -> list[bool]:
    """For each row whether it has a caption (of a set: whether its first view has)."""
    rows = dataset.read(CAPTION, shard, [CAPTION])[CAPTION].to_pylist()
    return [(row[0] if row else None) is not None if sets else row is not None for row in rows]


def _shapes(dataset: Dataset, shard: str, stream: Stream) -> list[list[tuple[int, int]]]:
    """Of each set of a shard the sizes of its pictures as they are encoded."""
    online = stream.pictures == "online"
    group, names = (IMAGES, ["width", "height"]) if online else (stream.latents, ["latent_width", "latent_height"])
    sides = [column.to_pylist() for column in dataset.read(group, shard, names).columns]
    shapes = [list(zip(*pair, strict=True)) if pair[0] else [] for pair in zip(*sides, strict=True)]
    return (
        [[aspect_bucket(width, height, stream.size) for width, height in each] for each in shapes] if online else shapes
    )


def _referring(dataset: Dataset, shard: str) -> list[bool]:
    """For each set whether all of its pictures have a caption, which prompts with references are built of."""
    rows = dataset.read(CAPTION, shard, [CAPTION])[CAPTION].to_pylist()
    return [bool(row) and None not in row for row in rows]


def _online(
    source: SourceConfig, latents: str, text_encoder: str | None, codec: str | None
) -> dict[str, dict[str, Any]]:
    """Group → what it would declare, had it the embeddings or latents that are made when they are used.

    latents: the group that would have those of pictures.
    """
    declared = {}
    if source.text == "online":
        from model.text import text_encoder_digest

        assert text_encoder is not None
        declared[TEXT] = _declaration(TEXT, "encoder", text_encoder, text_encoder_digest(text_encoder))
    if source.latents == "online":
        from model.codecs import codec_digest

        assert codec is not None
        declared[latents] = _declaration("latents", "codec", codec, codec_digest(codec))
    return declared


def _declaration(labeler: str, parameter: str, value: str, weights: str) -> dict[str, Any]:
    return {"labeler": labeler, "version": 1, "parameters": {parameter: value}, "weights": weights}


def with_encoders(manifest: Manifest, config: TrainingConfig) -> Manifest:
    """The manifest of a run that goes on, with its encoders at their addresses now. Raises InputError for others."""
    sources = dict(manifest.sources)
    for name, source in sources.items():
        latents = next(stream.latents for stream in manifest.streams if stream.source == name)
        now = _online(config.mixture[name], latents, config.text_encoder, config.codec)
        for group, declaration in now.items():
            key, parameter = ("text_encoder", "encoder") if group == TEXT else ("codec", "codec")
            before = source.declarations[group]
            if declaration["weights"] != before["weights"]:
                raise InputError(
                    f"{key} {declaration['parameters'][parameter]}: other weights than those of "
                    f"{before['parameters'][parameter]}, which the run was begun with; restore them, or begin a new run"
                )
        sources[name] = replace(source, declarations={**source.declarations, **now})
    return replace(manifest, sources=sources)


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
