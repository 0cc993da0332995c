"""Rows that a run learns from, as its model sees them: an image, its prompts by task, and its labels, drawn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice, zip_longest
from operator import itemgetter
from typing import Any

import numpy as np

from labeling.dataset import IMAGES, Columns, Dataset, entry_columns, is_text
from model.conditions import CONDITION_READS, condition_picture
from model.pictures import Picture, decode_picture
from model.prompts import TASKS, build_prompt, find_task
from training.plan.pinned_shards import Shards
from training.plan.streams import CAPTION, Stream
from training.run import read_run


@dataclass
class Example:
    """A row of a dataset as the model sees it: the image, its prompts by task, and its labels, drawn, by group.

    A label that shows nothing (an all-black drawing) is left out.
    """

    id: str
    picture: Picture
    prompts: dict[str, str]
    labels: dict[str, Picture] = field(default_factory=dict)


@dataclass(frozen=True)
class ImageSource:
    """A source of images in a run's mixture: its dataset, its shards as they were pinned, and its tasks."""

    dataset: Dataset
    shards: Shards
    streams: Sequence[Stream]

    def examples(self) -> Iterator[Example]:
        """The rows that one of the tasks may use, with the prompts of those tasks.

        Row groups without such rows are not read. A shard that has other row groups by now is left out.
        """
        groups = [group for group in CONDITION_READS if self.dataset.declaration(group)]
        columns = _columns(self.dataset, groups)
        has_rows = np.logical_or.reduce([self.shards.counts(stream.key) > 0 for stream in self.streams])
        usable = np.flatnonzero(has_rows)  # row groups, counted over all shards
        shards = np.searchsorted(self.shards.group_starts, usable, "right") - 1
        for number, places in groupby(zip(shards.tolist(), usable.tolist(), strict=True), itemgetter(0)):
            if not self._is_as_pinned(number):
                continue
            masks = {stream.task: self.shards.mask(stream.key, number) for stream in self.streams}
            for _, place in places:
                row_group = place - int(self.shards.group_starts[number])
                table = self.dataset.join(self.shards.name(number), columns, [row_group], skip_missing=True)
                first = self.shards.row_in_shard(number, row_group, 0)
                for index, row in enumerate(table.to_pylist(), start=first):
                    tasks = {task for task, mask in masks.items() if mask[index]}
                    if tasks:
                        example = _example(row, groups)
                        example.prompts = {task: text for task, text in example.prompts.items() if task in tasks}
                        yield example

    def _is_as_pinned(self, number: int) -> bool:
        try:
            footer = self.dataset.footer(IMAGES, self.shards.name(number))
        except FileNotFoundError:
            return False
        return bool(np.array_equal(footer.row_groups, self.shards.row_groups(number)))


@dataclass(frozen=True)
class TrainingData:
    """What a run learns from.

    views: the first dataset of view sets that serves `views`; references: task with references → the first dataset
    that serves it.
    """

    images: Sequence[ImageSource]
    views: Dataset | None
    references: Mapping[str, Dataset]

    def examples(self, limit: int) -> list[Example]:
        """A row of each source in turn, once where several have it; about `limit`."""
        each = [list(islice(source.examples(), -(-limit // len(self.images)))) for source in self.images]
        examples: dict[tuple[str, str], Example] = {}
        for turn in zip_longest(*each):
            for source, example in zip(self.images, turn, strict=True):
                if example is not None:
                    examples.setdefault((source.dataset.uri, example.id), example).prompts |= example.prompts
        return list(examples.values())


def read_training_data(run: str) -> TrainingData:
    """What a run's manifest pins, without rows that its conditions, or its validation, keep out of training."""
    _, manifest = read_run(run)
    images: list[ImageSource] = []
    views: Dataset | None = None
    references: dict[str, Dataset] = {}
    for name, pin in manifest.sources.items():
        dataset = Dataset.open(pin.dataset)
        streams = [stream for stream in manifest.streams if stream.source == name]
        if dataset.kind == "pictures":
            images.append(ImageSource(dataset, pin.shards, streams))
        elif views is None and any(stream.task == "views" for stream in streams):
            views = dataset
        for stream in streams:
            if find_task(stream.task).references:
                references.setdefault(stream.task, dataset)
    return TrainingData(images, views, references)


def _example(row: Mapping[str, Any], groups: Iterable[str]) -> Example:
    """A row in error lacks that label."""
    example = Example(row["images.id"], decode_picture(row["images.image"]), prompts_of(row))
    for group in groups:
        # `get`: a group that is still being made lacks some shards.
        if all(row.get(column) is not None for column in CONDITION_READS[group]):
            drawn = condition_picture(group, row, row["images.width"], row["images.height"])
            if drawn.any():
                example.labels[group] = drawn
    return example


def read_rows(dataset: Dataset, groups: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """Rows of images, of the groups named, and of prompts or what they are built of, as "group.column" → value."""
    return dataset.joined_rows(_columns(dataset, groups))


def _columns(dataset: Dataset, groups: Sequence[str]) -> Columns:
    prompts = [group for group in dataset.groups() if is_text(group)]
    columns: dict[str, Any] = dict.fromkeys((IMAGES, CAPTION, *groups))
    return columns | dict.fromkeys(prompts, entry_columns(dataset.has_sets, "task", "prompt"))


def prompts_of(row: Mapping[str, Any]) -> dict[str, str]:
    """Task → prompt: as groups of text have them, or of a caption where no group has one of the task."""
    prompts = {}
    if caption := row.get(f"{CAPTION}.{CAPTION}"):
        for task in TASKS.values():
            columns = ("names", "colors") if task.phrase else ()
            names: list[Any] = [row.get(f"{task.name}.{column}") for column in columns]
            if not task.references and None not in names:
                prompts[task.name] = build_prompt(task.name, caption, *names)
    entries = [entry for name, value in row.items() if is_text(name.partition(".")[0]) for entry in value or ()]
    return {**prompts, **{entry["task"]: entry["prompt"] for entry in entries}}
