"""What a dataset still needs: resume, rebuild and increment are the same question, asked of the shards' footers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labeling.dataset import (
    EARLIER,
    IMAGES,
    RECIPE_FIELDS,
    Dataset,
    Footers,
    FooterTable,
    Tables,
    check_type,
    digest_json,
    fresh_shards,
    groups_of,
    read_condition,
)
from labeling.declaration import declared_name
from labeling.labeler import Labeler, WholeLabeler
from labeling.registry import base_name, find_labeler, group_name, load_labeler
from model.inputs import InputError, require

SELECTION = "selection"  # labeler of the groups that say which rows others label
ALL_ROWS = "true"


@dataclass
class Wave:
    """Shards to compute in one pass over the images: shard → groups, each after those that it reads.

    later: shards of which a later wave decides, since one that they read is computed in this one.
    """

    work: dict[str, list[str]] = field(default_factory=dict)
    later: list[str] = field(default_factory=list)

    @property
    def groups(self) -> list[str]:
        return list(dict.fromkeys(group for groups in self.work.values() for group in groups))


def choose_labelers(
    dataset: Dataset, names: Sequence[str], parameters: Mapping[str, Mapping[str, Any]], where: str | None = None
) -> dict[str, Labeler]:
    """The labelers requested and those they need, by group, each after what it reads.

    A group that is declared keeps its parameters where none are given, and its condition on rows. where: such a
    condition, for the groups requested and for new ones that they need. Raises InputError for an unknown name, for
    parameters of a labeler that is not requested, for a column that cannot be stored, and for a bad condition.
    """
    requested = {group_name(name): name for name in names}
    for name in parameters:
        if name not in requested and not any(group.startswith(f"{name}-") for group in requested):
            raise InputError(
                f"parameters given for {name!r}, which is not among the groups to label: {', '.join(requested)}"
            )
    selection, of_selection = (None, {}) if where is None else _selection(dataset, where)
    labelers: dict[str, Labeler] = {}
    readers: list[str] = []  # the groups that led to the one being visited, each a reader of the next

    def visit(group: str, name: str | None) -> None:
        if group in labelers:
            return
        if group in readers:
            raise InputError(f"labelers read each other in a circle: {' → '.join([*readers, group])}")
        if group == selection:
            labeler = load_labeler(group, of_selection)
        else:
            labeler = _load(dataset, group, name, parameters)
            new = where is not None and (name is not None or dataset.declaration(group) is None)
            if new and isinstance(labeler, WholeLabeler):
                raise InputError(f"{group}: depends on all rows, so that --where cannot leave out some")
            chosen = selection if new else selection_of(dataset.declaration(group))
            labeler.selection = f"{chosen}.selected" if chosen else ""
        require(*labeler.packages)  # here, and not as an error of every row
        for column in labeler.schema:
            try:
                check_type(column.type)
            except InputError as error:
                raise InputError(f"labeler {labeler.name}, column {column.name!r}: {error}") from None
        readers.append(group)
        for upstream in groups_of(labeler.needs):
            # A group that is complete is refreshed only when it is requested by name; a selection costs nothing.
            selects = base_name(upstream) == SELECTION
            if upstream != IMAGES and (selects or upstream in requested or not _is_complete(dataset, upstream)):
                visit(upstream, requested.get(upstream))
        readers.pop()
        labelers[group] = labeler

    for group, name in requested.items():
        visit(group, name)
    return labelers


def selection_of(declaration: Mapping[str, Any] | None) -> str:
    """The group that says which rows a declared group labels; "" where it labels all, or is one that says so."""
    reads = (declaration or {}).get("reads") or ()
    return next((group for group in groups_of(reads) if base_name(group) == SELECTION), "")


def reselected_shards(
    dataset: Dataset, group: str, declaration: Mapping[str, Any], shards: Sequence[str], footers: Footers
) -> set[str]:
    """Shards whose labels are as declared but for which rows were selected: they need only the rows that are new.

    declaration: as it is now; group.json has those before it, as it was declared by jobs that were cut short.
    """
    declared = dataset.declaration(group) or {}
    earlier = [
        before
        for before in [declared, *declared.get(EARLIER, [])]
        if all(before.get(key) == declaration.get(key) for key in RECIPE_FIELDS)
        and _unselected(before) == _unselected(declaration)
        and before.get("reads") != declaration["reads"]
    ]
    if not earlier:
        return set()
    shards_to_select: set[str] = set()
    fresh = fresh_shards(declaration, shards, footers, group)
    for before in earlier:
        group_of = selection_of(before)
        known = {**footers, **(dataset.all_footers([group_of]) if group_of and group_of not in footers else {})}
        old = fresh_shards(before, shards, known, group) & ~fresh
        shards_to_select |= {shard for shard, is_old in zip(shards, old, strict=True) if is_old}
    return shards_to_select


def _unselected(declaration: Mapping[str, Any]) -> list[str]:
    """The columns that a group reads, without the one that selects rows."""
    return [name for name in declaration.get("reads") or () if base_name(name) != SELECTION]


def _selection(dataset: Dataset, where: str) -> tuple[str, dict[str, Any]]:
    """The group of a condition, and its parameters; "" for one that all rows fulfill."""
    if where.strip().lower() == ALL_ROWS:
        return "", {}
    if dataset.has_sets:
        raise InputError(f"where {where!r}: rows of view sets are selected when they are trained on, not when labeled")
    condition = read_condition(Tables(dataset), where)
    if condition.whole:
        raise InputError(f"where {where!r}: what is labeled cannot depend on other rows, as of a subquery")
    return f"{SELECTION}-{digest_json(where)[:8]}", {"where": where, "columns": list(condition.columns)}


def next_wave(declarations: Mapping[str, Mapping[str, Any]], footers: Footers, shards: Sequence[str]) -> Wave:
    """The shards to compute now, of those given.

    declarations: of the groups to label, each after those that it reads. A shard that exists waits for the next wave
    while one that it reads is recomputed: if the new values equal the old, it is fresh after all.
    """
    nothing = np.zeros(len(shards), bool)
    chosen: dict[str, NDArray[np.bool_]] = {}  # group → (shards,) whether to compute it now
    waiting: dict[str, NDArray[np.bool_]] = {}  # group → (shards,) whether a later wave decides
    for group, declaration in declarations.items():
        upstream = groups_of(declaration["reads"])
        upstream_waits = np.logical_or.reduce([waiting.get(read, nothing) for read in upstream] or [nothing])
        upstream_changes = np.logical_or.reduce([chosen.get(read, nothing) for read in upstream] or [nothing])
        present = FooterTable.of(footers.get(group, {})).positions(shards) >= 0
        stale = present & ~fresh_shards(declaration, shards, footers, group)
        chosen[group] = np.where(present, stale & ~upstream_waits & ~upstream_changes, ~upstream_waits)
        waiting[group] = np.where(present, upstream_waits | upstream_changes, upstream_waits)
    waits = np.logical_or.reduce([nothing, *waiting.values()])
    return Wave(_work(shards, chosen), [shards[index] for index in np.flatnonzero(waits).tolist()])


def _work(names: Sequence[str], chosen: Mapping[str, NDArray[np.bool_]]) -> dict[str, list[str]]:
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
    return work


def _load(dataset: Dataset, group: str, name: str | None, parameters: Mapping[str, Mapping[str, Any]]) -> Labeler:
    """The labeler of a group, with the parameters given for its labeler or for the group over those declared.

    name: how it was requested; None for a group that is needed by another.
    """
    declaration = dataset.declaration(group) or {}
    if base_name(group) == SELECTION and not declaration:
        raise InputError(
            f"{dataset.uri}: no condition {group!r} there; select rows with --where, or all with --where true"
        )
    given = {**parameters.get(base_name(group), {}), **parameters.get(group, {})}
    if name is None or name == group:
        name = declared_name(group, declaration)
    declared = declaration["parameters"] if declaration else find_labeler(name).first_parameters(given)
    return load_labeler(name, {**declared, **given})


def _is_complete(dataset: Dataset, group: str) -> bool:
    """Whether a group is declared and none of its shards is missing."""
    return dataset.declaration(group) is not None and len(dataset.shard_entries(group)) == len(dataset.shards)
