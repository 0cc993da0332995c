"""A Ray to run on: the cluster that RAY_ADDRESS names, or one on this machine for as long as it is needed."""

from __future__ import annotations

import logging
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from cluster.ray_environment import is_verbose, prepare_ray, starts_own_ray
from model.inputs import InputError

NODE_SECONDS = 30.0
UNEXPECTED, PREEMPTED = 2, 3  # NodeDeathInfo.Reason of Ray's gcs.proto


@contextmanager
def ray_session(memory: int = 1 << 30) -> Iterator[None]:
    """Connect to Ray, or start one on loopback and end it afterwards. A Ray that already runs here is used as it is.

    memory: bytes of shared memory for the object store of a Ray started here.
    Raises NodeLost in the place of what failed while a node of the cluster was lost.
    """
    prepare_ray()
    import ray

    if ray.is_initialized():
        with _losses_named():
            yield
        return
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    verbose = is_verbose()
    options = {"log_to_driver": verbose, "logging_level": logging.INFO if verbose else logging.ERROR}
    with _sigterm_kept():
        if not starts_own_ray():
            ray.init(**options)
        else:
            _start(include_dashboard=False, object_store_memory=memory, **options)
    _quiet(verbose)
    try:
        with _losses_named():
            yield
    finally:
        ray.shutdown()


def _start(**options: Any) -> None:
    """Ray gives its own processes half a minute, which a busy machine may need longer than: once more, then."""
    import ray

    try:
        ray.init(**options)
    except Exception as error:
        if "timed out during startup" not in str(error):
            raise
        ray.shutdown()
        ray.init(**options)


class NodeLost(RuntimeError):
    """Work failed because a machine went away: nothing is wrong with it, and it can go on."""


@contextmanager
def _losses_named() -> Iterator[None]:
    """Tell apart what fails by itself from what fails because a node is gone: only the node's state shows that."""
    before = _lost_nodes()
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        # What ran beside it fails at once, and Ray takes a while to be sure that a node is gone.
        deadline = time.monotonic() + (NODE_SECONDS if _nodes() > 1 else 0.0)
        while not (lost := {node: at for node, at in _lost_nodes().items() if node not in before}):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
        raise NodeLost(f"the cluster lost {', '.join(sorted(lost.values()))}; submitted again, it goes on") from error


def _lost_nodes() -> dict[str, str]:
    """Node id → address, of nodes that died or were taken away; not of those given back because they were idle."""
    return {
        node["NodeID"]: str(node["NodeManagerAddress"])
        for node in _node_table()
        if not node["Alive"] and node["DeathReason"] in (UNEXPECTED, PREEMPTED)
    }


def _nodes() -> int:
    return sum(node["Alive"] for node in _node_table())


def _node_table() -> list[dict[str, Any]]:
    import ray

    with suppress(Exception):  # Ray itself is gone
        return list(ray.nodes())
    return []


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself, twice (in Python and below it): a job that answers it gets it back."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    if callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _quiet(verbose: bool) -> None:
    """Our own progress bars stand in for those of Ray's libraries, which set up their logging on import.

    Ray Data also logs every exception that it raises.
    """
    import ray.data
    import ray.train

    ray.data.DataContext.get_current().enable_progress_bars = False
    if not verbose:
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        logging.getLogger("ray.train").setLevel(logging.ERROR)


def cluster_has(unit: str) -> float:
    """How many CPUs ("CPU") or GPUs ("GPU") the Ray connected to has by now."""
    import ray

    return float(ray.cluster_resources().get(unit, 0.0))
