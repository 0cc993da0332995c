"""Two runs beside each other: how far they came, and where their configurations differ."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from labeling.dataset import Store
from pipelines.reports.numbers import duration, is_number, number
from training.run import differences


@dataclass(frozen=True)
class Comparison:
    """names: of both runs. figures: (what, of this run, of the other); settings: (key, of this run, of the other)."""

    names: tuple[str, str]
    figures: Sequence[tuple[str, str, str]]
    settings: Sequence[tuple[str, str, str]]


def compare(
    stores: tuple[Store, Store],
    configs: tuple[Mapping[str, Any], Mapping[str, Any]],
    records: tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]],
    seconds: tuple[float, float],
) -> Comparison:
    """Of this run and another. records: of metrics.jsonl; seconds: in training."""
    names = [PurePosixPath(store.uri).name for store in stores]
    if names[0] == names[1]:
        names = [store.uri for store in stores]
    rows = [
        _line("steps", [number(_last(each, "step")) for each in records]),
        _line("loss at the end", [number(_end(each, "loss")) for each in records]),
        _line("validation loss", [number(_last(each, "validation_loss")) for each in records]),
        _line("image tokens a second", [number(_end(each, "tokens_per_second")) for each in records]),
        _line("memory, GB", [number(max(_values(each, "memory_gb"), default=None)) for each in records]),
        _line("time in training", [duration(each) if each else "–" for each in seconds]),
    ]
    tasks = dict.fromkeys(task for each in records for record in each for task in record.get("validation_losses") or {})
    for task in tasks:
        values = [[(one.get("validation_losses") or {}).get(task) for one in each] for each in records]
        last = [next((value for value in reversed(each) if is_number(value)), None) for each in values]
        rows.append(_line(f"validation loss of {task}", [number(value) for value in last]))
    changed = [(key, _shown(one), _shown(other)) for key, one, other in differences(dict(configs[0]), dict(configs[1]))]
    return Comparison((names[0], names[1]), rows, changed)


def _line(what: str, values: Sequence[str]) -> tuple[str, str, str]:
    own, other = values
    return what, own, other


def _shown(value: Any) -> str:
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _values(records: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [float(record[key]) for record in records if is_number(record.get(key))]


def _last(records: Sequence[Mapping[str, Any]], key: str) -> float | None:
    return next(reversed(_values(records, key)), None)


def _end(records: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = _values(records, key)[-5:]
    return sum(values) / len(values) if values else None
