"""What a page says of sets without cameras: their kind, what was left out, and how their number follows a threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from labeling.dataset import Dataset
from labeling.sets.grouping import read_plan
from labeling.sets.rows import ORIGIN
from pipelines.reports.charts import line_chart

_TITLES = {"identity": "Sets of a person", "subject": "Sets of an item", "editing": "Pictures and edits"}


def describe_sets(dataset: Dataset) -> dict[str, Any] | None:
    """Of sets without cameras: title, figures in words, reasons why pictures were left out, charts; None of others."""
    parameters = (dataset.declaration(ORIGIN) or {}).get("parameters", {})
    kind = parameters.get("kind")
    if kind not in _TITLES:
        return None
    plan = read_plan(dataset.store) or {}
    threshold = parameters.get("distance") or parameters.get("similarity")
    name = "distance" if kind == "identity" else "similarity"
    figures = ""
    if plan:
        figures = f"{plan['pictures']:,} pictures of {plan['subjects']:,} groups" + (
            f", linked at a {name} of {threshold:g}" if plan["curve"] else ""
        )
    return {
        "title": _TITLES[kind],
        "figures": figures,
        "left_out": {reason: count for reason, count in plan.get("left_out", {}).items() if count},
        "curve": plan.get("curve", []),
        "threshold": name,
        "charts": _charts(plan.get("curve", []), name),
    }


def _charts(curve: Sequence[Mapping[str, float]], axis: str) -> list[tuple[str, Markup]]:
    if not curve:
        return []
    names = ("precision", "recall") if "precision" in curve[0] else ("pictures", "groups")
    ordered = sorted(curve, key=lambda one: one["threshold"])
    return [
        (
            name,
            line_chart(
                [(one["threshold"], one[name]) for one in ordered],
                name,
                f"{name} of pairs" if name in ("precision", "recall") else name,
                smooth=False,
                top=1.05 if name in ("precision", "recall") else None,
                axis=axis,
            ),
        )
        for name in names
    ]
