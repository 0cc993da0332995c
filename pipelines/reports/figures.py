"""Figures of a run's evaluation: how its labels correlate with the true ones, beside baselines, and what that means."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from labeling.dataset import Store
from pipelines.reports.charts import dot_strip
from pipelines.reports.numbers import is_number, number, two_decimals

EVALUATION = "evaluation.json"
BASELINES = {
    "step_0": "before training",
    "mean_label": "mean of the other labels",
    "other_pictures": "labels of other pictures",
}


@dataclass(frozen=True)
class Figure:
    """One figure as the page shows it: the model's, the baselines' in the order of BASELINES, and what it means."""

    name: str
    title: str
    model: str
    baselines: Sequence[str]
    pictures: str
    wins: bool
    meaning: str
    strip: Markup


def run_figures(store: Store, figures: Mapping[str, Any] | None = None) -> list[Figure]:
    """The figures of a run's evaluation. figures: used instead of those stored in RUN/evaluation.json."""
    if figures is None:
        stored = read_json(store, EVALUATION) or {}
        figures = stored.get("figures", stored)
    return [_figure(name, figure) for name, figure in figures.items() if isinstance(figure, Mapping)]


def read_json(store: Store, name: str) -> Any:
    """The content of a JSON file, None where it is absent or cut short."""
    try:
        return json.loads(store.read(name))
    except (FileNotFoundError, ValueError):
        return None


def _figure(name: str, figure: Mapping[str, Any]) -> Figure:
    label = name.removeprefix("image_to_").removesuffix("_correlation")
    title = f"picture → {label}" if name.startswith("image_to_") else name
    model = figure.get("model")
    baselines = [figure.get(key) for key in BASELINES]
    wins = is_number(model) and all(model > value for value in baselines if is_number(value))
    return Figure(
        name=name,
        title=title,
        model=two_decimals(model),
        baselines=[two_decimals(value) for value in baselines],
        pictures=number(figure.get("pictures")),
        wins=wins,
        meaning=_meaning(label, model, figure, wins),
        strip=dot_strip(figure, BASELINES),
    )


def _meaning(label: str, model: Any, figure: Mapping[str, Any], wins: bool) -> str:
    if not is_number(model):
        return f"No {label} could be compared with a true label."
    baselines = {name: figure[key] for key, name in BASELINES.items() if is_number(figure.get(key))}
    verdict = ""
    if baselines:
        name, value = max(baselines.items(), key=lambda item: item[1])
        verdict = f", {'more' if wins else 'no more'} than the best baseline ({name}: {value:.2f})"
    pictures = figure.get("pictures")
    over = f" on {pictures} training pictures" if pictures else ""
    return (
        f"The correlation of sampled with true {label} is {model:.2f}{over}{verdict}; "
        "1 is pixel for pixel the same, 0 is no relation."
    )
