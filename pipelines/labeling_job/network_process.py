"""A process that runs a network on the device that Ray gave it, on batches of rows that other processes prepared."""

from __future__ import annotations

import asyncio
import pickle
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from labeling.failures import DeviceError, Failure
from labeling.labeler import Labeler, Prepared
from labeling.networks.staging import stage, staging
from labeling.resources import Resources
from labeling.run import LabelerRun, import_packages
from labeling.supervision.supervisor import Supervisor
from labeling.supervision.task_attempt import Attempt

GPU_FILES = ("/dev/nvidiactl", "/dev/kfd")  # of the drivers of NVIDIA and AMD


@dataclass(frozen=True)
class Batch:
    """Rows for the network. inputs: what it takes of each, pickled; None where the child has them by `number`."""

    number: int
    ids: list[str]
    inputs: list[bytes] | None

    def without_inputs(self) -> Batch:
        """The same for a child that has the inputs."""
        return replace(self, inputs=None)


class NetworkWork:
    """The network itself, in a child of the actor."""

    def __init__(self, labeler: Labeler, resources: Resources) -> None:
        import_packages(labeler)
        labeler.device = _device()
        labeler.load_processor()
        labeler.load()
        self.run = LabelerRun(labeler, resources)
        self.there: dict[int, list[Prepared]] = {}  # by number, of batches that come next

    def ahead(self, batch: Batch) -> None:
        """Take the inputs of the next batch, and begin to copy them to the device, while the network is at another."""
        prepared = _prepared(batch)
        self.there[batch.number] = prepared
        with suppress(Exception):  # as of a device without memory: they are copied when it is their turn
            stage([one.inputs for one in prepared], self.run.labeler.device)

    def __call__(self, batch: Batch | None, attempt: Attempt) -> list[Any] | str:
        """What the network gives for each row, pickled, or the row's failure; of None, the device."""
        if batch is None:
            return self.run.labeler.device
        for number in [number for number in self.there if number < batch.number]:  # that nobody asks for any more
            staging.forget([one.inputs for one in self.there.pop(number)])
        prepared = self.there.pop(batch.number, None) or _prepared(batch)
        try:
            outputs = self.run.infer(batch.ids, prepared, attempt)
        finally:
            staging.forget([one.inputs for one in prepared])
        return [one if isinstance(one, Failure) else pickle.dumps(one, protocol=5) for one in outputs]


def _prepared(batch: Batch) -> list[Prepared]:
    assert batch.inputs is not None, "only a child that has them is asked without them"
    return [Prepared(pickle.loads(one)) for one in batch.inputs]  # noqa: S301 (of our own processes)


def _device() -> str:
    """ "cuda" where there is one; Ray has hidden the GPUs of others.

    Raises DeviceError where the machine has a GPU that torch cannot use: on CPUs it would go on for weeks, unnoticed.
    """
    import importlib.util

    if importlib.util.find_spec("torch") is None:
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if any(Path(file).exists() for file in GPU_FILES):
        raise DeviceError("No CUDA GPUs are available to torch, though this machine has one")
    return "cpu"


@dataclass
class _Request:
    ids: list[str]
    inputs: list[bytes]
    answer: asyncio.Future[list[Any]]
    outputs: dict[int, Any] = field(default_factory=dict)  # by the index of their row


Row = tuple[_Request, int]  # a row, as its index in a request


class NetworkProcess:
    """An actor that has a share of the GPUs. It collects the rows of many requests in batches for its child.

    On a GPU the child gets a batch while it is at the one before, as soon as that many rows are there.
    """

    def __init__(self, labeler: Labeler, resources: Resources) -> None:
        self.labeler = labeler
        self.batch = resources.batch or labeler.batch_size
        work = partial(NetworkWork, labeler, resources)
        self.child = Supervisor(work, resources.memory_gb, processes=2, on_gpu=True, name=labeler.group)
        self.device = ""  # known when the child has loaded the network
        self.crosses = False  # whether a batch may hold rows of several requests
        self.waiting: deque[Row] = deque()
        self.came = asyncio.Event()  # rows, since a batch was last begun
        self.serving: asyncio.Task[None] | None = None
        self.number = 0  # of the last batch

    async def infer(self, ids: list[str], inputs: list[bytes]) -> list[Any]:
        """What the network gives for each row, pickled, or the row's failure.

        Raises DeviceError where the device fails, so that the rows are tried elsewhere.
        """
        request = _Request(ids, inputs, asyncio.get_running_loop().create_future())
        self.waiting.extend((request, index) for index in range(len(ids)))
        self.came.set()
        if self.serving is None or self.serving.done():
            self.serving = asyncio.create_task(self._serve())
        return await request.answer

    async def _serve(self) -> None:
        """Run batches until none waits."""
        loop = asyncio.get_running_loop()
        rows: list[Row] = []
        following: list[Row] = []
        batch: Batch | None = None  # of the rows that follow, once the child has their inputs
        try:
            if not self.device:
                self.device = await loop.run_in_executor(None, self.child.run, None)
            # On CPUs a label of a deterministic labeler depends on the rows of its row group, and on nothing else.
            self.crosses = not self.labeler.deterministic or self.device != "cpu"
            while self.waiting or following:
                rows, following = following or self._take(), []
                whole, short = (batch, batch.without_inputs()) if batch else (self._batch(rows), None)
                batch = None
                running = loop.run_in_executor(None, self.child.run, whole, short)
                if self.device != "cpu" and await self._fills_next(running):
                    following = self._take()
                    batch = self._batch(following)
                    await loop.run_in_executor(None, self.child.ahead, batch)
                self._answer(rows, await running)
                rows = []
        except Exception as error:
            failed = {id(request): request for request, _ in [*rows, *following, *self.waiting]}
            self.waiting.clear()
            for request in failed.values():
                if not request.answer.done():
                    request.answer.set_exception(error)

    async def _fills_next(self, running: asyncio.Future[Any]) -> bool:
        """Wait until the rows of a whole batch are there, or the batch that runs is done; whether they are."""
        while len(self.waiting) < self.batch and not running.done():
            self.came.clear()
            arrival = asyncio.ensure_future(self.came.wait())
            await asyncio.wait({running, arrival}, return_when=asyncio.FIRST_COMPLETED)
            arrival.cancel()
        return len(self.waiting) >= self.batch and not running.done()

    def _batch(self, rows: list[Row]) -> Batch:
        self.number += 1
        ids = [request.ids[index] for request, index in rows]
        return Batch(self.number, ids, [request.inputs[index] for request, index in rows])

    def _answer(self, rows: list[Row], outputs: list[Any]) -> None:
        for (request, index), output in zip(rows, outputs, strict=True):
            request.outputs[index] = output
            if len(request.outputs) == len(request.ids) and not request.answer.done():
                request.answer.set_result([request.outputs[index] for index in range(len(request.ids))])

    def _take(self) -> list[Row]:
        """The rows of the next batch; of one request all that are left, where batches may not cross."""
        first = self.waiting[0][0]
        rows: list[Row] = []
        while self.waiting and (len(rows) < self.batch if self.crosses else self.waiting[0][0] is first):
            rows.append(self.waiting.popleft())
        return rows
