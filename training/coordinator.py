"""What a run's workers and its driver tell each other: a board that both reach, and who follows it."""

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
_PAUSE_SECONDS = 1800.0  # for a checkpoint
_DEPARTURE_SECONDS = 180.0

Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Wish:
    """What is wanted of a run that goes on. stop: write a checkpoint and end; workers: go on with so many."""

    stop: bool = False
    workers: int | tuple[int, int] | None = None

    def ends(self, config: TrainingConfig) -> bool:
        """Whether the workers there are have to stop for it."""
        return self.stop or (self.workers is not None and self.workers != config.workers.count)


class Board:
    """An actor where workers leave what the driver tells its user, and learn when they are to stop."""

    def __init__(self) -> None:
        self._records: list[dict[str, Any]] = []
        self._failure: str | None = None
        self._reached: int | None = None
        self._wanted = False
        self._stop_at: int | None = None
        self._heard = time.monotonic()
        self._longest = 0.0  # seconds between two steps
        self._paused: float | None = None  # since when
        self._nodes: set[str] = set()

    def join(self, node: str) -> None:
        """A worker is there, on a node of this id."""
        self._nodes.add(node)
        self._paused = None

    def nodes(self) -> set[str]:
        """Ids of the nodes that workers are on."""
        return self._nodes

    def post(self, record: dict[str, Any]) -> None:
        """Leave a record."""
        self._records.append(record)

    def take(self) -> list[dict[str, Any]]:
        """Fetch the records left since."""
        records, self._records = self._records, []
        return records

    def fail(self, message: str) -> None:
        """Say what a user has to mend; the first message stays."""
        self._failure = self._failure or message

    def failure(self) -> str | None:
        """That message, if there is one."""
        return self._failure

    def stop(self) -> None:
        """Have all workers stop before the same step, soon."""
        self._wanted = True

    def unheard(self) -> bool:
        """Whether nobody is there to be told to stop: no worker began a step yet, or for much longer than one takes.

        So it is while workers, also those that begin again after a failure, wait for room.
        """
        if self._paused is not None:
            return time.monotonic() - self._paused > _PAUSE_SECONDS
        silence = time.monotonic() - self._heard
        return self._stop_at is None and (self._reached is None or silence > _SILENCE_SECONDS + 10 * self._longest)

    def pause(self) -> None:
        """Workers begin what may take much longer than a step, as a checkpoint does; the next step ends it."""
        self._paused = time.monotonic()

    def reach(self, step: int) -> int | None:
        """A worker begins a step. Returns the step before which all stop, once that is settled.

        A worker acts on the answer of one step when it begins the next, so that it never waits for it. What is settled
        lies two steps beyond any that was begun: by then every worker has been told.
        """
        now = time.monotonic()
        if self._reached is not None:
            self._longest = max(self._longest, now - self._heard)
        self._heard, self._paused = now, None
        if self._wanted and self._stop_at is None:
            self._stop_at = max(step, step if self._reached is None else self._reached) + 2
        self._reached = max(step, step if self._reached is None else self._reached)
        return self._stop_at


@contextmanager
def followed(
    board: Any,
    config: TrainingConfig,
    tell: Progress,
    wish: Callable[[], Wish],
    wishes: list[Wish],
    abort: Callable[[], None],
) -> Iterator[None]:
    """Pass on what is posted on the board, and to it the wish that ends this group of workers, which joins `wishes`.

    A node that is being taken away (Ray calls it draining) ends the group too: its workers write a checkpoint while
    they can, and the next group begins from it on other nodes.
    abort: called where no worker is there to hear it, as while they wait for room, and where it cannot be followed.
    Raises RuntimeError in the latter case.
    """
    import ray

    over = threading.Event()

    def follow() -> None:
        leaving = False
        while True:
            last = over.wait(_POLL_SECONDS)
            for record in ray.get(board.take.remote()):
                tell(record)
            if (wanted := wish()).ends(config) and not wishes[-1].ends(config):
                ray.get(board.stop.remote())
                wishes.append(wanted)
            elif not leaving and _draining_nodes() & ray.get(board.nodes.remote()):
                leaving = True
                ray.get(board.stop.remote())
                tell({"event": "leave"})
            if last:
                return
            if (leaving or wishes[-1].ends(config)) and ray.get(board.unheard.remote()):
                abort()
                return

    broken: list[Exception] = []

    def watch() -> None:
        try:
            follow()
        except Exception as error:  # who is not followed hears of no stop either
            broken.append(error)
            abort()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        if broken:
            raise RuntimeError(f"the training cannot be followed any more ({broken[0]})") from broken[0]


def await_departures(wish: Callable[[], Wish]) -> None:
    """Wait for nodes that are being taken away to be gone: an elastic group counts on all that are there."""
    deadline = time.monotonic() + _DEPARTURE_SECONDS
    while _draining_nodes() and not wish().stop and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)


def _draining_nodes() -> set[str]:
    from ray._private.state import state  # as Ray Train asks; what is public does not tell

    return set(state.get_draining_nodes())
