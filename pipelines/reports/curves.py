"""Curves of a run over its steps, beside those of another run where two are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from pipelines.reports.charts import Points, chart_top, line_chart
from pipelines.reports.numbers import is_number

Records = Sequence[Mapping[str, Any]]
_CURVES = (
    ("loss", "Loss", "loss", "all tasks; as logged (faint) and smoothed"),
    ("validation_loss", "Validation loss", "loss", "of the averaged weights, at every checkpoint"),
    ("tokens_per_second", "Throughput", "tokens/s", "image tokens a second over all workers"),
    ("mfu", "MFU", "share", "of the FLOP that the GPUs could compute"),
    ("memory_gb", "Memory", "GB", "of the worker that has most"),
    ("learning_rate", "Learning rate", "rate", ""),
    ("gradient_norm", "Gradient norm", "norm", "before clipping"),
)


@dataclass(frozen=True)
class Chart:
    """A chart with its heading and one line on what it shows."""

    title: str
    svg: Markup
    note: str = ""


def run_charts(records: Records, others: Records = ()) -> list[Chart]:
    """Loss, speed, memory, rate and gradient. others: of a run that is compared, dashed."""
    charts = [
        Chart(
            title,
            line_chart(
                _points(records, key), title, unit, key != "learning_rate", others={"beside": _points(others, key)}
            ),
            note,
        )
        for key, title, unit, note in _CURVES
    ]
    return [chart for chart in charts if chart.svg]


def part_charts(records: Records, key: str, label: str, others: Records = ()) -> list[Chart]:
    """Losses by task ("losses") or by noise level, all on the same vertical axis, with those of validation.

    label: of a chart, for readers of the page's text, with {} for the part. others: of a run that is compared, dashed.
    """
    curves = _parts(records, key)
    validation, beside = _parts(records, f"validation_{key}"), _parts(others, key)
    top = max((chart_top([loss for _, loss in curve]) for curve in curves.values()), default=1.0)
    charts = [
        Chart(
            part,
            line_chart(
                curve,
                label.format(part),
                "loss",
                top=top,
                others={"validation": validation.get(part, []), "beside": beside.get(part, [])},
            ),
        )
        for part, curve in curves.items()
    ]
    return [chart for chart in charts if chart.svg]


def values_of(records: Records, key: str) -> list[float]:
    """The finite values of a key, in order."""
    return [value for _, value in _points(records, key)]


def _parts(records: Records, key: str) -> dict[str, Points]:
    """Part → (step, loss): nested, as metrics.jsonl has them, or flat, as trackers write them."""
    prefix = key.replace("losses", "loss") + "/"
    curves: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        flat = {name.removeprefix(prefix): value for name, value in record.items() if name.startswith(prefix)}
        for part, value in {**(record.get(key) or {}), **flat}.items():
            if isinstance(value, int | float):
                curves.setdefault(part, []).append((float(record["step"]), float(value)))
    return dict(sorted(curves.items())) if key == "level_losses" else dict(curves)


def _points(records: Records, key: str) -> list[tuple[float, float]]:
    return [(float(record["step"]), float(record[key])) for record in records if is_number(record.get(key))]
