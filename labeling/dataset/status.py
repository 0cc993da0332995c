"""Which shards of a dataset are fresh: their recipes compared with what groups declare and the columns they read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labeling.dataset.dataset import Dataset
from labeling.dataset.digests import json_text
from labeling.dataset.footers import COLUMN, DIGEST_BYTES, FooterTable, unpacked
from labeling.dataset.images import ID_COLUMN
from labeling.dataset.shards import RECIPE_FIELDS, Footer, recipe

CHUNK = 8192  # shards whose digests are Python objects at a time
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


def expected_recipes(declaration: Mapping[str, Any], shards: Sequence[str], footers: Footers) -> list[bytes | None]:
    """The recipes of `expected_recipe` for many shards, as a `FooterTable` keeps them."""
    columns = sorted({ID_COLUMN, *declaration["reads"]})
    values: list[list[bytes | None]] = []
    for group, _, name in (column.partition(".") for column in columns):
        table = FooterTable.of(footers.get(group, {}))
        values.append(table.kept(COLUMN + name, table.positions(shards)))
    # The text that `recipe` takes the digest of: [what made it, [[column, digest], …]].
    made_by = json_text([{key: declaration[key] for key in RECIPE_FIELDS}, []]).removesuffix("]]")
    start = hashlib.blake2b(made_by.encode(), digest_size=DIGEST_BYTES)
    before = [
        ("," if index else "") + json_text([column, ""]).removesuffix('"]') for index, column in enumerate(columns)
    ]
    recipes: list[bytes | None] = []
    for digests in zip(*values, strict=True):
        if None in digests:
            recipes.append(None)
            continue
        digest = start.copy()
        pairs = [f'{text}{_in_json(content)}"]' for text, content in zip(before, digests, strict=True)]
        digest.update(f"{''.join(pairs)}]]".encode())
        recipes.append(digest.digest())
    return recipes


def fresh_shards(
    declaration: Mapping[str, Any], shards: Sequence[str], footers: Footers, group: str
) -> NDArray[np.bool_]:
    """(shards,) whether each shard of a group is there and made as is declared now."""
    table = FooterTable.of(footers.get(group, {}))
    positions = table.positions(shards)
    if not declaration.get("reads"):
        # Such a group comes from a source (ingest, views): nothing in the dataset can make it stale.
        return positions >= 0
    fresh = np.zeros(len(shards), bool)
    for start in range(0, len(shards), CHUNK):
        part = slice(start, start + CHUNK)
        pairs = zip(
            table.kept("recipe", positions[part]), expected_recipes(declaration, shards[part], footers), strict=True
        )
        fresh[part] = [own is not None and own == expected for own, expected in pairs]
    return fresh


def group_status(group: str, declaration: Mapping[str, Any], shards: Sequence[str], footers: Footers) -> GroupStatus:
    """Status of some shards of a group. footers: of the group and of those that it reads."""
    table = FooterTable.of(footers[group])
    positions = table.positions(shards)
    present = int((positions >= 0).sum())
    fresh = int(fresh_shards(declaration, shards, footers, group).sum())
    return GroupStatus(
        fresh=fresh,
        stale=present - fresh,
        missing=len(shards) - present,
        rows=table.total("rows", positions),
        errors=table.total("errors", positions),
    )


def dataset_status(
    dataset: Dataset, save: bool = False, footers: Mapping[str, FooterTable] | None = None
) -> dict[str, GroupStatus]:
    """Status of every declared group. Needs nothing but the dataset.

    save: keep the footers in the groups' indexes, so that the next look is cheaper. footers: of all declared groups,
    where they are read already.
    """
    footers = dataset.all_footers(dataset.groups(), save) if footers is None else footers
    shards = dataset.shard_names
    return {group: group_status(group, dataset.declaration(group) or {}, shards, footers) for group in footers}


def _in_json(digest: bytes | None) -> str:
    assert digest is not None
    return digest.hex() if len(digest) == DIGEST_BYTES else json_text(unpacked(digest))[1:-1]
