"""The stages that a row group goes through: its columns are read, then each pool of processes adds its labels."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from labeling.dataset import ID_COLUMN, IMAGE_COLUMN, IMAGES, Dataset, groups_of
from labeling.labeler import Labeler
from labeling.run import import_packages, label_table
from pipelines.labeling_job.decoded_images import decode_and_pack, unpack
from pipelines.labeling_job.tables import from_bytes, to_bytes

Stage = Mapping[str, Labeler]  # group → labeler, of those that share a process


def make_stages(labelers: Mapping[str, Labeler]) -> list[dict[str, Labeler]]:
    """Stages in order. Labelers of one class with the same parameters share one, as latents of many sources do.

    A stage stands where its last group does, unless something in between reads one of its groups.
    """
    stages: list[dict[str, Labeler]] = []
    for group, labeler in labelers.items():
        alike = [index for index, stage in enumerate(stages) if all(_are_alike(labeler, o) for o in stage.values())]
        joined = {group: labeler}
        if alike:
            last = alike[-1]
            read_since = {name for stage in stages[last + 1 :] for o in stage.values() for name in groups_of(o.reads)}
            if not read_since & stages[last].keys():
                joined = stages.pop(last) | joined
        stages.append(joined)
    return stages


def _are_alike(one: Labeler, other: Labeler) -> bool:
    return type(one) is type(other) and one.parameters == other.parameters


def reads_images(stage: Stage) -> bool:
    """Whether a stage needs the decoded images."""
    return any(IMAGE_COLUMN in labeler.reads for labeler in stage.values())


class ReadColumns:
    """First stage: the columns that labelers read from stored shards, and the images, decoded once."""

    def __init__(self, dataset: Dataset, labelers: Mapping[str, Labeler]) -> None:
        self.dataset = dataset
        self.reads = {group: labeler.reads for group, labeler in labelers.items()}

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        groups = row["groups"].split(",")
        columns: dict[str, set[str]] = {IMAGES: {"id"}}
        for column in {column for group in groups for column in self.reads[group]}:
            group, _, name = column.partition(".")
            if group not in groups:  # otherwise it is labeled in this pass
                columns.setdefault(group, set()).add(name)
        names = {group: sorted(of_group) for group, of_group in columns.items()}
        table = self.dataset.join(row["shard"], names, [row["row_group"]])
        images = b""
        if IMAGE_COLUMN in table.column_names:
            images = decode_and_pack(table[IMAGE_COLUMN].to_pylist())
            table = table.drop_columns([IMAGE_COLUMN])
        return {**row, "rows": table.num_rows, "columns": to_bytes(table), "images": images}


class AddLabels:
    """A stage with labelers, an actor: it adds the columns of its groups to the row."""

    def __init__(self, stage: Stage, sets: bool, drop_images: bool) -> None:
        """sets: whether the rows are sets of views; drop_images: whether no later stage reads the images."""
        self.stage = stage
        self.sets = sets
        self.drop_images = drop_images
        for labeler in stage.values():
            import_packages(labeler)
            labeler.load()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        groups = row["groups"].split(",")
        labeled = dict(row)
        images = unpack(row["images"]) if row["images"] and reads_images(self.stage) else None
        for group, labeler in self.stage.items():
            table, seconds = b"", 0.0
            if group in groups:
                started = time.monotonic()
                table = to_bytes(label_table(labeler, _rows_for(labeler, labeled, images), self.sets))
                seconds = time.monotonic() - started
            labeled |= {f"{group}:table": table, f"{group}:seconds": seconds}
        return labeled | ({"images": b""} if self.drop_images else {})


def _rows_for(labeler: Labeler, row: Mapping[str, Any], images: list[Any] | None) -> list[dict[str, Any]]:
    """The rows as a labeler takes them: columns of stored shards, and those that were labeled in this pass."""
    stored = from_bytes(row["columns"])
    values: dict[str, list[Any]] = {"id": stored[ID_COLUMN].to_pylist()}
    for column in labeler.reads:
        group, _, name = column.partition(".")
        if column == IMAGE_COLUMN:
            assert images is not None, "the images were dropped before the last stage that reads them"
            values[column] = images
        elif row.get(f"{group}:table"):
            values[column] = from_bytes(row[f"{group}:table"])[name].to_pylist()
        else:
            values[column] = stored[column].to_pylist()
    return [dict(zip(values, together, strict=True)) for together in zip(*values.values(), strict=True)]
