"""Watching over the Ray that was started here: when it ends, its C++ code soon ends this process, without a word."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

from model.inputs import WorkFailed

AGAIN = "started again, it goes on"
SIGNAL = signal.SIGUSR2  # not SIGINT, which processes in the background may ignore
LOOK_SECONDS = 0.5
LAST_SECONDS = 6.0  # that this process may take to end in good order; Ray's C++ code takes it down after about ten


class RayEnded(KeyboardInterrupt):
    """Raised in the main thread when Ray has ended. While it waits in Ray's C++ code, it gets no other exceptions."""


class NodeLost(WorkFailed):
    """Work failed because a machine, or Ray on it, went away. Nothing is wrong with it, and it can be started again."""


@contextmanager
def few_processes() -> Iterator[None]:
    """While a Ray starts here: leave out what a command never uses, three Python processes that take 4 CPU seconds.

    They are the API server (dashboard, state and jobs over HTTP), the autoscaler of a cluster, and what sends the logs
    of workers to the terminal.
    """
    import ray._private.node as node
    import ray._private.parameter as parameter

    # Private: as in Ray 2.60 (tests/cluster/test_session.py fails where this has moved).
    parameters, start_api_server = parameter.RayParams, node.Node.start_api_server
    parameter.RayParams = partial(parameters, no_monitor=True, include_log_monitor=False)
    node.Node.start_api_server = lambda self, **options: None
    try:
        yield
    finally:
        parameter.RayParams, node.Node.start_api_server = parameters, start_api_server


@contextmanager
def few_actors() -> Iterator[None]:
    """While Ray Data runs on a Ray of this machine alone: spare it two actors of its own, for which a job would wait.

    One gathers figures for a dashboard, and gives every dataset its number; the other divides a cluster that grows
    among several jobs.
    """
    from uuid import uuid4

    import ray.data._internal.cluster_autoscaler.rate_based_cluster_autoscaler as autoscaler
    import ray.data._internal.stats as stats

    # Private: as in Ray 2.60 (tests/cluster/test_session.py fails where this has moved).
    silent = ("register_dataset_to_stats_actor", "update_execution_metrics", "update_iteration_metrics")
    manager, coordinator = stats._StatsManager, autoscaler.DefaultAutoscalingCoordinator
    before = {name: manager.__dict__[name] for name in (*silent, "gen_dataset_id_from_stats_actor")}
    for name in silent:
        setattr(manager, name, staticmethod(lambda *arguments, **named: None))
    manager.gen_dataset_id_from_stats_actor = staticmethod(lambda: uuid4().hex)
    autoscaler.DefaultAutoscalingCoordinator = _WholeMachine
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(manager, name, method)
        autoscaler.DefaultAutoscalingCoordinator = coordinator


class _WholeMachine:
    """Stands in for the actor that divides a cluster: all of it is the job's."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        pass

    def request_resources(self, *arguments: Any, **named: Any) -> None:
        """Nothing grows here."""

    def cancel_request(self) -> None:
        """See `request_resources`."""

    def get_reserved_resources(self) -> dict[str, dict[str, float]]:
        """Resources by node."""
        import ray

        return {"here": ray.cluster_resources()}


class OwnRay:
    """The processes of a Ray that was started here. ended: which of them has died, "" while all live."""

    def __init__(self) -> None:
        import ray._private.worker

        # Private: as in Ray 2.60. A cluster's own node is none of this process's.
        node = ray._private.worker._global_node
        self.ended = ""
        self._node = node
        self._processes = {
            name: info.process for name in ("raylet", "gcs_server") for info in node.all_processes.get(name, [])
        }

    def loss(self) -> NodeLost:
        """What a person is told."""
        return NodeLost(f"Ray on this machine has ended (its {self.ended} died: killed, or out of memory?); {AGAIN}")

    def end(self) -> None:
        """End what is left of it, without waiting for an answer."""
        self._node.kill_all_processes(check_alive=False, allow_graceful=False)

    def watch(self, over: threading.Event) -> None:
        """Interrupt this process as soon as one of the processes has ended, until `over`."""
        while not over.wait(LOOK_SECONDS):
            self.ended = next((name for name, one in self._processes.items() if one.poll() is not None), "")
            if self.ended:
                if signal.getsignal(SIGNAL) is _raise:
                    os.kill(os.getpid(), SIGNAL)
                if not over.wait(LAST_SECONDS):  # the main thread waits for what cannot come
                    print(f"onediffusion: {self.loss()}", file=sys.stderr, flush=True)
                    self.end()
                    os._exit(1)


@contextmanager
def watched(own: OwnRay) -> Iterator[None]:
    """Raise NodeLost where the Ray ends meanwhile, in the place of whatever came of it."""
    over = threading.Event()
    before = signal.getsignal(SIGNAL)
    in_main = threading.current_thread() is threading.main_thread()
    if in_main:
        signal.signal(SIGNAL, _raise)
    watching = threading.Thread(target=own.watch, args=(over,), daemon=True)
    watching.start()
    try:
        yield
    except BaseException as error:
        if own.ended:
            raise own.loss() from error
        raise
    finally:
        over.set()
        if in_main:
            signal.signal(SIGNAL, before)


def _raise(signal_number: int, frame: FrameType | None) -> None:
    raise RayEnded
