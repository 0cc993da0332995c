"""The parts of the labeling job that need no Ray: cutting, placement, and the steps of a part in a process."""

from __future__ import annotations

import asyncio
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from labeling.dataset import IMAGE_SCHEMA, IMAGES, Dataset, open_store, write_shard
from labeling.declaration import declare
from labeling.failures import DeviceError
from labeling.labeler import Labeler
from labeling.plan import Wave
from labeling.registry import load_labeler
from labeling.resources import Resources
from labeling.run import label_table
from labeling.supervision.task_attempt import Attempt, Knowledge
from model.inputs import InputError
from model.pictures import decode_picture
from pipelines.labeling_job.network_process import NetworkProcess
from pipelines.labeling_job.part_labeler import PartLabeler
from pipelines.labeling_job.parts import Part, blocks_of_parts, cut_parts, pack, unpack
from pipelines.labeling_job.placement import place_labelers, resources_by_group
from pipelines.labeling_job.tables import from_bytes
from pipelines.labeling_job.tally import MAX_REASONS, Errors

NAMES = ("brightness", "spread", "widths", "doubled")


@pytest.fixture
def dataset(tmp_path: Path, photographs: Path) -> Dataset:
    """Seven photographs in a shard of row groups of two, two and three."""
    names = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "camera.png", "brick.png", "grass.png")
    encoded = [(photographs / name).read_bytes() for name in names]
    rows = [
        {"id": name, "image": data, "width": decode_picture(data).shape[1]}
        for name, data in zip(names, encoded, strict=True)
    ]
    store = open_store(tmp_path / "dataset")
    table = pa.Table.from_pylist([dict.fromkeys(IMAGE_SCHEMA.names) | row for row in rows], IMAGE_SCHEMA)
    write_shard(store, IMAGES, "000000", table, [2, 2, 3], "recipe")
    store.put("dataset.json", b'{"schema": 1, "kind": "pictures", "shards": [{"name": "000000", "rows": 7}]}')
    return Dataset.open(tmp_path / "dataset")


def load(**parameters: dict[str, Any]) -> dict[str, Labeler]:
    """The simple labelers by group."""
    return {name: load_labeler(f"simple_labelers:{name.capitalize()}", parameters.get(name, {})) for name in NAMES}


def start(dataset: Dataset, labelers: dict[str, Labeler], networks: list[str]) -> PartLabeler:
    return PartLabeler(dataset, labelers, dict.fromkeys(labelers, Resources()), networks)


def expected(dataset: Dataset, labelers: dict[str, Labeler]) -> dict[str, pa.Table]:
    """The columns of each group, made one labeler after another without a job."""
    images = dataset.read(IMAGES, "000000").to_pylist()
    columns = {"id": [row["id"] for row in images], "images.image": [decode_picture(row["image"]) for row in images]}
    tables = {}
    for group, labeler in labelers.items():
        names = ("id", *labeler.reads)
        rows = [dict(zip(names, values, strict=True)) for values in zip(*(columns[n] for n in names), strict=True)]
        tables[group] = label_table(labeler, rows, sets=False)
        columns |= {f"{group}.{name}": tables[group][name].to_pylist() for name in labeler.schema.names}
    return tables


def ask_network(labeler: Labeler, inputs: dict[str, bytes]) -> dict[str, bytes]:
    prepared = [pickle.loads(one) for one in inputs.values()]
    return dict(zip(inputs, [pickle.dumps(one) for one in labeler.infer(prepared)], strict=True))


def test_part_gives_what_its_labelers_give_one_by_one(dataset: Dataset) -> None:
    labelers = load(spread={"refuse_wider_than": 600})
    part = Part("000000", 0, 3, [2, 2, 3], NAMES, {})
    step = start(dataset, labelers, [])((part, {}, None), Attempt())
    assert {group: from_bytes(table) for group, table in step.tables.items()} == expected(dataset, labelers)
    assert step.tally.rows == dict.fromkeys(NAMES, 7)
    wide = sum(row["width"] > 600 for row in dataset.rows("images", ["width"]))
    assert [(reason, kept.rows) for reason, kept in step.tally.errors["spread"].top()] == [("wider than 600", wide)]
    assert step.tally.errors["widths"].rows == wide
    assert step.tally.errors["spread"].unexpected == 0


def test_network_elsewhere_gives_the_same_even_when_the_process_is_new(dataset: Dataset) -> None:
    labelers = load(spread={"refuse_wider_than": 600})
    part = Part("000000", 1, 3, [2, 2, 3], NAMES, {})
    labels = {group: table.slice(2) for group, table in expected(dataset, labelers).items()}
    process = start(dataset, labelers, ["spread"])
    step = process((part, {}, None), Attempt())
    assert not step.tables
    assert step.requests.keys() == {"spread"}
    outputs = {"spread": ask_network(labelers["spread"], dict(step.requests["spread"]))}
    assert len(outputs["spread"]) < 5  # rows in error go to no network
    for one in (process, start(dataset, load(spread={"refuse_wider_than": 600}), ["spread"])):
        tables = one((part, outputs, None), Attempt()).tables
        assert {group: from_bytes(table) for group, table in tables.items()} == labels
    assert not process.pending


def test_part_that_comes_next_is_read_meanwhile_and_again_where_that_fails(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    labelers = load()
    first, second = (Part("000000", number, number + 1, [2, 2, 3], NAMES, {}) for number in range(2))
    labels = {group: table.slice(2, 2) for group, table in expected(dataset, labelers).items()}
    join, reads, failures = Dataset.join, list[list[int]](), list[int]()

    def fail_once(self: Dataset, shard: str, columns: Any, numbers: list[int]) -> pa.Table:
        reads.append(numbers)
        if len(reads) in failures:
            raise OSError("S3 is busy")
        return join(self, shard, columns, numbers)

    monkeypatch.setattr(Dataset, "join", fail_once)
    for failing, wanted in ([], [[0], [1]]), ([2], [[0], [1], [1]]):
        reads.clear()
        failures[:] = failing
        process = start(dataset, labelers, [])
        process((first, {}, second), Attempt())
        tables = process((second, {}, None), Attempt()).tables
        assert {group: from_bytes(table) for group, table in tables.items()} == labels
        assert reads == wanted
    failures.clear()
    reads.clear()
    process = start(dataset, labelers, ["spread"])
    step = process((first, {}, second), Attempt())
    outputs = {"spread": ask_network(labelers["spread"], dict(step.requests["spread"]))}
    assert process((first, outputs, second), Attempt()).tables  # which names it once more
    process((second, {}, first), Attempt())
    process.reader.shutdown()
    assert reads == [[0], [1], [0]]
    process = start(dataset, labelers, [])
    process((first, {}, second), Attempt(Knowledge(ends=[("brightness", ("a",))])))
    assert not process.prefetch  # while it is looked for why processes end


def test_only_rows_in_error_are_labeled_again(dataset: Dataset) -> None:
    labelers = {"brightness": load(brightness={"refuse_wider_than": 500})["brightness"]}
    part = Part("000000", 0, 3, [2, 2, 3], ["brightness"], {}, only_errors=True)
    before = expected(dataset, labelers)["brightness"]
    assert 0 < before["error"].null_count < 7
    write_shard(dataset.store, "brightness", "000000", before, [2, 2, 3], "recipe")
    # Other labels than before show which rows were labeled.
    labelers = {"brightness": load(brightness={"gain": 0.5})["brightness"]}
    now = expected(dataset, labelers)["brightness"]
    table = from_bytes(start(dataset, labelers, [])((part, {}, None), Attempt()).tables["brightness"])
    for old, new, row in zip(before.to_pylist(), now.to_pylist(), table.to_pylist(), strict=True):
        assert row == (new if old["error"] else old)


def test_wave_is_cut_into_parts_that_cover_it(dataset: Dataset) -> None:
    labelers = load()
    declarations = {group: declare(labeler) for group, labeler in labelers.items()}
    footers = {IMAGES: dataset.footers(IMAGES), **{name: {} for name in NAMES}}
    wave = Wave({"000000": list(NAMES)})
    for rows, bounds in ((1, [(0, 1), (1, 2), (2, 3)]), (4, [(0, 2), (2, 3)]), (100, [(0, 3)])):
        parts = list(cut_parts(wave, declarations, footers, rows, only_errors=False))
        assert [(part.first, part.end) for part in parts] == bounds
        assert all(part.digests.keys() == {"images.id", "images.image"} for part in parts)
        assert unpack(pack(parts)) == [replace(part, groups=list(part.groups)) for part in parts]
    many = [Part(f"{number:06d}", 0, 1, [64], NAMES, {}) for number in range(3000)]
    blocks = list(blocks_of_parts(iter(many), 3000 * 64, processes=16))
    assert [part for block in blocks for part in block] == many
    assert max(map(len, blocks)) <= 2
    few = list(blocks_of_parts(iter(many[:16]), 16 * 64, processes=4))
    assert len(few) == 16


def test_networks_get_gpus_where_there_are_some() -> None:
    labelers = {
        name: load_labeler(f"simple_labelers:{name.capitalize()}", {}) for name in ("brightness", "spread", "loose")
    }

    def gpus(given: dict[str, Resources], there: float) -> dict[str, float]:
        placement = place_labelers(labelers, resources_by_group(labelers, given), there, 8, may_grow=False)
        return {name: pool.gpus for name, pool in placement.pools.items()}

    assert gpus({}, 0) == {}
    assert gpus({}, 2) == {"spread": 1.0, "loose": 1.0}
    assert gpus({}, 1) == {"spread": 0.5, "loose": 0.5}
    assert gpus({"loose": Resources(gpus=0)}, 1) == {"spread": 1.0}
    assert gpus({"loose": Resources(gpus=0.25)}, 2) == {"spread": 1.0, "loose": 0.25}
    assert gpus({"loose": Resources(gpus=0.5)}, 1) == {"spread": 0.5, "loose": 0.5}
    assert gpus({"loose": Resources(gpus=0.6)}, 1) == {"spread": 0.4, "loose": 0.6}
    assert gpus({"loose": Resources(gpus=0.6, processes=(2, 2))}, 2) == {"spread": 0.4, "loose": 0.6}
    assert gpus({"loose": Resources(gpus=2)}, 2) == {"loose": 2.0}  # the other one goes on CPUs
    assert gpus({"loose": Resources(gpus=2)}, 3) == {"spread": 1.0, "loose": 2.0}
    with pytest.raises(InputError, match="do not fit on 2"):
        gpus({"loose": Resources(gpus=0.6, processes=(3, 3))}, 2)
    with pytest.raises(InputError, match="3 GPUs asked for, and the cluster has 2"):
        gpus({"loose": Resources(gpus=1, processes=(3, 4)), "spread": Resources(gpus=0)}, 2)
    with pytest.raises(InputError, match="did you mean 'loose'"):
        gpus({"lose": Resources(gpus=1)}, 2)
    with pytest.raises(InputError, match="neither a part of a GPU nor a whole number"):
        gpus({"loose": Resources(gpus=1.5)}, 2)


def test_processes_on_cpus_leave_networks_the_cpus_that_they_asked_for() -> None:
    labelers = {name: load_labeler(f"simple_labelers:{name.capitalize()}", {}) for name in ("brightness", "loose")}

    def reserved(there: float, **given: Any) -> float:
        resources = resources_by_group(labelers, {"loose": Resources(**given)})
        return place_labelers(labelers, resources, there, 8, may_grow=False).reserved_cpus(there, 8)

    assert reserved(0) == 0
    assert reserved(1) == 0  # one with a GPU takes no CPU unless it is to
    assert reserved(1, gpus=1, cpus=2) == 2
    assert reserved(2, gpus=1, cpus=2) == 4
    assert reserved(2, gpus=1, cpus=2, processes=(1, 1)) == 2
    assert reserved(4, gpus=1, cpus=2) == 4  # half of them
    assert reserved(4, gpus=1, cpus=2, processes=(3, 4)) == 6


def test_gpu_that_torch_cannot_use_is_a_failure_of_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from pipelines.labeling_job import network_process

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(network_process, "GPU_FILES", [tmp_path / "driver"])
    assert network_process._device() == "cpu"
    (tmp_path / "driver").touch()
    with pytest.raises(DeviceError, match="No CUDA GPUs are available to torch, though this machine has one"):
        network_process._device()


def test_resources_of_a_group_override_those_of_its_labeler() -> None:
    groups = ("latents-96", "latents-96-edges", "latents-64")
    labelers = {group: load_labeler(group, {}) for group in groups}
    given = {"latents": Resources(gpus=0.5, batch=3), "latents-64": Resources(batch=5)}
    resources = resources_by_group(labelers, given)
    assert [(resources[group].gpus, resources[group].batch) for group in groups] == [(0.5, 3), (0.5, 3), (0.5, 5)]


def test_reasons_are_counted_and_bounded() -> None:
    total = Errors()
    for number in range(3):
        errors = Errors()
        errors.add("often", f"row-{number}", rows=10, unexpected=10)
        errors.add(f"once {number}", f"one-{number}")
        total.merge(Errors.from_plain(errors.to_plain()))
    assert (total.rows, total.unexpected) == (33, 30)
    assert [(reason, kept.rows, kept.example) for reason, kept in total.top(1)] == [("often", 30, "row-0")]
    for number in range(2 * MAX_REASONS):
        total.add(f"reason {number}", "")
    assert len(total.reasons) <= MAX_REASONS + 1
    assert total.rows == 33 + 2 * MAX_REASONS


@pytest.mark.parametrize(("name", "batches"), [("Loose", [4, 4, 1]), ("Spread", [3, 3, 3])])
def test_batches_hold_rows_of_several_requests_only_where_labels_may_depend_on_it(
    name: str, batches: list[int], tmp_path: Path
) -> None:
    labeler = load_labeler(f"simple_labelers:{name}", {"journal": str(tmp_path)})
    process = NetworkProcess(labeler, Resources(batch=4))
    pictures = [np.full((2, 2), fill, np.float32) * [[0, 1], [0, 1]] for fill in range(9)]

    async def ask() -> list[list[bytes]]:
        requests = [range(start, start + 3) for start in (0, 3, 6)]
        return await asyncio.gather(
            *(process.infer([str(i) for i in rows], [pickle.dumps(pictures[i]) for i in rows]) for rows in requests)
        )

    outputs = [pickle.loads(one) for answer in asyncio.run(ask()) for one in answer]
    assert outputs == [picture.std() for picture in pictures]
    notes = [json.loads(line) for line in (tmp_path / "notes.jsonl").read_text().splitlines()]
    assert [note["rows"] for note in notes] == batches
    process.child.close()
