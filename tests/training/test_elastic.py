"""Resources: how workers and readers share them, and how runs are stopped and scaled while they wait for more."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from logical_nodes import actors_on, joined_node
from ray_head import ray_head, ray_node

from cluster.kubernetes.drain import NOT_WORK
from labeling.dataset import open_store
from training.checkpoint import whole_checkpoints
from training.config import TrainingConfig, load_config
from training.coordinator import ControlRequest
from training.metrics_logger import read_metrics
from training.run import readers_per_worker, run_training

pytestmark = pytest.mark.long
TOO_MANY = 4000
DRAIN_NODE = """
import ray
from cluster.kubernetes.drain import leave
ray.init(log_to_driver=False)
[node] = [node["NodeID"] for node in ray.nodes() if "node:__internal_head__" not in node["Resources"]]
leave(60, f"--node-id={node}")
"""


def config_of(settings: dict[str, Any], workers: dict[str, Any], **changes: Any) -> TrainingConfig:
    return load_config("debug", {**settings, **changes, "workers": {**settings["workers"], **workers}})


@pytest.mark.parametrize(
    ("count", "cpus", "reader", "there", "readers"),
    [
        (2, 1.0, {"processes": 2, "cpus": 1.0}, 6, 2),  # as much as targets are asked for
        (2, 1.0, {"processes": 2, "cpus": 1.0}, 5, 1),
        (2, 1.0, {"processes": 8, "cpus": 0.5}, 12, 8),
        (2, 1.0, {"processes": 2, "cpus": 1.0}, 1, 1),  # they wait; slower than with all, and not never
        ((1, 4), 1.0, {"processes": 3, "cpus": 1.0}, 3, 2),
        (4, 0.3, {"processes": 1, "cpus": 0.1}, 1.6, 1),
        (4, 1.0, {"processes": 5, "cpus": 0.0}, 1, 5),
    ],
)
def test_readers_per_worker_fit_the_remaining_cpus(
    small_config: dict[str, Any], count: Any, cpus: float, reader: dict[str, Any], there: float, readers: int
) -> None:
    config = config_of(small_config, {"count": count, "cpus": cpus}, reader=reader)
    assert readers_per_worker(config, there) == readers


@pytest.mark.usefixtures("ray_cluster")
def test_run_that_waits_for_resources_can_be_stopped(shared_config: dict[str, Any], tmp_path: Path) -> None:
    began = time.monotonic()
    config = config_of({**shared_config, "steps": 2}, {"count": TOO_MANY, "cpus": 1.0}, batch=TOO_MANY)
    stopped = run_training(
        config, str(tmp_path / "run"), control=lambda: ControlRequest(stop=time.monotonic() - began > 3)
    )
    assert (stopped.step, stopped.checkpoint) == (0, "")
    assert time.monotonic() - began < 150  # Ray itself would give up later


@pytest.mark.usefixtures("ray_cluster")
def test_run_that_waits_for_resources_can_be_scaled_and_leaves_cpus_for_readers(
    shared_config: dict[str, Any], tmp_path: Path
) -> None:
    """It waits for six workers and continues with one or two: of two CPUs each of two would take one for itself, and
    the readers of both would wait for a third."""
    reader = {"processes": 2, "cpus": 1.0}
    config = config_of({**shared_config, "steps": 2}, {"count": 6, "cpus": 1.0}, reader=reader)
    events: list[dict[str, Any]] = []
    began = time.monotonic()
    result = run_training(
        config,
        str(tmp_path / "run"),
        events.append,
        lambda: ControlRequest(workers=(1, 2) if time.monotonic() - began > 3 else None),
    )
    assert result.step == 2
    assert {"event": "scale", "step": 0, "workers": (1, 2)} in events
    assert whole_checkpoints(open_store(tmp_path / "run")) == [0, 2]
    assert len(read_metrics(open_store(tmp_path / "run"))) == 2


@pytest.mark.usefixtures("ray_cluster")
def test_readers_may_be_on_machines_without_workers(shared_config: dict[str, Any], tmp_path: Path) -> None:
    """The worker takes all CPUs of its own."""
    import ray

    reader = {"processes": 1, "cpus": 1.0, "beside": False}
    all_cpus = ray.cluster_resources()["CPU"]
    config = config_of({**shared_config, "steps": 2}, {"count": 1, "cpus": all_cpus}, reader=reader)
    with joined_node(cpus=1, gpus=0) as node:
        assert run_training(config, str(tmp_path / "run")).step == 2
        assert any("MapWorker" in name for name in actors_on(node))


@pytest.mark.slow
def test_draining_node_makes_workers_save_and_continue_elsewhere(shared_config: dict[str, Any], tmp_path: Path) -> None:
    """As when Kubernetes takes a spot node away."""
    run = tmp_path / "run"
    settings = {**shared_config, "base": "debug", "steps": 100_000, "log_every": 1}
    settings["checkpoints"] = {"every": 100_000, "keep": 9, "first": False}
    settings["workers"] = {**settings["workers"], "count": [1, 2], "cpus": 1.25}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    store = open_store(run)

    def wait_for(condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + 400
        while not condition():
            assert training.poll() is None and time.monotonic() < deadline, (tmp_path / "output").read_text()
            time.sleep(0.2)

    with ray_head(tmp_path, {}) as head, ExitStack() as nodes:
        raylet = nodes.enter_context(ray_node(head, 2))

        def work() -> list[str]:
            """What runs on that node, as its pod sees it."""
            names = []
            with suppress(psutil.NoSuchProcess):  # a node that is drained ends by itself
                for process in raylet.children():
                    with suppress(psutil.NoSuchProcess):  # it may end meanwhile
                        names.append(process.name())
            return [name for name in names if not name.startswith(NOT_WORK)]

        environment = {**os.environ, **head.environment, "RAY_ADDRESS": head.gcs}
        # Ray Train may count on the node for a while after it has gone, and then waits so long for a worker there.
        environment["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "6"
        command = [sys.executable, "-u", "-m", "pipelines", "train", str(tmp_path / "run.yaml"), "--run", str(run)]
        with (tmp_path / "output").open("w") as output:
            training = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        try:
            wait_for(lambda: len(read_metrics(store)) > 2)
            assert "ray::RayTrainWorker" in "".join(work())
            subprocess.run([sys.executable, "-c", DRAIN_NODE], env=environment, check=True, timeout=240)
            wait_for(lambda: not work())
            nodes.close()
            saved = whole_checkpoints(store)[-1]
            wait_for(lambda: read_metrics(store)[-1]["step"] > saved + 2)
        finally:
            training.kill()
            training.wait()
    assert "a node is taken away" in (tmp_path / "output").read_text()
    assert [record["step"] for record in read_metrics(store)] == list(range(1, len(read_metrics(store)) + 1))
