"""Where the work of an ingest or of views runs: in this process where it is little, else as tasks of Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from typing import Any, TypeVar

from cluster.session import cluster_has, ray_session

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
    ) -> Iterator[T]:
        """Results of the calls, as they come. What calls return is small, and only few of them wait at a time."""
        if not on_cluster:
            for call in calls:
                yield function(*call)
            return
        self._start()
        yield from _on_ray(function, calls)


def _on_ray(function: Callable[..., T], calls: Iterable[Sequence[Any]]) -> Iterator[T]:
    import ray

    def call_with(arguments: Sequence[Any]) -> T:
        return function(*arguments)

    task = ray.remote(call_with).options(num_cpus=1, max_retries=3)
    running: list[Any] = []
    waiting = iter(calls)
    while True:
        most = 2 * int(cluster_has("CPU")) + _WAITING
        running += [task.remote(arguments) for arguments in islice(waiting, max(most - len(running), 0))]
        if not running:
            return
        ready, running = ray.wait(running, num_returns=1)
        yield ray.get(ready[0])
