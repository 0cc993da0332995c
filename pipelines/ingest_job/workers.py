"""Where the work of an ingest or of views runs: in this process where it is little, else as tasks of Ray."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from typing import Any, TypeVar

from cluster.session import cluster_has, ray_session
from model.inputs import one_line

T = TypeVar("T")
_WAITING = 14  # tasks beyond two a CPU: by them a cluster that grows sees that there is more to do


class Workers:
    """Runs calls of one function, here or on a cluster. A context: Ray ends with it if it was started for it."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._has_ray = False

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.__exit__(*exception)

    def processes(self) -> int:
        """How many calls the cluster can run at once by now."""
        self._start()
        return max(1, int(cluster_has("CPU")))

    def _start(self) -> None:
        if not self._has_ray:
            self._stack.enter_context(ray_session())
            self._has_ray = True

    def map(
        self,
        function: Callable[..., T],
        calls: Iterable[Sequence[Any]],
        on_cluster: bool,
        gpus: float = 0,
        lost: Callable[[Sequence[Any], str], T] | None = None,
        then: Callable[[T], Iterable[Sequence[Any]]] = lambda result: (),
    ) -> Iterator[T]:
        """Results of the calls, as they come. What calls return is small, and only few of them wait at a time.

        gpus: that each of `calls` holds on a cluster, and those of `then` do not. lost: what to return of a call whose
        process died, several times, told its arguments and why; without it that ends the job. then: calls that a result
        makes possible, which go before the others.
        """
        if on_cluster:
            self._start()
            yield from _on_ray(function, calls, gpus, lost, then)
            return
        waiting = iter(calls)
        following: deque[Sequence[Any]] = deque()
        while (call := following.popleft() if following else next(waiting, None)) is not None:
            result = function(*call)
            following.extend(then(result))
            yield result


def _on_ray(
    function: Callable[..., T],
    calls: Iterable[Sequence[Any]],
    gpus: float,
    lost: Callable[[Sequence[Any], str], T] | None,
    then: Callable[[T], Iterable[Sequence[Any]]],
) -> Iterator[T]:
    import ray
    from ray.exceptions import OutOfMemoryError, WorkerCrashedError

    def call_with(arguments: Sequence[Any]) -> T:
        return function(*arguments)

    remote = ray.remote(call_with)
    task = remote.options(num_cpus=1, num_gpus=gpus, max_retries=3)
    following_task = remote.options(num_cpus=1, max_retries=3)
    running: dict[Any, Sequence[Any]] = {}
    waiting = iter(calls)
    following: list[Sequence[Any]] = []
    while True:
        most = 2 * int(cluster_has("CPU")) + _WAITING
        running |= {following_task.remote(arguments): arguments for arguments in following}
        running |= {task.remote(arguments): arguments for arguments in islice(waiting, max(most - len(running), 0))}
        if not running:
            return
        (ready,), _ = ray.wait(list(running), num_returns=1)
        arguments = running.pop(ready)
        try:
            result: T = ray.get(ready)
        except (WorkerCrashedError, OutOfMemoryError) as error:
            if lost is None:
                raise
            result = lost(arguments, one_line(error, 120))
        following = list(then(result))
        yield result
