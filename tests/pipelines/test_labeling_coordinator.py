"""Which process of a network gets rows, by a coordinator on a stand-in for Ray that starts what a test lets it."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from labeling.resources import Resources
from pipelines.labeling_job import coordinator as module
from pipelines.labeling_job.coordinator import BATCHES_AHEAD, MAX_FAILURES, Coordinator
from pipelines.labeling_job.placement import NetworkPool

BATCH = 4


class Cluster:
    """Stands in for the module `ray`: actors wait until `start` lets them run."""

    def __init__(self, gpus: float, restarted: bool = False) -> None:
        self.gpus = gpus
        self.waiting: list[Any] = []
        self.up: list[Any] = []
        self.context = SimpleNamespace(was_current_actor_reconstructed=restarted)

    def start(self, count: int = 1) -> None:
        self.up += self.waiting[:count]
        del self.waiting[:count]

    def remote(self, kind: type) -> Any:
        def start(*_: Any) -> Any:
            handle = SimpleNamespace()
            handle.__ray_ready__ = SimpleNamespace(remote=lambda: ("ready", id(handle)))
            self.waiting.append(handle)
            return handle

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=start))

    def wait(self, refs: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        up = {("ready", id(handle)) for handle in self.up}
        return [ref for ref in refs if ref in up], [ref for ref in refs if ref not in up]

    def kill(self, handle: Any) -> None:
        (self.waiting if handle in self.waiting else self.up).remove(handle)

    def cluster_resources(self) -> dict[str, float]:
        return {"GPU": self.gpus}

    def get_runtime_context(self) -> Any:
        return self.context


def coordinate(monkeypatch: pytest.MonkeyPatch, cluster: Cluster, *pools: NetworkPool) -> Any:
    monkeypatch.setitem(sys.modules, "ray", cluster)
    given: dict[str, Any] = {pool.groups[0]: (pool, None, Resources()) for pool in pools}
    return Coordinator(None, {}, given)  # type: ignore[arg-type]


def pool(name: str = "depth", gpus: float = 1.0, least: int = 1, most: int | None = None) -> NetworkPool:
    return NetworkPool((name,), gpus, 0.0, BATCH, least, most)


def network_processes(coordinator: Coordinator) -> dict[str, int]:
    """How many processes each network has."""
    return {name: len(pool.processes) for name, pool in coordinator.pools.items()}


def test_rows_wait_for_no_process_that_is_not_up(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(gpus=1)
    coordinator = coordinate(monkeypatch, cluster, pool(most=8))
    assert coordinator.network("depth", 1) is None
    cluster.start()
    numbers = [coordinator.network("depth", BATCH)[0] for _ in range(BATCHES_AHEAD + 5)]
    assert len(set(numbers)) == 1
    assert len(cluster.waiting) == 1  # the one ahead, however busy the first is
    cluster.start()
    assert coordinator.network("depth", BATCH)[0] not in numbers


@pytest.mark.parametrize(("gpus", "processes"), [(0.6, 2), (0.5, 4), (0.3333, 6), (0.5001, 2), (1, 2), (2, 1)])
def test_pool_is_as_large_as_its_gpus_can_hold(gpus: float, processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(gpus=2)
    coordinator = coordinate(monkeypatch, cluster, pool(gpus=gpus))
    for _ in range(20):
        cluster.start()
        coordinator.network("depth", BATCHES_AHEAD * BATCH)
    assert network_processes(coordinator) == {"depth": processes}


def test_network_that_lost_its_only_process_comes_before_what_waits_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(gpus=1)
    coordinator = coordinate(monkeypatch, cluster, pool("depth", 0.5, most=8), pool("pose", 0.5))
    cluster.start(2)
    coordinator.network("depth", BATCHES_AHEAD * BATCH)
    coordinator.network("depth", 1)
    assert network_processes(coordinator) == {"depth": 2, "pose": 1}
    number, _ = coordinator.network("pose", 1)
    coordinator.lost_network("pose", number, "")
    coordinator.network("depth", 1)
    assert network_processes(coordinator) == {"depth": 1, "pose": 1}
    cluster.start()
    assert coordinator.network("pose", 1)[0] != number
    assert network_processes(coordinator) == {"depth": 1, "pose": 1}
    coordinator.network("depth", 1)
    assert network_processes(coordinator) == {"depth": 2, "pose": 1}


def test_network_without_a_process_is_named_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(gpus=1)
    coordinator = coordinate(monkeypatch, cluster, pool("depth", 0.5), pool("pose", 0.5))
    assert not coordinator.waits()
    monkeypatch.setattr(module, "WAIT_SECONDS", -1.0)
    cluster.start()
    assert coordinator.waits() == [
        "pose: no process of its network is up: it waits for 0.5 GPUs that nothing else holds"
    ]
    cluster.start()
    assert not coordinator.waits()


def test_first_error_of_a_device_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(gpus=1)
    coordinator = coordinate(monkeypatch, cluster, pool())
    reasons = []
    for device_error in ["CUDA error: first", "CUDA error: second", ""][:MAX_FAILURES]:
        cluster.start()
        number, _ = coordinator.network("depth", 1)
        reasons.append(coordinator.lost_network("depth", number, device_error))
        coordinator.lost_network("depth", number, "")  # another who asked it
    assert reasons == ["", "", "CUDA error: first"]
    cluster.start()
    coordinator.answered("depth", coordinator.network("depth", 1)[0], 1)
    assert not coordinator.lost_network("depth", 0, "")


def test_coordinator_that_stands_in_for_a_lost_one_knows_that_writers_are_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = coordinate(monkeypatch, Cluster(gpus=1), pool())
    assert before.count_losses() == 0
    cluster = Cluster(gpus=1, restarted=True)
    coordinator = coordinate(monkeypatch, cluster, pool())
    assert coordinator.count_losses() == 1
    cluster.start()
    for number in before.pools["depth"].processes:
        coordinator.lost_network("depth", number, "")
    assert len(cluster.up) == 1
