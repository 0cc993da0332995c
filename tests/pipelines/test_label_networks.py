"""Networks of labelers on GPUs, as far as Ray's own count of them goes: who runs where, and the same labels."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import onediffusion
from logical_nodes import actors_on, joined_node

from labeling.dataset import Dataset
from labeling.resources import Resources
from model.inputs import InputError, WorkFailed
from model.inputs.yaml_files import to_yaml
from model.pictures import encode_png
from pipelines.ingest import ingest
from pipelines.jobs.resolved import stored_job
from pipelines.label import LabelResult, label

NAMES = [f"simple_labelers:{name}" for name in ("Brightness", "Spread", "Widths", "Loose")]
ALONE = {"spread": Resources(gpus=0), "loose": Resources(gpus=0)}


@pytest.fixture(scope="module")
def gpus(ray_cluster: None) -> Iterator[None]:
    """A second node that says it has two GPUs, which joins the Ray of these tests."""
    import ray

    with joined_node(cpus=1, gpus=2):
        deadline = time.monotonic() + 240
        while not ray.cluster_resources().get("GPU"):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield


@pytest.fixture
def dataset(gpus: None, dataset: Dataset) -> Dataset:
    """The shared one, once there are GPUs."""
    return dataset


def settings(folder: Path, *groups: str, **more: Any) -> dict[str, dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    return {name: {"journal": str(folder), **more} for name in groups}


def notes(folder: Path, step: str) -> list[dict[str, Any]]:
    lines = (folder / "notes.jsonl").read_text().splitlines()
    return [note for note in map(json.loads, lines) if note["step"] == step]


def files(dataset: Dataset) -> dict[str, bytes]:
    paths = sorted(Path(dataset.uri).glob("*/0*.parquet"))
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in paths}


def test_node_that_joins_later_gets_the_network_that_waits_for_a_gpu(
    ray_cluster: None, shared_ray: None, tmp_path: Path
) -> None:
    """Before `gpus` joins: while nobody has a GPU, the network of the job waits for one."""
    import ray

    (tmp_path / "pictures").mkdir()
    for number in range(48):
        picture = np.full((40, 40 + number, 3), 5 * number, np.uint8)
        (tmp_path / "pictures" / f"{number}.png").write_bytes(encode_png(picture))
    ingest(str(tmp_path / "pictures"), str(tmp_path / "dataset"), shard_rows=8)
    parameters = settings(tmp_path / "notes", "loose", seconds=0.3)
    assert not ray.cluster_resources().get("GPU")

    def run() -> LabelResult:
        resources = {"loose": Resources(gpus=0.5, batch=1)}
        return label(str(tmp_path / "dataset"), NAMES[-1:], parameters, resources=resources)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run)
        deadline = time.monotonic() + 120
        while not (tmp_path / "notes" / "notes.jsonl").exists():  # of rows that are prepared and wait
            assert time.monotonic() < deadline
            time.sleep(0.2)
        with joined_node(cpus=2, gpus=1) as node:
            assert running.result(300).written == {"loose": 6}
            assert "NetworkProcess" in actors_on(node)


def test_only_networks_have_gpus_and_labels_are_the_same(dataset: Dataset, tmp_path: Path) -> None:
    parameters = settings(tmp_path / "notes", "spread", "loose")
    label(dataset.uri, NAMES, parameters, resources=ALONE)
    alone = files(dataset)
    assert {note["gpus"] for note in notes(tmp_path / "notes", "infer")} == {""}
    for group in ("brightness", "spread", "widths", "loose"):
        for shard in dataset.shards:
            dataset.store.delete(f"{group}/{shard.name}.parquet")
    (tmp_path / "notes" / "notes.jsonl").unlink()

    resources = {"spread": Resources(gpus=0.5, processes=(2, 2)), "loose": Resources(gpus=1)}
    result = label(dataset.uri, NAMES, parameters, resources=resources)
    assert result.written == {group: len(dataset.shards) for group in ("brightness", "spread", "widths", "loose")}
    assert files(dataset) == alone
    inferred = notes(tmp_path / "notes", "infer")
    assert {note["gpus"] for note in inferred} == {"0", "1"}
    on_cpus = [note for step in ("prepare", "finish") for note in notes(tmp_path / "notes", step)]
    assert {note["gpus"] for note in on_cpus} == {""}
    assert not {note["process"] for note in inferred} & {note["process"] for note in on_cpus}


@pytest.mark.parametrize("command", ["label", "submit"])
def test_resources_that_a_person_writes_reach_the_network(
    command: str, dataset: Dataset, tmp_path: Path, shared_ray: None, own_data: None
) -> None:
    folder = tmp_path / "notes"
    parameters = settings(folder, "loose")
    if command == "label":
        options = ("--set", f"loose.journal={folder}", "--resources", "loose.gpus=0.5", "--resources", "loose.batch=1")
        done = onediffusion("label", dataset.uri, NAMES[-1], *options)
    else:
        job = {"kind": "label", "dataset": dataset.uri, "groups": NAMES[-1:], "parameters": parameters}
        (tmp_path / "job.yaml").write_text(to_yaml({**job, "resources": {"loose": {"gpus": 0.5}}}))
        sent = onediffusion("submit", tmp_path / "job.yaml", "--target", "local", "--resources", "loose.batch=1")
        done = onediffusion("logs", "-f", sent.stdout.strip())
        recorded = stored_job(f"{dataset.uri}/jobs/{sent.stdout.strip()}")
        assert recorded.specification.resources == {"loose": Resources(gpus=0.5, batch=1)}
        assert recorded.resources.gpus == 0.5  # of each worker, though the file names no workers
    assert f"loose: {len(dataset.shards)} shards labeled" in done.stdout, done.stderr
    inferred = notes(folder, "infer")
    assert {note["gpus"] for note in inferred} <= {"0", "1"}
    assert {note["rows"] for note in inferred} == {1}
    assert "gpus" not in Path(dataset.uri, "loose", "group.json").read_text()


def test_pool_that_may_have_more_processes_than_fit_does_not_wait_for_them(dataset: Dataset, tmp_path: Path) -> None:
    parameters = settings(tmp_path / "notes", "loose", seconds=0.3)
    resources = {"loose": Resources(gpus=0.6, batch=1, processes=(1, 8))}
    label(dataset.uri, NAMES[-1:], parameters, resources=resources)
    inferred = notes(tmp_path / "notes", "infer")
    assert {note["rows"] for note in inferred} == {1}
    assert len({note["process"] for note in inferred}) <= 2


def test_device_that_fails_everywhere_ends_the_job_in_one_line_and_is_no_rows_error(
    dataset: Dataset, tmp_path: Path
) -> None:
    parameters = settings(tmp_path / "notes", "loose", fault="CUDA error: an illegal memory access was encountered")
    with pytest.raises(WorkFailed, match="loose: its network fails on every device: CUDA error"):
        label(dataset.uri, NAMES[-1:], parameters, resources={"loose": Resources(gpus=1)})
    assert not list(Path(dataset.uri).glob("loose/0*.parquet"))


@pytest.mark.parametrize(("what", "reason"), [("infer-abort", "the process died: SIGABRT"), ("infer", "no such shape")])
def test_row_that_breaks_a_network_on_a_gpu_is_in_error_and_the_job_goes_on(
    what: str, reason: str, dataset: Dataset, shared_ray: None
) -> None:
    rows = [row["id"] for row in dataset.rows("images", ["id"])]
    options = ("--set", f"device.what={what}", "--set", f"device.row={rows[1]}", "--resources", "device.gpus=0.5")
    done = onediffusion("label", dataset.uri, "bad_labelers:BadDevice", *options)
    assert done.returncode == 0 and reason in done.stdout + done.stderr, done.stderr
    labeled = list(dataset.rows("device"))
    assert [row["id"] for row in labeled] == rows
    assert {row["id"]: reason in row["error"] for row in labeled if row["error"]} == {rows[1]: True}
    assert all(row["value"] is not None for row in labeled if not row["error"])


def test_restarted_coordinator_knows_that_it_lost_its_writers(dataset: Dataset) -> None:
    import ray

    from pipelines.labeling_job.coordinator import Coordinator

    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
    coordinator = ray.remote(Coordinator).options(**options).remote(dataset, {}, {})
    assert ray.get(coordinator.count_losses.remote()) == 0
    ray.kill(coordinator, no_restart=False)
    deadline = time.monotonic() + 240
    while not ray.get(coordinator.count_losses.remote()):  # the one that is to end may answer once more
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert ray.get(coordinator.count_losses.remote()) == 1
    ray.kill(coordinator)


def test_more_gpus_than_there_are_is_said_before_any_work(dataset: Dataset) -> None:
    with pytest.raises(InputError, match="loose: 3 GPUs asked for, and the cluster has 2"):
        label(dataset.uri, NAMES[-1:], resources={"loose": Resources(gpus=3)})
    with pytest.raises(InputError, match="not among the groups to label"):
        label(dataset.uri, NAMES[-1:], resources={"lose": Resources(gpus=3)})
