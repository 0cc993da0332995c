"""Which shards of a dataset are fresh: their recipes compared with what groups declare and the columns they read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from labeling.dataset.dataset import Dataset
from labeling.dataset.images import ID_COLUMN
from labeling.dataset.shards import Footer, recipe

Footers = Mapping[str, Mapping[str, Footer]]  # group → shard → footer


@dataclass(frozen=True)
class GroupStatus:
    """Shards of a group: fresh (recipe as expected), stale, missing; and rows in error in the shards there are."""

    fresh: int = 0
    stale: int = 0
    missing: int = 0
    rows: int = 0
    errors: int = 0


def groups_of(columns: Sequence[str]) -> list[str]:
    """The groups of columns "group.column", each once, in order."""
    return list(dict.fromkeys(column.partition(".")[0] for column in columns))


def expected_recipe(declaration: Mapping[str, Any], shard: str, footers: Footers) -> str | None:
    """The recipe that makes a shard fresh, None while a shard or column it reads is missing."""
    read = {}
    for column in (ID_COLUMN, *declaration["reads"]):
        group, _, name = column.partition(".")
        footer = footers.get(group, {}).get(shard)
        if footer is None or name not in footer.columns:
            return None
        read[column] = footer.columns[name]
    return recipe(declaration, read)


def group_status(group: str, declaration: Mapping[str, Any], shards: Sequence[str], footers: Footers) -> GroupStatus:
    """Status of some shards of a group. footers: of the group and of those that it reads."""
    present = {shard: footers[group][shard] for shard in shards if shard in footers[group]}
    fresh = sum(
        # A group that reads nothing comes from a source (ingest, views): nothing in the dataset can make it stale.
        not declaration.get("reads") or footer.recipe == expected_recipe(declaration, shard, footers)
        for shard, footer in present.items()
    )
    return GroupStatus(
        fresh=fresh,
        stale=len(present) - fresh,
        missing=len(shards) - len(present),
        rows=sum(footer.rows for footer in present.values()),
        errors=sum(footer.errors for footer in present.values()),
    )


def dataset_status(dataset: Dataset, save: bool = False) -> dict[str, GroupStatus]:
    """Status of every declared group. Needs nothing but the dataset.

    save: keep the footers in the groups' indexes, so that the next look is cheaper.
    """
    declarations = {group: dataset.declaration(group) or {} for group in dataset.groups()}
    footers = {group: dataset.footers(group, save) for group in declarations}
    shards = [shard.name for shard in dataset.shards]
    return {group: group_status(group, declarations[group], shards, footers) for group in declarations}
