"""What a dataset still needs: resume, rebuild and increment are the same question, asked of the shards' footers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labeling.dataset import IMAGES, Dataset, Footers, FooterTable, check_type, fresh_shards, groups_of
from labeling.declaration import declared_name
from labeling.labeler import Labeler
from labeling.registry import base_name, group_name, load_labeler
from model.inputs import InputError, require


@dataclass
class Wave:
    """Shards to compute in one pass over the images: shard → groups, each after those that it reads."""

    work: dict[str, list[str]] = field(default_factory=dict)

    @property
    def groups(self) -> list[str]:
        return list(dict.fromkeys(group for groups in self.work.values() for group in groups))


def choose_labelers(
    dataset: Dataset, names: Sequence[str], parameters: Mapping[str, Mapping[str, Any]]
) -> dict[str, Labeler]:
    """The labelers requested and those they need, by group, each after what it reads.

    A group that is declared keeps its parameters where none are given. Raises InputError for an unknown name, for
    parameters of a labeler that is not requested, and for a column that cannot be stored.
    """
    requested = {group_name(name): name for name in names}
    for name in parameters:
        if name not in requested and not any(group.startswith(f"{name}-") for group in requested):
            raise InputError(
                f"parameters given for {name!r}, which is not among the groups to label: {', '.join(requested)}"
            )
    labelers: dict[str, Labeler] = {}
    readers: list[str] = []  # the groups that led to the one being visited, each a reader of the next

    def visit(group: str, name: str | None) -> None:
        if group in labelers:
            return
        if group in readers:
            raise InputError(f"labelers read each other in a circle: {' → '.join([*readers, group])}")
        labeler = _load(dataset, group, name, parameters)
        require(*labeler.packages)  # here, and not as an error of every row
        for column in labeler.schema:
            try:
                check_type(column.type)
            except InputError as error:
                raise InputError(f"labeler {labeler.name}, column {column.name!r}: {error}") from None
        readers.append(group)
        for upstream in groups_of(labeler.reads):
            # A group that is complete is refreshed only when it is requested by name.
            if upstream != IMAGES and (upstream in requested or not _is_complete(dataset, upstream)):
                visit(upstream, requested.get(upstream))
        readers.pop()
        labelers[group] = labeler

    for group, name in requested.items():
        visit(group, name)
    return labelers


def next_wave(
    dataset: Dataset,
    declarations: Mapping[str, Mapping[str, Any]],
    footers: Footers,
    shards: tuple[int, int] | None = None,
) -> Wave:
    """The shards to compute now.

    declarations: of the groups to label, each after those that it reads; shards: [first, end), all by default.
    A shard that exists waits for the next wave while one that it reads is recomputed: if the new values equal the old,
    it is fresh after all.
    """
    first, end = shards or (0, len(dataset.shards))
    names = dataset.shard_names[first:end]
    nothing = np.zeros(len(names), bool)
    chosen: dict[str, NDArray[np.bool_]] = {}  # group → (shards,) whether to compute it now
    waiting: dict[str, NDArray[np.bool_]] = {}  # group → (shards,) whether a later wave decides
    for group, declaration in declarations.items():
        upstream = groups_of(declaration["reads"])
        upstream_waits = np.logical_or.reduce([waiting.get(read, nothing) for read in upstream] or [nothing])
        upstream_changes = np.logical_or.reduce([chosen.get(read, nothing) for read in upstream] or [nothing])
        present = FooterTable.of(footers.get(group, {})).positions(names) >= 0
        stale = present & ~fresh_shards(declaration, names, footers, group)
        chosen[group] = np.where(present, stale & ~upstream_waits & ~upstream_changes, ~upstream_waits)
        waiting[group] = np.where(present, upstream_waits | upstream_changes, upstream_waits)
    return _wave(names, chosen)


def _wave(names: Sequence[str], chosen: Mapping[str, NDArray[np.bool_]]) -> Wave:
    """The work of a wave. Shards with the same groups share one list: it may be of 10⁵ shards."""
    groups = list(chosen)
    table = np.array([chosen[group] for group in groups], bool).reshape(len(groups), len(names))
    lists: dict[bytes, list[str]] = {}
    work: dict[str, list[str]] = {}
    for index in np.flatnonzero(table.any(0)):
        column = table[:, index]
        key = column.tobytes()
        if key not in lists:
            lists[key] = [group for group, is_chosen in zip(groups, column, strict=True) if is_chosen]
        work[names[int(index)]] = lists[key]
    return Wave(work)


def _load(dataset: Dataset, group: str, name: str | None, parameters: Mapping[str, Mapping[str, Any]]) -> Labeler:
    """The labeler of a group, with the parameters given for its labeler or for the group over those declared.

    name: how it was requested; None for a group that is needed by another.
    """
    declaration = dataset.declaration(group) or {}
    given = {**parameters.get(base_name(group), {}), **parameters.get(group, {})}
    if name is None or name == group:
        name = declared_name(group, declaration)
    return load_labeler(name, {**declaration.get("parameters", {}), **given})


def _is_complete(dataset: Dataset, group: str) -> bool:
    """Whether a group is declared and none of its shards is missing."""
    return dataset.declaration(group) is not None and len(dataset.shard_entries(group)) == len(dataset.shards)
