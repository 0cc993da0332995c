"""Why shards of a group are stale: what its shards were made of, compared with what they would be made of now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from labeling.dataset import ID_COLUMN, IMAGES, RECIPE_FIELDS, Footers, expected_recipe, groups_of

MISSING = "missing"


@dataclass
class GroupPlan:
    """What a labeling job would do with one group.

    shards, rows: to compute now; waiting: shards that are computed only if what they read comes out with other values;
    fresh: shards with nothing to do; why: reason → shards, of those to compute.
    """

    shards: int = 0
    rows: int = 0
    waiting: int = 0
    fresh: int = 0
    why: dict[str, int] = field(default_factory=dict)


def plan_groups(
    declared: Mapping[str, Mapping[str, Any] | None],
    declarations: Mapping[str, Mapping[str, Any]],
    shards: Sequence[str],
    footers: Footers,
) -> dict[str, GroupPlan]:
    """What would be computed of each group, and why.

    declared: group.json as it is, None for a new group; declarations: as the job would write it, each group after
    those that it reads; footers: of the groups and of those that they read.
    """
    plans = {group: GroupPlan() for group in declarations}
    for shard in shards:
        computed: set[str] = set()
        for group, declaration in declarations.items():
            plan, footer = plans[group], footers.get(group, {}).get(shard)
            upstream = set(groups_of(declaration["reads"]))
            if footer is not None and upstream & computed:
                plan.waiting += 1
                computed.add(group)
            elif footer is None or footer.recipe != expected_recipe(declaration, shard, footers):
                reason = MISSING if footer is None else _why(declared[group], declaration, shard, group, footers)
                plan.shards += 1
                plan.rows += footers[IMAGES][shard].rows if shard in footers[IMAGES] else 0
                plan.why[reason] = plan.why.get(reason, 0) + 1
                computed.add(group)
            else:
                plan.fresh += 1
    return plans


def _why(
    declared: Mapping[str, Any] | None, declaration: Mapping[str, Any], shard: str, group: str, footers: Footers
) -> str:
    """Why one shard that is there is stale. Its recipe is a digest, so that causes are found by trying them."""
    footer = footers[group][shard]
    if declared and footer.recipe == expected_recipe({**declared, "reads": declaration["reads"]}, shard, footers):
        return "; ".join(_changes(declared, declaration))
    changed = [*_changes(declared, declaration)] if declared else []
    if declared and sorted(declared.get("reads", ())) != sorted(declaration["reads"]):
        changed.append("it reads other columns")
    read = ", ".join(column for column in declaration["reads"] if column != ID_COLUMN)
    if changed:
        return "; ".join(changed)
    return f"what it reads has changed ({read}), or it was made by an earlier declaration"


def _changes(declared: Mapping[str, Any], declaration: Mapping[str, Any]) -> list[str]:
    """The fields of a recipe in which two declarations differ: "version 1 → 2", "parameters low 60.0 → 40.0"."""
    changes = []
    for name in RECIPE_FIELDS:
        old, new = declared.get(name), declaration[name]
        if old == new:
            continue
        if name == "parameters":
            keys = sorted({*(old or {}), *new})
            pairs = [(key, (old or {}).get(key), new.get(key)) for key in keys]
            changes.append("parameters " + ", ".join(f"{key} {a} → {b}" for key, a, b in pairs if a != b))
        elif name == "weights":
            changes.append("other weights")
        else:
            changes.append(f"{name} {old} → {new}")
    return changes
