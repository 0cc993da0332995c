"""A Ray to run on: the cluster that RAY_ADDRESS names, or one on this machine for as long as it is needed."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from typing import Any

from cluster.own_ray import AGAIN, NodeLost, OwnRay, watched
from cluster.ray_environment import LOG_LEVEL, LOG_LEVEL_OF_SESSION, prepare_ray, starts_own_ray
from cluster.ray_internals import few_actors, few_processes, silence_raylet
from model.inputs import InputError, WorkFailed, causes, error_for_person, one_line

NODE_SECONDS = 30.0
ANSWER_SECONDS = 5.0  # that a Ray may take to listen
LONGEST_REASON = 300  # characters of what Ray says of a failure of its own
UNEXPECTED, PREEMPTED = 2, 3  # NodeDeathInfo.Reason of Ray's gcs.proto
_kept: list[ExitStack] = []  # of `kept_ray`: what holds the Ray that was started within it


@contextmanager
def kept_ray() -> Iterator[None]:
    """Within, the first `ray_session` starts Ray and later ones use it; it ends with this context."""
    with ExitStack() as stack:
        _kept.append(stack)
        try:
            yield
        finally:
            _kept.remove(stack)


@contextmanager
def ray_session(memory: int = 1 << 30) -> Iterator[None]:
    """Connect to Ray, or start one on loopback and end it afterwards. A Ray that already runs here is used as it is.

    memory: bytes of shared memory for the object store of a Ray started here.
    Raises NodeLost in the place of what failed while a node of the cluster was lost.
    """
    prepare_ray()
    import ray

    if _kept and not ray.is_initialized():
        _kept[-1].enter_context(_started(memory))
    with nullcontext() if ray.is_initialized() else _started(memory), _losses_named():
        yield


@contextmanager
def _started(memory: int) -> Iterator[None]:
    """A Ray that is connected to or started here, and left or ended afterwards."""
    import ray

    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    verbose = bool(os.environ.get("ONEDIFFUSION_VERBOSE"))
    options = {"log_to_driver": verbose, "logging_level": logging.INFO if verbose else logging.ERROR}
    with _sigterm_kept(), nullcontext() if verbose else _terminal_kept_clean():
        if not starts_own_ray():
            _connect(**options)
        else:
            # Ray would connect by itself to one that others have started on this machine.
            with nullcontext() if verbose else few_processes():
                _start(address="local", include_dashboard=False, object_store_memory=memory, **options)
    _quiet(verbose)
    own = OwnRay() if starts_own_ray() else None
    try:
        with (
            watched(own) if own else nullcontext(),
            few_actors() if own and not verbose else nullcontext(),
        ):
            yield
    finally:
        if own and own.ended:
            own.end()  # Ray itself would wait for an answer of what is gone
        elif own:
            own.shut_down()
        else:
            ray.shutdown()


def _connect(**options: Any) -> None:
    """Connect to the Ray that RAY_ADDRESS names. Raises InputError where none answers, for which Ray takes minutes."""
    import ray

    address = os.environ["RAY_ADDRESS"]
    remedy = "correct the address, or unset it to run on this machine"
    if not _answers(address):
        raise InputError(f"RAY_ADDRESS={address}: no Ray answers there; {remedy}")
    try:
        ray.init(**options)
    except ConnectionError:  # as of a Ray that is too busy to answer in time
        ray.shutdown()
        try:
            ray.init(**options)
        except ConnectionError as error:
            raise InputError(f"RAY_ADDRESS={address}: {one_line(error, LONGEST_REASON)}; {remedy}") from None


def _answers(address: str) -> bool:
    """Whether something listens at HOST:PORT; an address of another form is for Ray to understand."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()) or "/" in host:
        return True
    deadline = time.monotonic() + ANSWER_SECONDS
    while True:
        try:
            with socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS):
                return True
        except OSError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.5)


def _start(**options: Any) -> None:
    """Start Ray, twice if need be: it allows its processes half a minute, and a busy machine may need more."""
    import ray

    try:
        ray.init(**options)
    except Exception as error:
        if "timed out during startup" not in str(error):
            raise
        ray.shutdown()
        ray.init(**options)


@contextmanager
def _losses_named() -> Iterator[None]:
    """Say in one line what Ray itself says in dozens: that a node, Ray on it, or a process of the work went away.

    The loss of a node shows in the nodes' states only, whatever error came with it.
    """
    before = _lost_nodes()
    try:
        yield
    except Exception as error:
        if error_for_person(error):
            raise
        # What ran on a lost node fails at once, and Ray takes a while to be sure that the node is gone.
        deadline = time.monotonic() + (NODE_SECONDS if _count_nodes() > 1 else 0.0)
        while not (nodes := {node: at for node, at in _lost_nodes().items() if node not in before}):
            if time.monotonic() > deadline:
                break
            time.sleep(0.5)
        if nodes:
            raise NodeLost(f"the cluster lost {', '.join(sorted(nodes.values()))}; {AGAIN}") from error
        if failure := _failure_of_ray(error):
            raise failure from error
        raise


def _failure_of_ray(error: BaseException) -> WorkFailed | None:
    """What an error says of Ray or its processes, None where it is an error of the work itself."""
    import ray.exceptions as errors

    machine = (errors.LocalRayletDiedError, errors.RaySystemError, errors.NodeDiedError, errors.RpcError)
    losses = (errors.ObjectLostError, errors.ActorUnavailableError)
    process = (errors.ActorDiedError, errors.WorkerCrashedError, errors.OutOfMemoryError, *losses)
    for one in causes(error):
        reason = one_line(one, LONGEST_REASON)
        if isinstance(one, machine):
            return NodeLost(f"Ray on this machine has ended ({reason}); {AGAIN}")
        if isinstance(one, process) and not getattr(one, "actor_init_failed", False):
            return WorkFailed(f"a process of Ray died ({reason}); {AGAIN}")
    return None


def _lost_nodes() -> dict[str, str]:
    """Node id → address, of nodes that died or were taken away; not of those given back because they were idle."""
    return {
        node["NodeID"]: str(node["NodeManagerAddress"])
        for node in _node_table()
        if not node["Alive"] and node["DeathReason"] in (UNEXPECTED, PREEMPTED)
    }


def _count_nodes() -> int:
    return sum(node["Alive"] for node in _node_table())


def _node_table() -> list[dict[str, Any]]:
    import ray

    with suppress(Exception):  # Ray itself is gone
        return list(ray.nodes())
    return []


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Give a job its own handler of SIGTERM back, which Ray replaces (in Python and in C++)."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    if callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


@contextmanager
def _terminal_kept_clean() -> Iterator[None]:
    """While this process connects to Ray: keep the lines of Ray's C++ code off the terminal, now and later.

    That code writes its errors to file descriptor 2 (as "core_worker.cc: Actor … has constructor arguments in the
    object store", for every labeler), whatever Python's logging is set to; what fails is raised in Python as well. Its
    level is read from the environment when the process connects, which is itself reported on the terminal.
    """
    # It does not go into os.environ, which Ray's own processes are given: they keep their logs.
    if LOG_LEVEL not in os.environ:
        os.putenv(LOG_LEVEL, LOG_LEVEL_OF_SESSION)
    sys.stderr.flush()
    terminal, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(terminal, 2)
        os.close(terminal)
        os.close(nothing)
        if LOG_LEVEL not in os.environ:
            os.unsetenv(LOG_LEVEL)


def _quiet(verbose: bool) -> None:
    """Our own progress bars stand in for those of Ray Data, which sets up its logging on import.

    It also logs every exception that it raises.
    """
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    if not verbose:
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        logging.getLogger("ray.train").setLevel(logging.ERROR)
        silence_raylet()


def cluster_has(unit: str) -> float:
    """How many CPUs ("CPU") or GPUs ("GPU") the Ray connected to has by now."""
    import ray

    return float(ray.cluster_resources().get(unit, 0.0))
