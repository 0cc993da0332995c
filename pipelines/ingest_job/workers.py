"""Where the work of an ingest runs: in this process where it is little, else as tasks of Ray, started when needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
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
        crashed: Callable[..., T] | None = None,
    ) -> Iterator[T]:
        """Results of the calls, as they come. What calls return is small, and only few of them wait at a time.

        crashed: called in the place of `function` where a process has died of a call, twice.
        """
        if not on_cluster:
            for call in calls:
                yield function(*call)
            return
        self._start()
        yield from _on_ray(function, calls, crashed)


def _on_ray(
    function: Callable[..., T], calls: Iterable[Sequence[Any]], crashed: Callable[..., T] | None
) -> Iterator[T]:
    import ray
    from ray.exceptions import OutOfMemoryError, WorkerCrashedError

    def call_with(one: Callable[..., T], arguments: Sequence[Any]) -> T:
        return one(*arguments)

    task = ray.remote(call_with).options(num_cpus=1, max_retries=1)
    running: dict[Any, tuple[Callable[..., T], Sequence[Any]]] = {}
    waiting = iter(calls)
    more = True
    while more or running:
        most = 2 * int(cluster_has("CPU")) + _WAITING
        while more and len(running) < most:
            try:
                arguments = next(waiting)
            except StopIteration:
                more = False
                break
            running[task.remote(function, arguments)] = (function, arguments)
        if not running:
            return
        ready, _ = ray.wait(list(running), num_returns=1)
        for reference in ready:
            one, arguments = running.pop(reference)
            try:
                result = ray.get(reference)
            except (WorkerCrashedError, OutOfMemoryError):
                if crashed is None or one is crashed:
                    raise
                running[task.remote(crashed, arguments)] = (crashed, arguments)
                continue
            yield result
