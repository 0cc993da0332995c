"""The stage of a labeling job that all rows go through: an actor for each core, whose child labels on CPUs."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from itertools import zip_longest
from threading import Lock, Thread
from typing import Any, ClassVar

from labeling.dataset import Dataset
from labeling.failures import DeviceError
from labeling.labeler import Labeler
from labeling.resources import Resources
from labeling.supervision.supervisor import Supervisor
from model.inputs import WorkFailed, one_line
from pipelines.labeling_job.part_labeler import PartLabeler, Step
from pipelines.labeling_job.parts import Part, unpack
from pipelines.labeling_job.placement import Placement
from pipelines.labeling_job.row_group import Requests
from pipelines.labeling_job.tally import Tally

LONGEST_PAUSE = 1.0  # seconds between two questions for a process of a network, while none is up
WRITING = "waiting for the writer"


def waiting_for(group: str) -> str:
    """Name of the step in which a process waits for the network of a group."""
    return f"waiting for {group}"


class LabelProcess:
    """Labels parts of shards and sends the labels to the shards' writers. Several threads call it, with a part each.

    While one of them waits for a network or a writer, the child labels for another.
    """

    child_work: ClassVar[type[PartLabeler]] = PartLabeler

    def __init__(
        self,
        dataset: Dataset,
        labelers: Mapping[str, Labeler],
        resources: Mapping[str, Resources],
        placement: Placement,
        coordinator: Any,
    ) -> None:
        import ray

        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # GPUs belong to the processes of networks
        self.placement = placement
        self.coordinator = coordinator
        self.node = ray.get_runtime_context().get_node_id()
        networks = [group for group, one in labelers.items() if placement.pool_of(group) or one.language_model]
        work = partial(self.child_work, dataset, labelers, resources, networks)
        memory = [one.memory_gb for one in resources.values() if one.memory_gb]
        beside = max(1, int((os.cpu_count() or 1) / placement.cpus))  # such processes that share this machine
        self.child = Supervisor(work, max(memory, default=None), processes=beside, name="label")
        self.lock = Lock()  # the child does one thing at a time
        self.coming: list[Part] = []  # the parts that wait for it
        Thread(target=self._start, daemon=True).start()
        coordinator.prepare_writer.remote(self.node)

    def __call__(self, batch: Mapping[str, Any]) -> Iterator[dict[str, list[str]]]:
        """batch: `parts`, packed. Gives the tally of each part, as JSON, once its labels are with the writer."""
        parts = [part for packed in batch["parts"] for part in unpack(packed)]
        for part, following in zip_longest(parts, parts[1:]):
            yield {"tally": [json.dumps(self.label(part, following).to_plain())]}

    def label(self, part: Part, following: Part | None = None) -> Tally:
        """Label one part. following: the one that this thread brings next."""
        tally = Tally()
        outputs: dict[str, dict[str, Any]] = {}
        self.coming.append(part)
        while not (step := self.step(part, outputs, following, tally)).tables:
            for group, group_outputs in self._ask_networks(step.requests, tally).items():
                outputs.setdefault(group, {}).update(group_outputs)
        with tally.timed(WRITING):
            self.send(part, step.tables)
        tally.done = time.time()
        return tally

    def _start(self) -> None:
        """Start the child while Ray is still busy; what is wrong with it shows again when it is to work."""
        with self.lock, suppress(Exception):
            self.child.start()

    def step(self, part: Part, outputs: Mapping[str, Mapping[str, Any]], following: Part | None, tally: Tally) -> Step:
        """The next step of a part, by the child."""
        with self.lock:
            if part in self.coming:
                self.coming.remove(part)
            step: Step = self.child.run((part, outputs, next(iter(self.coming), following)))
        tally.merge(step.tally)
        return step

    def _ask_networks(self, requests: Requests, tally: Tally) -> dict[str, dict[str, Any]]:
        """Outputs by group and row id. All networks are asked before the first answer is waited for."""
        answers, outputs = {}, {}
        for group, inputs in requests.items():
            with tally.timed(waiting_for(group)):
                answers[group] = self._ask(group, inputs)
        for group, inputs in requests.items():
            with tally.timed(waiting_for(group)):
                outputs[group] = dict(zip(inputs, self._answer(group, inputs, *answers[group]), strict=True))
        return outputs

    def _answer(self, group: str, inputs: Mapping[str, bytes], number: int, answer: Any) -> list[Any]:
        """What a network gives for each row; another process is asked while processes or their devices fail.

        Raises WorkFailed where they do so one after another.
        """
        import ray

        pool = self.placement.pool_of(group)
        while True:
            try:
                outputs = ray.get(answer)
            except (DeviceError, ray.exceptions.RayActorError, ray.exceptions.ObjectLostError) as error:
                # Ray raises its own error around that of the device, with the whole stack as its text.
                device_error = one_line(getattr(error, "cause", error)) if isinstance(error, DeviceError) else ""
                if reason := ray.get(self.coordinator.lost_network.remote(pool, number, device_error)):
                    raise WorkFailed(f"{group}: its network fails on every device: {reason}") from None
                number, answer = self._ask(group, inputs)
                continue
            self.coordinator.answered.remote(pool, number, len(inputs))
            return list(outputs)

    def _ask(self, group: str, inputs: Mapping[str, bytes]) -> tuple[int, Any]:
        """Number of the process asked, and its answer to come. Waits until the network has a process."""
        import ray

        pool, pause = self.placement.pool_of(group), 0.05
        while not (chosen := ray.get(self.coordinator.network.remote(pool, len(inputs)))):
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        number, process = chosen
        return number, process.infer.remote(list(inputs), list(inputs.values()))

    def send(self, part: Part, tables: Mapping[str, bytes]) -> None:
        """Give the labels to the shard's writer, or to another one when it is lost."""
        import ray

        while True:
            number, writer = ray.get(self.coordinator.writer.remote(part.shard, self.node))
            try:
                written = ray.get(writer.add.remote(part, tables))
            except ray.exceptions.RayActorError:
                ray.get(self.coordinator.lost_writer.remote(number))
                continue
            if written:
                self.coordinator.written.remote(number, part.shard)
            return
