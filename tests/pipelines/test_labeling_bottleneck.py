"""What held a labeling job up: whichever of its parts is slow is named, with what would make it faster. Without Ray."""

from __future__ import annotations

import io
import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from labeling.dataset import IMAGE_SCHEMA, IMAGES, Dataset, ShardInfo, write_shard
from labeling.registry import load_labeler
from labeling.resources import Resources
from labeling.supervision.task_attempt import Attempt
from pipelines.labeling_job import row_group, tally
from pipelines.labeling_job.label_process import LabelProcess
from pipelines.labeling_job.part_labeler import PartLabeler
from pipelines.labeling_job.parts import Part
from pipelines.labeling_job.result import LabelResult
from pipelines.labeling_job.tally import Tally

GROUPS = ("brightness", "spread")
QUICK = 1.0  # seconds that a part of the job takes where it is not the slow one


class Clock:
    """A clock that only stands for what each part of the job takes: nothing depends on this machine."""

    def __init__(self, **seconds: float) -> None:
        self.seconds, self.now = seconds, 0.0

    def passes(self, part: str) -> None:
        self.now += self.seconds.get(part, QUICK)


class ProcessHere(LabelProcess):
    """A process of a job whose child, network and writer are in this process."""

    def __init__(self, labeler: PartLabeler, clock: Clock) -> None:
        self.child: Any = SimpleNamespace(run=lambda task: labeler(task, Attempt()))
        self.network = labeler.labelers["spread"]
        self.clock, self.lock, self.coming = clock, Lock(), []

    def _ask(self, group: str, inputs: Mapping[str, bytes]) -> tuple[int, Any]:
        return 0, [pickle.loads(one) for one in inputs.values()]

    def _answer(self, group: str, inputs: Mapping[str, bytes], number: int, answer: Any) -> list[Any]:
        self.clock.passes("network")
        return [pickle.dumps(one) for one in self.network.infer(answer)]

    def send(self, part: Part, tables: Mapping[str, bytes]) -> None:
        self.clock.passes("writer")


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Two pictures in a shard."""
    rows = []
    for name in ("a", "b"):
        file = io.BytesIO()
        Image.fromarray(np.full((32, 32, 3), 99, np.uint8)).save(file, "PNG")
        rows.append({"id": name, "image": file.getvalue(), "width": 32, "height": 32})
    table = pa.Table.from_pylist([dict.fromkeys(IMAGE_SCHEMA.names) | row for row in rows], IMAGE_SCHEMA)
    dataset = Dataset(tmp_path)
    write_shard(dataset.store, IMAGES, "000000", table, [2], "recipe")
    dataset.describe("pictures", [ShardInfo("000000", 2)], [])
    return dataset


def label(dataset: Dataset, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> LabelResult:
    """The result of a job on one part, by this clock."""
    join, decode = Dataset.join, row_group.decode_images

    def join_slowly(self: Dataset, *rest: Any) -> pa.Table:
        clock.passes("store")
        return join(self, *rest)

    def decode_slowly(*rest: Any) -> list[Any]:
        clock.passes("decoding")
        return decode(*rest)

    monkeypatch.setattr(tally, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(Dataset, "join", join_slowly)
    monkeypatch.setattr(row_group, "decode_images", decode_slowly)
    labelers = {group: load_labeler(f"simple_labelers:{group.capitalize()}", {}) for group in GROUPS}
    labeler = PartLabeler(dataset, labelers, dict.fromkeys(GROUPS, Resources()), ["spread"])
    part = ProcessHere(labeler, clock).label(Part("000000", 0, 1, [2], GROUPS, {}))
    result = LabelResult()
    result.add(Tally.from_plain(json.loads(json.dumps(part.to_plain()))))
    return result


@pytest.mark.parametrize(
    ("slow", "line"),
    [
        ("store", r"reading took 75% of the time: a faster store, or larger shards, would help"),
        ("decoding", r"decoding took 75% of the time: more CPUs would help"),
        ("writer", r"waiting for the writer took 75% of the time: writers were slow: a faster store would help"),
        ("network", r"waiting for the network of spread took 75% of the time: more GPUs or a larger batch .*"),
    ],
)
def test_slow_part_of_a_job_is_named(dataset: Dataset, slow: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    result = label(dataset, Clock(**{slow: 9.0}), monkeypatch)
    assert sum(result.steps.values()) == 12.0
    assert re.fullmatch(line, result.bottleneck()), result.steps


def test_network_is_named_where_processes_wait_for_it_though_they_read_for_longer(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = label(dataset, Clock(network=6.0, store=9.0), monkeypatch)
    assert result.bottleneck().startswith("waiting for the network of spread took 35%")


def test_slow_labeler_is_named(dataset: Dataset) -> None:
    result = LabelResult()
    result.add(Tally(rows={"edges": 2}, steps={"edges": 9.0, "reading": 1.0}))
    assert result.bottleneck() == "edges took 90% of the time: it runs on CPUs: more of them would help"
