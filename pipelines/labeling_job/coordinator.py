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
LOOK_SECONDS = 5.0  # between two looks at how many GPUs the cluster has by now
BATCHES_AHEAD = 4  # that may wait for every process of a network before there is another one
MAX_FAILURES = 3  # of a network's device one after another, on processes that had just started


@dataclass
class _Writer:
    handle: Any
    node: str
    shards: set[str] = field(default_factory=set)  # whose first parts have come


@dataclass
class _Process:
    """A process of a network. rows: sent to it and not yet answered."""

    handle: Any
    rows: int = 0


@dataclass
class _Pool:
    wishes: NetworkPool
    labeler: Labeler
    resources: Resources
    processes: dict[int, _Process] = field(default_factory=dict)
    started: int = 0
    failures: int = 0
    said: str = ""  # the last error of a device


class Coordinator:
    """See above. All that it keeps is bounded by what is under way."""

    def __init__(
        self,
        dataset: Dataset,
        declarations: Declarations,
        pools: Mapping[str, tuple[NetworkPool, Labeler, Resources]],
    ) -> None:
        self.dataset = dataset
        self.declarations = declarations
        self.writers: dict[int, _Writer] = {}
        self.writers_started = 0
        self.losses = 0
        self.gpus = (0.0, 0.0)  # how many the cluster has, and when this was asked
        self.pools = {name: _Pool(*pool) for name, pool in pools.items()}
        for pool in self.pools.values():
            for _ in range(pool.wishes.least):
                self._start(pool)

    def writer(self, shard: str, node: str) -> tuple[int, Any]:
        """Number and handle of the writer of a shard: the one that has parts of it, else one on the node that asks."""
        for number, writer in self.writers.items():
            if shard in writer.shards:
                return number, writer.handle
        there = {number: writer for number, writer in self.writers.items() if writer.node == node}
        if len(there) < self._writers_on(node):
            self.writers_started += 1
            self.writers[self.writers_started] = _Writer(self._start_writer(node), node)
            there = {self.writers_started: self.writers[self.writers_started]}
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

    def network(self, pool_name: str, rows: int) -> tuple[int, Any]:
        """Number and handle of the process of a network that rows are to be sent to, the one with the least to do."""
        pool = self.pools[pool_name]
        busy = all(process.rows >= BATCHES_AHEAD * pool.wishes.batch for process in pool.processes.values())
        if busy and len(pool.processes) < self._most(pool):
            self._start(pool)
        number = min(pool.processes, key=lambda number: pool.processes[number].rows)
        pool.processes[number].rows += rows
        return number, pool.processes[number].handle

    def answered(self, pool_name: str, number: int, rows: int) -> None:
        """A process of a network has answered for rows."""
        pool = self.pools[pool_name]
        pool.failures = 0
        if number in pool.processes:
            pool.processes[number].rows -= rows

    def lost_network(self, pool_name: str, number: int, said: str) -> str:
        """A network's process is gone, or its device has failed; why its rows are not tried elsewhere, "" if they are.

        said: the device's error, "" where the process is gone, as it is for others when one of them has seen the error.
        """
        import ray

        pool = self.pools[pool_name]
        pool.said = said or pool.said
        if lost := pool.processes.pop(number, None):
            pool.failures += 1
            ray.kill(lost.handle)
            while len(pool.processes) < pool.wishes.least:
                self._start(pool)
        return (pool.said or "its processes die") if pool.failures >= MAX_FAILURES else ""

    def network_processes(self) -> dict[str, int]:
        """How many processes each network has."""
        return {name: len(pool.processes) for name, pool in self.pools.items()}

    def _start(self, pool: _Pool) -> None:
        import ray

        pool.started += 1
        options = {"num_gpus": pool.wishes.gpus, "num_cpus": pool.wishes.cpus, "max_restarts": 0}
        process = ray.remote(NetworkProcess).options(**options)
        handle = process.remote(pool.labeler, pool.resources)
        pool.processes[pool.started] = _Process(handle)

    def _most(self, pool: _Pool) -> int:
        """How many processes a pool may have: where the job does not say, those that its part of the GPUs can hold."""
        if pool.wishes.most is not None:
            return pool.wishes.most
        import ray

        gpus, asked = self.gpus
        if time.monotonic() - asked > LOOK_SECONDS:
            gpus = float(ray.cluster_resources().get("GPU", 0.0))
            self.gpus = (gpus, time.monotonic())
        return max(pool.wishes.least, int(gpus / len(self.pools) / pool.wishes.gpus + 1e-3))

    def _writers_on(self, node: str) -> int:
        import ray

        cpus = next((one["Resources"].get("CPU", 1.0) for one in ray.nodes() if one["NodeID"] == node), 1.0)
        return max(1, int(cpus // CPUS_A_WRITER))

    def _start_writer(self, node: str) -> Any:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        place = NodeAffinitySchedulingStrategy(node, soft=True)
        options = {"num_cpus": 0, "max_restarts": 0, "scheduling_strategy": place}
        return ray.remote(ShardWriter).options(**options).remote(self.dataset, self.declarations)
