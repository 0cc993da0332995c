"""How the process of a network makes batches: the next one is with the child while it is at the one before."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from labeling.failures import DeviceError
from labeling.resources import Resources
from pipelines.labeling_job.network_process import Batch, NetworkProcess
from simple_labelers import Loose

SECONDS = 60.0


class Child:
    """Stands in for the supervised child: a batch is done when a test lets it, or when the next one is there."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.there: dict[int, Batch] = {}
        self.came = threading.Event()
        self.log: list[str] = []
        self.fails = False

    def ahead(self, batch: Batch) -> None:
        self.log.append(f"ahead {batch.ids}")
        self.there[batch.number] = batch
        self.came.set()

    def run(self, task: Batch | None, short: Batch | None = None) -> Any:
        if task is None:
            return self.device
        self.log.append(f"run {task.ids}" + (" by number" if short else ""))
        if short:
            assert short.inputs is None and short.number in self.there
        elif self.device != "cpu" and len(task.ids) == 2:
            assert self.came.wait(SECONDS)
        if self.fails and short:
            raise DeviceError("CUDA error: gone")
        return [one.upper() for one in task.inputs or []]


def process(child: Child) -> NetworkProcess:
    made = NetworkProcess(Loose("loose", Loose.Parameters()), Resources(batch=2))
    made.child = child  # type: ignore[assignment]
    return made


def ask(made: NetworkProcess, *requests: str) -> Any:
    async def all_of_them() -> Any:
        asked = [made.infer(list(ids), [one.encode() for one in ids]) for ids in requests]
        return await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), SECONDS)

    return asyncio.run(all_of_them())


def test_next_batch_is_given_while_the_one_before_runs() -> None:
    child = Child("cuda")
    assert ask(process(child), "abc", "de") == [[b"A", b"B", b"C"], [b"D", b"E"]]
    assert child.log[:4] == ["run ['a', 'b']", "ahead ['c', 'd']", "run ['c', 'd'] by number", "run ['e']"]


def test_cpus_get_batches_one_by_one() -> None:
    child = Child("cpu")
    assert ask(process(child), "abc", "de") == [[b"A", b"B", b"C"], [b"D", b"E"]]
    assert child.log == ["run ['a', 'b']", "run ['c', 'd']", "run ['e']"]


@pytest.mark.parametrize("later", ["", "ij"])
def test_device_that_fails_fails_all_that_wait_and_nothing_later(later: str) -> None:
    child = Child("cuda")
    child.fails = True
    made = process(child)
    failed = ask(made, "ab", "cd", "e")
    assert failed[0] == [b"A", b"B"]
    assert [str(one) for one in failed[1:]] == ["CUDA error: gone"] * 2
    assert not made.waiting
    if later:
        assert ask(made, later) == [[b"I", b"J"]]
