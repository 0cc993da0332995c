"""Nodes that join the Ray of the tests, with CPUs and GPUs as they say."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def joined_node(cpus: int, gpus: int) -> Iterator[str]:
    """A further node of the Ray connected to, as Ray's own tests add them (`cluster_utils`); its id."""
    import ray
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    from cluster import ray_internals

    before = {node["NodeID"] for node in ray.nodes()}
    gcs = ray.get_runtime_context().gcs_address
    memory = 100 << 20
    joins = RayParams(
        gcs_address=gcs,
        num_cpus=cpus,
        num_gpus=gpus,
        object_store_memory=memory,
        include_log_monitor=False,
        setup_worker_path=ray_internals.WORKER_START,
    )
    node = Node(joins, head=False, shutdown_at_exit=False, spawn_reaper=False)
    deadline = time.monotonic() + 240
    while not (new := [one["NodeID"] for one in ray.nodes() if one["Alive"] and one["NodeID"] not in before]):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    try:
        yield new[0]
    finally:
        node.kill_all_processes(check_alive=False, allow_graceful=True)


def actors_on(node: str) -> set[str]:
    """Names of the classes of all actors that a node has had."""
    import ray._private.state

    table = ray._private.state.state.actor_table(None)
    return {one["ActorClassName"] for one in table.values() if one["Address"]["NodeID"] == node}
