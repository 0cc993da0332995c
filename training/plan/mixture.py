"""What a run is trained on: datasets, the tasks each serves, and a manifest that pins every shard used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labeling.dataset import (
    RECIPE_FIELDS,
    TEXT,
    Dataset,
    Footer,
    Selection,
    ShardInfo,
    entry_columns,
    select_rows,
)
from model.conditions import CONTENT_COLUMNS
from model.inputs import InputError
from model.prompts import RAYS, Task, find_task
from training.config import SourceConfig, TrainingConfig
from training.plan.manifest import Manifest, SourcePin, counted
from training.plan.pinned_shards import ShardPin, Shards, bits_of
from training.plan.streams import CAPTION, Stream

_READ_THREADS = 16


def build_manifest(
    mixture: Mapping[str, SourceConfig], size: int, lanes: int = 128, text_encoder: str | None = None
) -> Manifest:
    """Pin the shards of a mixture and count the rows eligible for each task.

    lanes, text_encoder: as `TrainingConfig` has them.

    A row is eligible when nothing that the task needs of it is in error, it has a prompt for the task, its boxes,
    segmentation or pose show something, its picture was not removed at the source, and its source's `where` is true of
    it. Raises InputError for an unknown task, a group or shards that are not there, parts made with different codecs or
    text encoders, a condition that selects no row, and a mixture without a single eligible row.
    """
    sources: dict[str, SourcePin] = {}
    streams: list[Stream] = []
    for name, source in mixture.items():
        own = [
            Stream(name, task, weight, source.size or size, text=source.text) for task, weight in source.tasks.items()
        ]
        dataset = Dataset.open(source.dataset)
        for stream in own:
            _check_task(find_task(stream.task), dataset)
        sources[name] = _pin(dataset, own, source.where)
        if source.text == "online":
            assert text_encoder is not None
            sources[name].declarations[TEXT] = _online_text(text_encoder)
        streams += counted(sources, own)
    if not any(stream.rows for stream in streams):
        raise InputError(f"no row of {', '.join(s.dataset for s in mixture.values())} is eligible for any of the tasks")
    _check_same_encoders(sources)
    return Manifest(sources, streams, lanes)


def _check_task(task: Task, dataset: Dataset) -> None:
    """Raise InputError for a task that cannot be trained, or that needs another kind of dataset."""
    if task.condition is None and task.name != "text2image":
        raise InputError(f"task {task.name!r} cannot be trained yet; take it out of the mixture")
    needed = "sets" if task.condition == RAYS else "pictures"
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
    prompts = _prompted(dataset, shard, sets) if any(stream.text == "stored" for stream in streams) else []
    captioned = _captioned(dataset, shard, sets) if any(stream.text == "online" for stream in streams) else []
    eligible: dict[str, str | None] = {}
    views: list[int] = []
    for stream in streams:
        mask = np.logical_and.reduce([without_error[group] for group in stream.groups])
        stored = stream.text == "stored"
        mask &= np.array([stream.task in tasks for tasks in prompts] if stored else captioned, bool)
        mask[dataset.removed_rows(shard)] = False
        if selection:
            mask &= selection.mask(shard)
        label = find_task(stream.task).condition
        if label in CONTENT_COLUMNS:
            column = dataset.read(label, shard, [CONTENT_COLUMNS[label]])[CONTENT_COLUMNS[label]]
            mask &= np.array([len(value) > 0 if value.is_valid else False for value in column], bool)
        if sets:
            column = dataset.read(stream.latents, shard, ["latent_height"])["latent_height"]
            views = [len(value) if value.is_valid else 0 for value in column]
            mask &= np.array(views) > 0
        eligible[stream.key] = bits_of(mask)
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


def _captioned(dataset: Dataset, shard: str, sets: bool) -> list[bool]:
    """For each row whether it has a caption (of a set: whether its first view has)."""
    rows = dataset.read(CAPTION, shard, [CAPTION])[CAPTION].to_pylist()
    return [(row[0] if row else None) is not None if sets else row is not None for row in rows]


def _online_text(encoder: str) -> dict[str, Any]:
    """What the group `text` would declare, had it the embeddings that are made when they are used."""
    from model.text import text_encoder_digest

    weights = text_encoder_digest(encoder)
    return {"labeler": TEXT, "version": 1, "parameters": {"encoder": encoder}, "weights": weights}


def with_text_encoder(manifest: Manifest, config: TrainingConfig) -> Manifest:
    """The manifest of a run that goes on, with the text encoder at its address now. Raises InputError for another."""
    sources = dict(manifest.sources)
    for name, source in sources.items():
        if config.mixture[name].text == "online":
            assert config.text_encoder is not None
            before, now = source.declarations[TEXT], _online_text(config.text_encoder)
            if now["weights"] != before["weights"]:
                raise InputError(
                    f"text_encoder {config.text_encoder}: other weights than those of "
                    f"{before['parameters']['encoder']}, which the run was begun with; restore them, or begin a new run"
                )
            sources[name] = replace(source, declarations={**source.declarations, TEXT: now})
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
