"""The parts of Ray that are not public and that sessions and jobs need, checked with Ray 2.60.0.

They are used in this module only, and those of a training in `training.ray_internals`, which knows no cluster;
tests/cluster/test_ray_internals.py fails for those that have changed. Functions import Ray, since its environment has
to be set before (`cluster.ray_environment`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

CHECKED_VERSION = "2.60.0"
WORKER_START = str(Path(__file__).with_name("ray_worker.py"))


def silence_raylet() -> None:
    """Keep lines like "(raylet) Task … failed" off the terminal, which `log_to_driver` does not turn off."""
    import ray._private.worker

    ray._private.worker.print_to_stdstream = lambda data, ignore_prefix: None


def own_node() -> Any:
    """The node that this process has started, with the processes of it; None where it connected to a cluster."""
    import ray._private.worker

    return ray._private.worker._global_node


def execution_callback() -> type:
    """The base class of what Ray Data calls at each step of its scheduler."""
    from ray.data._internal.execution.execution_callback import ExecutionCallback

    return ExecutionCallback


@contextmanager
def few_processes() -> Iterator[None]:
    """While a Ray starts here: leave out what a command never uses, three Python processes that take 4 CPU seconds.

    They are the API server (dashboard, state and jobs over HTTP), the autoscaler of a cluster, and what sends the logs
    of workers to the terminal. The agent of the dashboard, without which no node starts, is the one of an installation
    without a dashboard: it serves nothing. The other would wait four seconds for its port where a second Ray runs on
    the machine. Workers start by `cluster.ray_worker`, which spares each of them a third of a second.
    """
    import ray._private.node as node
    import ray._private.parameter as parameter
    import ray._private.utils as utils

    parameters, start_api_server = parameter.RayParams, node.Node.start_api_server
    dependency_error = utils.get_dashboard_dependency_error
    parameter.RayParams = partial(
        parameters, no_monitor=True, include_log_monitor=False, setup_worker_path=WORKER_START
    )
    node.Node.start_api_server = lambda self, **options: None
    utils.get_dashboard_dependency_error = lambda: ImportError("left out")
    try:
        yield
    finally:
        utils.get_dashboard_dependency_error = dependency_error
        parameter.RayParams, node.Node.start_api_server = parameters, start_api_server


@contextmanager
def few_actors() -> Iterator[None]:
    """While Ray Data runs on a Ray of this machine alone: spare it three actors of its own, for which a job would wait.

    One gathers figures for a dashboard, and gives every dataset its number; one divides a cluster that grows among
    several jobs; one keeps on which node its processes are.
    """
    from uuid import uuid4

    import ray.data._internal.cluster_autoscaler.rate_based_cluster_autoscaler as autoscaler
    import ray.data._internal.execution.operators.actor_pool_map_operator as actor_pool
    import ray.data._internal.stats as stats
    import ray.data._internal.utils.cached_ray_internals as locations

    silent = ("register_dataset_to_stats_actor", "update_execution_metrics", "update_iteration_metrics")
    manager, coordinator = stats._StatsManager, autoscaler.DefaultAutoscalingCoordinator
    before = {name: manager.__dict__[name] for name in (*silent, "gen_dataset_id_from_stats_actor")}
    for name in silent:
        setattr(manager, name, staticmethod(lambda *arguments, **named: None))
    manager.gen_dataset_id_from_stats_actor = staticmethod(lambda: uuid4().hex)
    autoscaler.DefaultAutoscalingCoordinator = _WholeMachine
    tracker, trackers = "get_or_create_actor_location_tracker", (actor_pool, locations)
    trackers_before = [getattr(module, tracker) for module in trackers]
    for module in trackers:
        setattr(module, tracker, _OneNode)
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(manager, name, method)
        autoscaler.DefaultAutoscalingCoordinator = coordinator
        for module, function in zip(trackers, trackers_before, strict=True):
            setattr(module, tracker, function)


class _WholeMachine:
    """Stands in for the actor that divides a cluster: all of it is the job's, and it does not grow."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._resources: dict[str, float] = {}

    def request_resources(self, *arguments: Any, **named: Any) -> None:
        """Nothing grows here."""

    def cancel_request(self) -> None:
        """See `request_resources`."""

    def get_reserved_resources(self) -> dict[str, dict[str, float]]:
        """Resources by node."""
        if not self._resources:
            import ray

            self._resources = ray.cluster_resources()
        return {"here": self._resources}


class _OneNode:
    """Stands in for the actor that keeps on which node a process is: all are on the only one."""

    @property
    def update_actor_location(self) -> _Local:
        """Nothing to keep."""
        return _Local(lambda process, node: None)

    @property
    def get_actor_locations(self) -> _Local:
        """A reference to the node of each process."""
        import ray

        node = ray.get_runtime_context().get_node_id()
        return _Local(lambda processes: ray.put(dict.fromkeys(processes, node)))


class _Local:
    """A method that is called as an actor's."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.remote = function
