"""Labels of small datasets, made in the process of a test: what a labeling job writes, without Ray."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from labeling.dataset import IMAGE_COLUMN, IMAGES, Dataset, Footer, expected_recipe, write_shard
from labeling.declaration import declare
from labeling.registry import load_labeler
from labeling.run import decode_images, import_packages, label_table

Footers = Mapping[str, Mapping[str, Footer]]


def label_here(uri: str, group: str, **parameters: Any) -> None:
    """Fill a group of a dataset as `label` does."""
    dataset = Dataset.open(uri)
    labeler = load_labeler(group, parameters)
    import_packages(labeler)
    labeler.load()
    dataset.declare(group, declare(labeler))
    columns: dict[str, list[str]] = {IMAGES: ["id"]}
    for name in labeler.needs:
        of_group, _, column = name.partition(".")
        columns.setdefault(of_group, []).append(column)
    for shard in dataset.shard_names:
        rows = dataset.join(shard, {name: list(dict.fromkeys(of)) for name, of in columns.items()}).to_pylist()
        rows = [{"id": row.pop("images.id"), **row} for row in rows]
        if IMAGE_COLUMN in labeler.needs:
            pictures = decode_images([row["id"] for row in rows], [row[IMAGE_COLUMN] for row in rows])
            rows = [{**row, IMAGE_COLUMN: picture} for row, picture in zip(rows, pictures, strict=True)]
        table = label_table(labeler, rows, dataset.has_sets)
        footers: Footers = {name: {shard: dataset.footer(name, shard)} for name in columns}
        recipe = expected_recipe(declare(labeler), shard, footers)
        assert recipe, "what it reads is not there"
        write_shard(dataset.store, group, shard, table, footers[IMAGES][shard].row_groups, recipe)
