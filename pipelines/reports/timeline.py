"""What a run drew of the same rows from the same noise at its checkpoints, one after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from labeling.dataset import Store
from model.prompts import TASKS
from pipelines.reports.figures import read_json
from pipelines.reports.overlays import Drawing, Inliner, inline_file
from training.sample_folders import FOLDER, INDEX, drawn_steps, step_folder

MAX_STEPS, MAX_ROWS, SIDE = 8, 24, 128
_IDENTITY = ("task", "direction", "dataset", "shard", "row", "views")


@dataclass(frozen=True)
class Timeline:
    """A row as it was drawn at several steps: what was given, what is true, and (which run and step, drawings)."""

    task: str
    direction: str
    prompt: str
    given: Sequence[Drawing]
    truth: Sequence[Drawing]
    drawn: Sequence[tuple[str, Sequence[Drawing]]]


def timelines(store: Store, inline: Inliner, other: Store | None = None) -> list[Timeline]:
    """Of each row that is drawn at the run's checkpoints, spread evenly over them, until `inline` is full.

    other: a run that is compared; of the rows that it has drawn too, what it drew last is shown.
    """
    steps = _spread(drawn_steps(store))
    by_step = {step: _records(store, step) for step in steps}
    last = max(drawn_steps(other), default=None) if other else None
    others = _records(other, last) if other and last is not None else {}
    order = {task: place for place, task in enumerate(TASKS)}
    keys = list(dict.fromkeys(key for records in reversed(by_step.values()) for key in records))
    keys.sort(key=lambda key: (order.get(str(key[0]), len(order)), key))
    rows: list[Timeline] = []
    for key in keys[:MAX_ROWS]:
        if inline.full:
            break
        own = {step: records[key] for step, records in by_step.items() if key in records}
        record = own[max(own)]
        drawn = [
            (f"step {step:,}", _pictures(store, step, each, "output", inline)) for step, each in sorted(own.items())
        ]
        if other and last is not None and key in others:
            name = PurePosixPath(other.uri).name
            drawn.append((f"{name}, step {last:,}", _pictures(other, last, others[key], "output", inline)))
        rows.append(
            Timeline(
                task=str(record.get("task", "")),
                direction=str(record.get("direction", "")),
                prompt=str(record.get("prompt") or ""),
                given=_pictures(store, max(own), record, "inputs", inline),
                truth=_pictures(store, max(own), record, "truth", inline),
                drawn=drawn,
            )
        )
    return rows


def _spread(steps: list[int]) -> list[int]:
    """At most MAX_STEPS of them, the first and the last among these."""
    if len(steps) <= MAX_STEPS:
        return steps
    return [steps[round(place * (len(steps) - 1) / (MAX_STEPS - 1))] for place in range(MAX_STEPS)]


def _records(store: Store, step: int) -> dict[tuple[str, ...], Mapping[str, Any]]:
    found = read_json(store, f"{step_folder(step)}/{INDEX}") or []
    return {tuple(str(one.get(name)) for name in _IDENTITY): one for one in found if isinstance(one, dict)}


def _pictures(store: Store, step: int, record: Mapping[str, Any], kind: str, inline: Inliner) -> list[Drawing]:
    """Only files of the samples' folders are read, since a run from elsewhere may name any file."""
    titles = {"inputs": "given", "truth": "true", "output": "sampled"}
    drawings = [Drawing("sampled", note=str(record["note"]))] if kind == "output" and record.get("note") else []
    for name in record.get(kind) or []:
        place = PurePosixPath(str(name))
        folder = f"{FOLDER}/given" if place.parent.name == "given" else step_folder(step)
        alt = f"{titles[kind]} {record.get('task')} of {record.get('id', '')!s:.8}"
        try:
            drawings.append(inline_file(store.read(f"{folder}/{place.name}"), inline, alt, titles[kind], SIDE))
        except FileNotFoundError:
            drawings.append(Drawing(titles[kind], note="the file is not there"))
    return drawings
