"""A process that runs a network on the device that Ray gave it, on batches of rows that other processes prepared."""

from __future__ import annotations

import asyncio
import pickle
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from labeling.failures import DeviceError, Failure
from labeling.labeler import Labeler, Prepared
from labeling.resources import Resources
from labeling.run import LabelerRun, import_packages
from labeling.supervision.supervisor import Supervisor
from labeling.supervision.task_attempt import Attempt

GPU_FILES = ("/dev/nvidiactl", "/dev/kfd")  # of the drivers of NVIDIA and AMD
Inputs = tuple[list[str], list[bytes]]  # ids of rows, and what the network takes of each, pickled


class NetworkWork:
    """The network itself, in a child of the actor."""

    def __init__(self, labeler: Labeler, resources: Resources) -> None:
        import_packages(labeler)
        labeler.device = _device()
        labeler.load_processor()
        labeler.load()
        self.run = LabelerRun(labeler, resources)

    def __call__(self, task: Inputs | None, attempt: Attempt) -> list[Any] | str:
        """What the network gives for each row, pickled, or the row's failure; of None, the device."""
        if task is None:
            return self.run.labeler.device
        ids, inputs = task
        prepared = [Prepared(pickle.loads(one)) for one in inputs]  # noqa: S301 (of our own processes)
        outputs = self.run.infer(ids, prepared, attempt)
        return [one if isinstance(one, Failure) else pickle.dumps(one, protocol=5) for one in outputs]


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


class NetworkProcess:
    """An actor that has a share of the GPUs. It collects the rows of many requests in batches for its child."""

    def __init__(self, labeler: Labeler, resources: Resources) -> None:
        self.labeler = labeler
        self.batch = resources.batch or labeler.batch_size
        work = partial(NetworkWork, labeler, resources)
        self.child = Supervisor(work, resources.memory_gb, processes=2, on_gpu=True, name=labeler.group)
        self.device = ""  # known when the child has loaded the network
        self.crosses = False  # whether a batch may hold rows of several requests
        self.waiting: deque[tuple[_Request, int]] = deque()  # rows, as indices in their requests
        self.serving: asyncio.Task[None] | None = None

    async def infer(self, ids: list[str], inputs: list[bytes]) -> list[Any]:
        """What the network gives for each row, pickled, or the row's failure.

        Raises DeviceError where the device fails, so that the rows are tried elsewhere.
        """
        request = _Request(ids, inputs, asyncio.get_running_loop().create_future())
        self.waiting.extend((request, index) for index in range(len(ids)))
        if self.serving is None or self.serving.done():
            self.serving = asyncio.create_task(self._serve())
        return await request.answer

    async def _serve(self) -> None:
        """Run batches until none waits."""
        loop = asyncio.get_running_loop()
        while self.waiting:
            rows: list[tuple[_Request, int]] = []
            try:
                if not self.device:
                    self.device = await loop.run_in_executor(None, self.child.run, None)
                # On CPUs a label of a deterministic labeler depends on the rows of its row group, and on nothing else.
                self.crosses = not self.labeler.deterministic or self.device != "cpu"
                rows = self._take()
                task = ([request.ids[index] for request, index in rows], [r.inputs[index] for r, index in rows])
                outputs = await loop.run_in_executor(None, self.child.run, task)
            except Exception as error:
                failed = {id(request): request for request, _ in [*rows, *self.waiting]}
                self.waiting.clear()
                for request in failed.values():
                    if not request.answer.done():
                        request.answer.set_exception(error)
                return
            for (request, index), output in zip(rows, outputs, strict=True):
                request.outputs[index] = output
                if len(request.outputs) == len(request.ids) and not request.answer.done():
                    request.answer.set_result([request.outputs[index] for index in range(len(request.ids))])

    def _take(self) -> list[tuple[_Request, int]]:
        """The rows of the next batch; of one request all that are left, where batches may not cross."""
        first = self.waiting[0][0]
        rows: list[tuple[_Request, int]] = []
        while self.waiting and (len(rows) < self.batch if self.crosses else self.waiting[0][0] is first):
            rows.append(self.waiting.popleft())
        return rows
