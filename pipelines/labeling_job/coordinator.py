"""Who writes which shard, and which process runs a network: an actor that the processes of a labeling job ask.

Writers and processes with GPUs are started here as they are needed, on whatever nodes there are at the time; one that
is lost is replaced by the next question.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from labeling.dataset import Dataset
from labeling.labeler import Labeler
from labeling.resources import Resources
from pipelines.labeling_job.network_process import NetworkProcess
from pipelines.labeling_job.placement import NetworkPool
from pipelines.labeling_job.shard_writer import Declarations, ShardWriter

CPUS_A_WRITER = 16
SHARDS_AT_ONCE = 4  # that a writer writes: the disk is waited for, and S3 longer
LOOK_SECONDS = 5.0  # between two looks at how many GPUs the cluster has by now
BATCHES_AHEAD = 4  # that may wait for every process of a network before there is another one
WAIT_SECONDS = 60.0  # that a network may be without a process before a person hears of it
MAX_FAILURES = 3  # of a network's device one after another, on processes that had just started


@dataclass
class _Writer:
    handle: Any
    node: str
    shards: set[str] = field(default_factory=set)  # whose first parts have come


@dataclass
class _Process:
    """A process of a network. ready: answered once it is up; rows: sent to it and not yet answered."""

    handle: Any
    ready: Any
    up: bool = False
    rows: int = 0


@dataclass
class _Pool:
    spec: NetworkPool
    labeler: Labeler
    resources: Resources
    processes: dict[int, _Process] = field(default_factory=dict)
    failures: int = 0
    device_error: str = ""  # the first of these failures
    without: float | None = field(default_factory=time.monotonic)  # since when no process is up

    @property
    def is_up(self) -> bool:
        return any(process.up for process in self.processes.values())


class Coordinator:
    """The actor that knows the writers and networks of a job. What it keeps is bounded by what is under way."""

    def __init__(
        self,
        dataset: Dataset,
        declarations: Declarations,
        pools: Mapping[str, tuple[NetworkPool, Labeler, Resources]],
    ) -> None:
        import ray

        self.dataset = dataset
        self.declarations = declarations
        self.writers: dict[int, _Writer] = {}
        # One that stands in for a lost one knows nothing of its writers, which end with it: their parts are lost too.
        # Numbers that others still hold of theirs are never given again.
        self.losses = int(bool(ray.get_runtime_context().was_current_actor_reconstructed))
        self.number = time.time_ns()
        self.gpus = (0.0, 0.0)  # how many the cluster has, and when this was asked
        self.pools = {name: _Pool(*pool) for name, pool in pools.items()}
        for pool in self.pools.values():
            for _ in range(pool.spec.least):
                self._start(pool)

    def prepare_writer(self, node: str) -> None:
        """Start the first writer of a node, so that the first labels there need not wait for it."""
        if all(writer.node != node for writer in self.writers.values()):
            self._add_writer(node)

    def writer(self, shard: str, node: str) -> tuple[int, Any]:
        """Number and handle of the writer of a shard: the one that has parts of it, else one on the node that asks."""
        for number, writer in self.writers.items():
            if shard in writer.shards:
                return number, writer.handle
        there = {number: writer for number, writer in self.writers.items() if writer.node == node}
        if all(writer.shards for writer in there.values()) and len(there) < self._writers_on(node):
            number = self._add_writer(node)
            there = {number: self.writers[number]}
        number = min(there, key=lambda number: len(there[number].shards))
        there[number].shards.add(shard)
        return number, there[number].handle

    def written(self, number: int, shard: str) -> None:
        """A shard is written, and nothing more will come for it."""
        if number in self.writers:
            self.writers[number].shards.discard(shard)

    def lost_writer(self, number: int) -> None:
        """A writer is gone, with the parts that it had: their shards come with the next wave."""
        if self.writers.pop(number, None):
            self.losses += 1

    def count_losses(self) -> int:
        """How many writers were lost."""
        return self.losses

    def network(self, pool_name: str, rows: int) -> tuple[int, Any] | None:
        """Number and handle of the process of a network that rows are to be sent to, the one with the least to do.

        None while no process is up: one that waits for a GPU may do so forever, and gets no rows.
        """
        self._look()
        pool = self.pools[pool_name]
        up = {number: process for number, process in pool.processes.items() if process.up}
        if not up:
            return None
        if (
            all(process.rows >= BATCHES_AHEAD * pool.spec.batch for process in up.values())
            and len(pool.processes) == len(up)  # one at a time waits for what may not be there
            and all(other.is_up for other in self.pools.values())  # which another network may need for its first
            and len(up) < self._most(pool)
        ):
            self._start(pool)
        number = min(up, key=lambda number: up[number].rows)
        up[number].rows += rows
        return number, up[number].handle

    def waits(self) -> list[str]:
        """A line for each network that has had no process for a while."""
        self._look()
        lines = []
        for name, pool in self.pools.items():
            if pool.without is not None and time.monotonic() - pool.without > WAIT_SECONDS:
                resources = f"{pool.spec.gpus:g} GPUs" + (f" and {pool.spec.cpus:g} CPUs" if pool.spec.cpus else "")
                lines.append(
                    f"{name}: no process of its network is up: it waits for {resources} that nothing else holds"
                )
        return lines

    def answered(self, pool_name: str, number: int, rows: int) -> None:
        """A process of a network has answered for rows."""
        pool = self.pools[pool_name]
        pool.failures, pool.device_error = 0, ""
        if number in pool.processes:
            pool.processes[number].rows -= rows

    def lost_network(self, pool_name: str, number: int, device_error: str) -> str:
        """A network's process is gone, or its device has failed; why its rows are not tried elsewhere, "" if they are.

        device_error: one line, "" where the process is gone, as it is for others when one of them has seen the error.
        """
        import ray

        pool = self.pools[pool_name]
        pool.device_error = pool.device_error or device_error
        if process := pool.processes.pop(number, None):
            pool.failures += 1
            ray.kill(process.handle)
            self._look()
            if not pool.is_up:
                self._withdraw()
            while len(pool.processes) < pool.spec.least:
                self._start(pool)
        return (pool.device_error or "its processes die") if pool.failures >= MAX_FAILURES else ""

    def _start(self, pool: _Pool) -> None:
        import ray

        self.number += 1
        options = {"num_gpus": pool.spec.gpus, "num_cpus": pool.spec.cpus, "max_restarts": 0}
        process = ray.remote(NetworkProcess).options(**options)
        handle = process.remote(pool.labeler, pool.resources)
        pool.processes[self.number] = _Process(handle, handle.__ray_ready__.remote())

    def _look(self) -> None:
        """Note which processes are up by now, those whose start has failed included: who asks them hears of it."""
        import ray

        pending = {one.ready: one for pool in self.pools.values() for one in pool.processes.values() if not one.up}
        if pending:
            for ready in ray.wait(list(pending), num_returns=len(pending), timeout=0)[0]:
                pending[ready].up = True
        for pool in self.pools.values():
            pool.without = None if pool.is_up else (pool.without or time.monotonic())

    def _withdraw(self) -> None:
        """End the processes that wait ahead of need, so that a network which has lost its last one comes first."""
        import ray

        for pool in self.pools.values():
            for number, process in list(pool.processes.items()):
                if not process.up and len(pool.processes) > pool.spec.least:
                    ray.kill(process.handle)
                    del pool.processes[number]

    def _most(self, pool: _Pool) -> int:
        """How many processes a pool may have: where the job does not say, those that its part of the GPUs can hold."""
        if pool.spec.most is not None:
            return pool.spec.most
        import ray

        gpus, asked_at = self.gpus
        if time.monotonic() - asked_at > LOOK_SECONDS:
            gpus = float(ray.cluster_resources().get("GPU", 0.0))
            self.gpus = (gpus, time.monotonic())
        return pool.spec.fit(gpus, len(self.pools))

    def _writers_on(self, node: str) -> int:
        import ray

        cpus = next((one["Resources"].get("CPU", 1.0) for one in ray.nodes() if one["NodeID"] == node), 1.0)
        return max(1, int(cpus // CPUS_A_WRITER))

    def _add_writer(self, node: str) -> int:
        """Start a writer on a node; its number."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        strategy = NodeAffinitySchedulingStrategy(node, soft=True)
        options = {"num_cpus": 0, "max_restarts": 0, "max_concurrency": SHARDS_AT_ONCE, "scheduling_strategy": strategy}
        handle = ray.remote(ShardWriter).options(**options).remote(self.dataset, self.declarations)
        self.number += 1
        self.writers[self.number] = _Writer(handle, node)
        return self.number
