"""What a run's workers and its driver tell each other: an actor that both call, and the thread that watches it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from training.config import TrainingConfig

_POLL_SECONDS = 0.5
_SILENCE_SECONDS = 60.0
_LONG_OPERATION_SECONDS = 1800.0  # for a checkpoint that is waited for
_DEPARTURE_SECONDS = 180.0

Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class ControlRequest:
    """What a user asks of a run in progress.

    stop: write a checkpoint and end; workers: write a checkpoint and continue with so many workers.
    """

    stop: bool = False
    workers: int | tuple[int, int] | None = None

    def ends(self, config: TrainingConfig) -> bool:
        """Whether the present group of workers has to stop for it."""
        return self.stop or (self.workers is not None and self.workers != config.workers.count)


class Coordinator:
    """An actor that keeps the workers' events for the driver and tells the workers when to stop."""

    def __init__(self) -> None:
        self._events: list[dict[str, Any]] = []
        self._failure: str | None = None
        self._stop_requested = False
        self._stop_at: int | None = None
        self._newest_step: int | None = None
        self._newest_step_at = time.monotonic()
        self._longest_step_seconds = 0.0
        self._long_operation_since: float | None = None
        self._worker_nodes: set[str] = set()
        self._reason = ""
        self._placement_group: Any = None

    def hold_placement_group(self, group: Any) -> None:
        """Ray's placement group of the workers that have started, in place of the one before."""
        self._placement_group = group

    def placement_group(self) -> Any:
        """The placement group of the workers, None before they have started."""
        return self._placement_group

    def add_worker(self, node: str) -> None:
        """A worker has started on the node of this id."""
        self._worker_nodes.add(node)
        self._long_operation_since = None

    def worker_nodes(self) -> set[str]:
        """Ids of the nodes that have workers."""
        return self._worker_nodes

    def add_event(self, event: dict[str, Any]) -> None:
        """Keep an event for the driver."""
        self._events.append(event)

    def pop_events(self) -> list[dict[str, Any]]:
        """Return the events added since the last call."""
        events, self._events = self._events, []
        return events

    def fail(self, message: str) -> None:
        """Record what the user has to correct; the first message stays."""
        self._failure = self._failure or message

    def failure(self) -> str | None:
        """The recorded message, if there is one."""
        return self._failure

    def explain(self, reason: str) -> None:
        """Why the present group of workers fails; `end_group` follows."""
        self._reason = reason

    def end_group(self) -> None:
        """The present group of workers has failed; the next one may begin at an earlier step."""
        step = None if self._newest_step is None else self._newest_step + 1
        self._events.append({"event": "failure", "step": step, "reason": self._reason})
        self._newest_step, self._long_operation_since, self._reason = None, None, ""

    def request_stop(self) -> None:
        """Make all workers stop before the same step, soon."""
        self._stop_requested = True

    def unresponsive(self) -> bool:
        """Whether no worker would notice a stop: none has begun a step, or the last one began far too long ago.

        This is so while workers, also those that restart after a failure, wait for CPUs or GPUs.
        """
        if self._long_operation_since is not None:
            return time.monotonic() - self._long_operation_since > _LONG_OPERATION_SECONDS
        if self._stop_at is not None:
            return False
        silence = time.monotonic() - self._newest_step_at
        return self._newest_step is None or silence > _SILENCE_SECONDS + 10 * self._longest_step_seconds

    def begin_long_operation(self) -> None:
        """Workers begin what may take much longer than a step: to wait for a checkpoint. The next step ends it."""
        self._long_operation_since = time.monotonic()

    def begin_step(self, step: int) -> int | None:
        """A worker begins a step. Returns the step before which all workers stop, once that is decided.

        A worker acts on the answer to one step when it begins the next, so it never waits for an answer. The decision
        lies two steps beyond any step that has begun: by then every worker has received it.
        """
        now = time.monotonic()
        if self._newest_step is not None:
            self._longest_step_seconds = max(self._longest_step_seconds, now - self._newest_step_at)
        self._newest_step_at, self._long_operation_since = now, None
        self._newest_step = max(step, step if self._newest_step is None else self._newest_step)
        if self._stop_requested and self._stop_at is None:
            self._stop_at = self._newest_step + 2
        return self._stop_at


class StepAnnouncer:
    """A worker's side of `Coordinator.begin_step`: it announces each step without waiting for the answer."""

    def __init__(self, coordinator: Any) -> None:
        self._coordinator = coordinator
        self._answer: Any = None  # a Ray reference

    def stops_before(self, step: int) -> bool:
        """Whether all workers stop before this step; if not, announce that this worker begins it."""
        import ray

        stop_at = None if self._answer is None else ray.get(self._answer)
        if stop_at is not None and step >= stop_at:
            return True
        self._answer = self._coordinator.begin_step.remote(step)
        return False


@contextmanager
def monitor(
    coordinator: Any,
    config: TrainingConfig,
    progress: Progress,
    control: Callable[[], ControlRequest],
    requests: list[ControlRequest],
    abort: Callable[[], None],
) -> Iterator[None]:
    """Within this context a thread passes on the coordinator's events, and to it the request that ends these workers.

    progress: called with each event. control: asked for the present request; the first one that ends this group of
    workers is appended to `requests`, and the workers are told to stop. A node that is being removed (Ray calls it
    draining) ends the group too: its workers write a checkpoint while they can, and the next group continues from it on
    other nodes.
    abort: called where no worker would notice a stop, as while they wait for resources, and when the coordinator cannot
    be reached any more. Raises RuntimeError in the latter case.
    """
    over = threading.Event()
    errors: list[Exception] = []

    def run() -> None:
        try:
            _monitor(coordinator, config, progress, control, requests, abort, over)
        except Exception as error:  # without a coordinator the workers would not notice a stop either
            errors.append(error)
            abort()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        if errors:
            raise RuntimeError(f"the training cannot be monitored any more ({errors[0]})") from errors[0]


def _monitor(
    coordinator: Any,
    config: TrainingConfig,
    progress: Progress,
    control: Callable[[], ControlRequest],
    requests: list[ControlRequest],
    abort: Callable[[], None],
    over: threading.Event,
) -> None:
    import ray

    from training.ray_internals import draining_nodes

    leaving = False
    while True:
        last = over.wait(_POLL_SECONDS)
        for event in ray.get(coordinator.pop_events.remote()):
            progress(event)
        if (request := control()).ends(config) and not requests[-1].ends(config):
            ray.get(coordinator.request_stop.remote())
            requests.append(request)
        elif not leaving and draining_nodes() & ray.get(coordinator.worker_nodes.remote()):
            leaving = True
            ray.get(coordinator.request_stop.remote())
            progress({"event": "leave"})
        if last:
            return
        if (leaving or requests[-1].ends(config)) and ray.get(coordinator.unresponsive.remote()):
            abort()
            return


def await_node_removal(control: Callable[[], ControlRequest]) -> None:
    """Wait until nodes that are being removed are gone: an elastic group would be sized to include them."""
    from training.ray_internals import draining_nodes

    deadline = time.monotonic() + _DEPARTURE_SECONDS
    while draining_nodes() and not control().stop and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
