"""A reader of a small run's plan, samples of it, and what is stored of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from labeling.dataset import Dataset
from training.batch import Sample
from training.config import TrainingConfig, load_config
from training.plan.mixture import build_manifest
from training.plan.step_plan import PlannedSample
from training.reader import PlanReader

WIDTH = 32  # of prompts


def debug_config(settings: dict[str, Any], **changes: Any) -> TrainingConfig:
    return load_config("debug", {**settings, **changes})


def plan_reader(config: TrainingConfig) -> PlanReader:
    return PlanReader(build_manifest(config.mixture, config.size), config, "dct")


def first_sample(reader: PlanReader, task: str, drop_caption: bool = False) -> PlannedSample:
    samples = (reader.dealer.plan.sample(index) for index in range(500))
    return next(sample for sample in samples if sample.task == task and sample.drop_caption == drop_caption)


def read_sample(reader: PlanReader, planned: PlannedSample) -> Sample:
    return reader.read_sample(planned, np.ones(planned.frames, np.float32), np.ones(planned.frames, bool))


def stored_row(dataset: Path, group: str, planned: PlannedSample) -> dict[str, Any]:
    table = Dataset.open(dataset).read(group, f"{planned.shard:06d}", row_groups=[planned.row_group])
    return {name: table[name][planned.row].as_py() for name in table.column_names}


def entry_of(entries: list[dict[str, Any]], task: str) -> np.ndarray[Any, Any]:
    entry = next(entry for entry in entries if entry["task"] == task)
    return np.array(entry["embedding"], np.float16).reshape(entry["tokens"], WIDTH)
