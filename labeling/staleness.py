"""What a labeling job would compute, and why: what stale shards were made of, compared with what they are to be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labeling.dataset import EARLIER, IMAGES, Footers, FooterTable, expected_recipes, fresh_shards, groups_of

MISSING = "missing"
MAX_RANGES = 4
Mask = NDArray[np.bool_]  # (shards,)


@dataclass
class GroupPlan:
    """What a labeling job would do with one group.

    shards, rows: to compute now; waiting: shards that are computed only if what they read comes out with other values;
    fresh: shards with nothing to do; why: reason → numbers of the shards to compute, as their names have them.
    """

    shards: int = 0
    rows: int = 0
    waiting: int = 0
    fresh: int = 0
    why: dict[str, list[int]] = field(default_factory=dict)


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
    nothing, numbers = np.zeros(len(shards), bool), np.array([int(shard) for shard in shards])
    images = FooterTable.of(footers.get(IMAGES, {}))
    changes: dict[str, Mask] = {}  # group → whether a shard is computed, or may be
    plans = {}
    for group, declaration in declarations.items():
        present = FooterTable.of(footers.get(group, {})).positions(shards) >= 0
        stale = present & ~fresh_shards(declaration, shards, footers, group)
        reasons = {MISSING: ~present} if not present.all() else {}
        for reason, mask in _reasons(group, declared.get(group), declaration, shards, footers, stale):
            reasons[reason] = reasons.get(reason, nothing) | mask
        computed = np.logical_or.reduce([nothing, *reasons.values()])
        upstream = [changes[read] for read in groups_of(declaration["reads"]) if read in changes]
        waiting = present & ~computed & np.logical_or.reduce([nothing, *upstream])
        changes[group] = computed | waiting
        plans[group] = GroupPlan(
            shards=int(computed.sum()),
            rows=images.total("rows", images.positions(shards)[computed]),
            waiting=int(waiting.sum()),
            fresh=int((present & ~computed & ~waiting).sum()),
            why={reason: numbers[mask].tolist() for reason, mask in reasons.items()},
        )
    return plans


def plan_errors(groups: Sequence[str], shards: Sequence[str], footers: Footers) -> dict[str, GroupPlan]:
    """What would be tried again of each group with `only_errors`: the rows in error of the shards that there are."""
    chosen, plans = set(shards), {}
    for group in groups:
        table = FooterTable.of(footers.get(group, {}))
        errors = {shard: count for shard, count in table.errors().items() if shard in chosen}
        present = int((table.positions(shards) >= 0).sum())
        numbers = sorted(map(int, errors))
        why = {"rows in error": numbers} if numbers else {}
        plans[group] = GroupPlan(len(errors), sum(errors.values()), fresh=present - len(errors), why=why)
    return plans


def plan_lines(plans: Mapping[str, GroupPlan]) -> list[str]:
    """A plan for a person: a line for each group, and under it one for each reason."""
    lines = []
    for group, plan in plans.items():
        work = f"{plan.shards} shards to label, {plan.rows} rows" if plan.shards else "nothing to label"
        lines.append(f"{group}: {work}, {plan.fresh} shards fresh")
        for reason, numbers in plan.why.items():
            lines.append(
                f"  {reason}: shards {ranges(numbers)}" if len(numbers) > 1 else f"  {reason}: shard {numbers[0]}"
            )
        if plan.waiting:
            lines.append(f"  {plan.waiting} shards more if what they read comes out with other values")
    return lines


def ranges(numbers: Sequence[int]) -> str:
    """Sorted numbers as "3–5, 8", of which many are cut short: "0–2, 4, 6, 8 and 12 others"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    shown = ", ".join("–".join(map(str, run)) for run in runs[:MAX_RANGES])
    rest = sum(run[-1] - run[0] + 1 for run in runs[MAX_RANGES:])
    return f"{shown} and {rest} others" if rest else shown


def _reasons(
    group: str,
    declared: Mapping[str, Any] | None,
    declaration: Mapping[str, Any],
    shards: Sequence[str],
    footers: Footers,
    stale: Mask,
) -> Iterator[tuple[str, Mask]]:
    """Why shards that are there are stale: (reason, shards), each shard once.

    A recipe is a digest, so the declarations that a shard may have been made by are tried, the latest first. A shard
    that none of them explains was made of other values than those that it would read now. One of which a column to
    read is missing is in no reason: it is fresh after all if that column comes out as it was.
    """
    unexplained = stale.copy()
    for earlier in [declared, *(declared or {}).get(EARLIER, [])] if declared else []:
        if not unexplained.any():
            return
        reads = earlier.get("reads") or declaration["reads"]
        made_by = unexplained & fresh_shards({**earlier, "reads": reads}, shards, footers, group)
        if made_by.any():
            yield _changes(earlier, declaration) or "declared anew", made_by
            unexplained &= ~made_by
    readable = np.array([recipe is not None for recipe in expected_recipes(declaration, shards, footers)], bool)
    unexplained &= readable
    if unexplained.any():
        changed = f"{' or '.join(groups_of(declaration['reads']))} changed"
        yield "; ".join(filter(None, [changed, _changes(declared or {}, declaration)])), unexplained


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """In what two declarations differ: "version 1 → 2, parameter low 60.0 → 40.0"; "" where the labels are the same."""
    changes = []
    for name in ("labeler", "version"):
        if before.get(name) != now[name] and name in before:
            changes.append(f"{name} {before[name]} → {now[name]}")
    new = now["parameters"]
    old = before.get("parameters", new)
    for key in sorted({*old, *new}):
        if key not in old:
            changes.append(f"parameter {key} is now {_short(new[key])}")
        elif key not in new:
            changes.append(f"parameter {key} is no longer {_short(old[key])}")
        elif old[key] != new[key]:
            changes.append(f"parameter {key} {_short(old[key])} → {_short(new[key])}")
    if before.get("weights", now["weights"]) != now["weights"]:
        changes.append("weights changed")
    if before.get("reads") and sorted(before["reads"]) != sorted(now["reads"]):
        gone, added = sorted({*before["reads"]} - {*now["reads"]}), sorted({*now["reads"]} - {*before["reads"]})
        changes.append(" and ".join([f"reads {name}" for name in added] + [f"no longer reads {name}" for name in gone]))
    return ", ".join(changes)


def _short(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
