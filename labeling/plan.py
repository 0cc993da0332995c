"""What a dataset still needs: resume, rebuild and increment are the same question, asked of the shards' footers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from labeling.dataset.shards import Dataset, Footer, recipe
from labeling.labeler import Labeler
from labeling.registry import group_name, is_known, load_labeler
from model.inputs import InputError, require

Footers = Mapping[str, Mapping[str, Footer]]  # group → shard → footer


@dataclass
class GroupStatus:
    """Shards of a group: fresh (recipe as expected), stale, missing; and rows in error in the shards there are."""

    fresh: int = 0
    stale: int = 0
    missing: int = 0
    rows: int = 0
    errors: int = 0


@dataclass
class Wave:
    """Shards to compute in one pass over the pictures: shard → groups, each after those that it reads."""

    work: dict[str, list[str]] = field(default_factory=dict)

    @property
    def groups(self) -> list[str]:
        return list(dict.fromkeys(group for groups in self.work.values() for group in groups))


def declare(labeler: Labeler) -> dict[str, Any]:
    """The content of group.json for a labeler."""
    return {
        "labeler": labeler.name,
        "class": f"{type(labeler).__module__}:{type(labeler).__qualname__}",
        "version": labeler.version,
        "parameters": labeler.parameters.model_dump(mode="json"),
        "weights": labeler.weights_digest(),
        "reads": sorted(labeler.reads),
    }


def choose_labelers(
    dataset: Dataset, names: Sequence[str], parameters: Mapping[str, Mapping[str, Any]]
) -> dict[str, Labeler]:
    """The labelers asked for and those they need, by group, each after what it reads.

    A group that is declared keeps its parameters where none are given. Raises InputError for an unknown name, and for
    parameters of a labeler that is not asked for.
    """
    asked = {group_name(name): name for name in names}
    stray = [name for name in parameters if name not in asked and not any(g.startswith(f"{name}-") for g in asked)]
    if stray:
        raise InputError(
            f"parameters given for {stray[0]!r}, which is not among the groups to label: {', '.join(asked)}"
        )
    chosen: dict[str, Labeler] = {}
    pending: list[str] = []

    def visit(group: str, name: str) -> None:
        if group in chosen:
            return
        if group in pending:
            raise InputError(f"labelers read each other in a circle: {' → '.join([*pending, group])}")
        declared = dataset.declaration(group) or {}
        given = {**parameters.get(group.split("-", 1)[0], {}), **parameters.get(group, {})}
        if not is_known(name) and "class" in declared:
            name = declared["class"]
        labeler = load_labeler(name, {**declared.get("parameters", {}), **given})
        require(*labeler.packages)  # here, and not as an error of every row
        pending.append(group)
        for needed in dict.fromkeys(column.split(".", 1)[0] for column in labeler.reads):
            # What is whole already is refreshed only when asked for by name.
            if needed != "images" and (needed in asked or not _is_whole(dataset, needed)):
                visit(needed, asked.get(needed, needed))
        pending.pop()
        chosen[group] = labeler

    for group, name in asked.items():
        visit(group, name)
    return chosen


def _is_whole(dataset: Dataset, group: str) -> bool:
    """Whether a group is declared and none of its shards is missing."""
    present = dataset.store.files(group)
    return "group.json" in present and all(f"{shard.name}.parquet" in present for shard in dataset.shards)


def expected_recipe(declaration: Mapping[str, Any], shard: str, footers: Footers) -> str | None:
    """The recipe that makes a shard fresh, None while a shard or column it reads is missing."""
    read = {}
    for column in ("images.id", *declaration["reads"]):
        group, _, name = column.partition(".")
        footer = footers.get(group, {}).get(shard)
        if footer is None or name not in footer.columns:
            return None
        read[column] = footer.columns[name]
    return recipe(declaration, read)


def next_wave(
    dataset: Dataset,
    declarations: Mapping[str, Mapping[str, Any]],
    footers: Footers,
    shards: tuple[int, int] | None = None,
) -> Wave:
    """The shards to compute now, of groups given in dependency order; of shards [first, end) alone where given.

    A shard that exists while one that it reads is recomputed waits for the next wave: if the new values equal the old,
    it is fresh after all.
    """
    wave = Wave()
    for shard in (info.name for info in dataset.shards[slice(*(shards or (None,)))]):
        chosen: list[str] = []
        waiting: set[str] = set()
        for group, declaration in declarations.items():
            upstream = {column.split(".", 1)[0] for column in declaration["reads"]}
            footer = footers.get(group, {}).get(shard)
            if footer is None:
                if upstream & waiting:
                    waiting.add(group)
                else:
                    chosen.append(group)
            elif upstream & (waiting | set(chosen)):
                waiting.add(group)
            elif footer.recipe != expected_recipe(declaration, shard, footers):
                chosen.append(group)
        if chosen:
            wave.work[shard] = chosen
    return wave


def dataset_status(dataset: Dataset, save: bool = False) -> dict[str, GroupStatus]:
    """Groups × shards: fresh, stale, missing, and rows in error. Needs nothing but the dataset."""
    declarations = {group: dataset.declaration(group) or {} for group in dataset.groups()}
    footers = {group: dataset.footers(group, save) for group in declarations}
    found = {}
    for group, declaration in declarations.items():
        status = found[group] = GroupStatus()
        for shard in dataset.shards:
            footer = footers[group].get(shard.name)
            if footer is None:
                status.missing += 1
                continue
            status.rows += footer.rows
            status.errors += footer.errors
            # A group that reads nothing is a source (ingest, views): it is what it is.
            fresh = not declaration["reads"] or footer.recipe == expected_recipe(declaration, shard.name, footers)
            status.fresh += fresh
            status.stale += not fresh
    return found
