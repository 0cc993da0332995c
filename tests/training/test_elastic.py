"""How workers and their readers share what a Ray has, and what becomes of those that wait for more."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray_head import ray_head, ray_node

from cluster.kubernetes.drain import NOT_WORK
from labeling.dataset import open_store
from training.checkpoint import whole_checkpoints
from training.config import TrainingConfig, load_config
from training.coordinator import Board, Wish, followed
from training.loop import readers_of_each, run_training
from training.metrics_logger import read_metrics

TOO_MANY = 4000
TAKE_AWAY = """
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
def test_readers_take_what_workers_leave(
    small_config: dict[str, Any], count: Any, cpus: float, reader: dict[str, Any], there: float, readers: int
) -> None:
    config = config_of(small_config, {"count": count, "cpus": cpus}, reader=reader)
    assert readers_of_each(config, there) == readers


@pytest.mark.usefixtures("ray_cluster")
def test_elastic_workers_leave_room_for_their_readers(shared_config: dict[str, Any], tmp_path: Path) -> None:
    """Of the two CPUs each worker would take one, and the readers of both would wait for a third."""
    short = {**shared_config, "steps": 2}
    elastic = config_of(short, {"count": [1, 2], "cpus": 1.0}, reader={"processes": 2, "cpus": 1.0})
    assert run_training(elastic, str(tmp_path / "run")).step == 2
    assert len(read_metrics(open_store(tmp_path / "run"))) == 2


@pytest.mark.usefixtures("ray_cluster")
def test_what_waits_for_room_is_stopped_and_scaled_at_once(shared_config: dict[str, Any], tmp_path: Path) -> None:
    began = time.monotonic()
    config = config_of({**shared_config, "steps": 2}, {"count": TOO_MANY, "cpus": 1.0}, batch=TOO_MANY)
    stopped = run_training(config, str(tmp_path / "run"), wish=lambda: Wish(stop=time.monotonic() - began > 3))
    assert (stopped.step, stopped.checkpoint) == (0, "")
    assert time.monotonic() - began < 30
    config = config_of({**shared_config, "steps": 2}, {"count": 6, "cpus": 1.0})
    events: list[dict[str, Any]] = []
    began = time.monotonic()
    fewer = run_training(
        config,
        str(tmp_path / "run-6"),
        events.append,
        lambda: Wish(workers=1 if time.monotonic() - began > 3 else None),
    )
    assert fewer.step == 2
    assert {"event": "scale", "step": 0, "workers": 1} in events
    assert whole_checkpoints(open_store(tmp_path / "run-6")) == [0, 2]


def test_workers_whose_node_is_taken_away_write_a_checkpoint_and_go_on_elsewhere(
    shared_config: dict[str, Any], tmp_path: Path
) -> None:
    """As pods of spot nodes say so before they go."""
    run = tmp_path / "run"
    settings = {**shared_config, "base": "debug", "steps": 100_000, "log_every": 1}
    settings["checkpoints"] = {"every": 100_000, "keep": 9, "first": False}
    settings["workers"] = {**settings["workers"], "count": [1, 2], "cpus": 1.25}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    store = open_store(run)

    def until(moment: Callable[[], Any]) -> None:
        deadline = time.monotonic() + 240
        while not moment():
            assert training.poll() is None and time.monotonic() < deadline, (tmp_path / "said").read_text()
            time.sleep(0.2)

    with ray_head(tmp_path, {}) as head, ExitStack() as nodes:
        raylet = nodes.enter_context(ray_node(head, 2))

        def work() -> list[str]:
            """What runs on that node, as its pod sees it."""
            return [name for process in raylet.children() if not (name := process.name()).startswith(NOT_WORK)]

        environment = {**os.environ, **head.environment, "RAY_ADDRESS": head.gcs}
        # Ray Train may count on the node for a while after it has gone, and then waits so long for a worker there.
        environment["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "6"
        command = [sys.executable, "-u", "-m", "pipelines", "train", str(tmp_path / "run.yaml"), "--run", str(run)]
        with (tmp_path / "said").open("w") as said:
            training = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
        try:
            until(lambda: len(read_metrics(store)) > 2)
            assert "ray::RayTrainWorker" in "".join(work())
            subprocess.run([sys.executable, "-c", TAKE_AWAY], env=environment, check=True, timeout=90)
            until(lambda: not work())
            nodes.close()
            saved = whole_checkpoints(store)[-1]
            until(lambda: read_metrics(store)[-1]["step"] > saved + 2)
        finally:
            training.kill()
            training.wait()
    assert "a node is taken away" in (tmp_path / "said").read_text()
    assert [record["step"] for record in read_metrics(store)] == list(range(1, len(read_metrics(store)) + 1))


@pytest.mark.usefixtures("ray_cluster")
def test_a_training_that_cannot_be_followed_is_ended(small_config: dict[str, Any]) -> None:
    """Or nobody would hear of a stop, and the workers would begin again for ever."""
    import ray

    board, aborted = ray.remote(num_cpus=0)(Board).remote(), threading.Event()
    ray.kill(board)
    config = config_of(small_config, {})
    with (
        pytest.raises(RuntimeError, match="cannot be followed any more"),
        followed(board, config, print, Wish, [Wish()], aborted.set),
    ):
        assert aborted.wait(60)


def test_workers_that_step_are_told_and_those_that_are_gone_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("training.coordinator.time.monotonic", lambda: now)
    board = Board()
    assert board.unheard()
    for step, moment in ((0, 10.0), (0, 11.0), (1, 20.0), (1, 21.0)):  # of two workers
        now = moment
        assert board.reach(step) is None
    assert not board.unheard()
    now = 21.0 + 60 + 89
    assert not board.unheard()  # a step took nine seconds
    now += 2
    assert board.unheard()
    board.pause()  # a checkpoint takes longer than any step
    assert not board.unheard()
    now += 1801
    assert board.unheard()
    board.stop()
    assert board.reach(2) == 4
    now += 1e6
    assert not board.unheard()  # they write their checkpoint
