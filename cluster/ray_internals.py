"""The parts of Ray that are not public and that sessions and jobs need, checked with Ray 2.60.0.

They are used in this module only, and those of a training in `training.ray_internals`, which knows no cluster;
tests/cluster/test_ray_internals.py fails for those that have changed. Functions import Ray, since its environment has
to be set before (`cluster.ray_environment`).
"""

from __future__ import annotations

from typing import Any

CHECKED_VERSION = "2.60.0"


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
