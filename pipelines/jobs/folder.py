"""A job's folder, OUTPUT/jobs/ID/, on disk or S3: what was asked for, what became of it, and its log.

job.yaml           the specification, resolved
submission.json    the last attempt: its number, its target, when and by whom it was sent (`Attempt`)
state.json         written by the running attempt: phase, heartbeat, how it ended (`AttemptState`)
control.json       written by others for the running attempt: stop, or another number of workers (`Control`)
back.json          the checkpoint that a training went back to, as it was asked for: no attempt does so again
log/000001.txt …   its output, over all attempts, in parts (see pipelines.jobs.log)
tasks/00003/       of a task of a job array: state.json and log/ of its own
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from labeling.dataset import Store, open_store
from model.inputs import InputError
from model.inputs.yaml_files import parse_yaml, to_yaml
from pipelines.jobs.attempt import Attempt, AttemptState, Control
from pipelines.jobs.specification import JobSpecification, parse_specification

FOLDER = "jobs"  # of a dataset or run
TASKS = "tasks"


class JobFolder:
    """The folder of one job, or of a task of it. Every file in it is written whole; the last writer wins.

    own: where state and log are: the folder itself, or that of the task.
    """

    def __init__(self, address: str, task: int | None = None) -> None:
        self.store = open_store(address)
        self.address = self.store.uri
        self.own = self.store if task is None else open_store(f"{self.address}/{TASKS}/{task:05d}")

    def remove(self) -> None:
        """Remove it, and the folders that were made for it alone."""
        self.store.delete_tree("")
        if not self.address.startswith("s3://"):
            with suppress(OSError):  # a folder that holds other things stays
                for folder in list(Path(self.address).parents)[:2]:
                    folder.rmdir()

    def specification(self) -> JobSpecification:
        """Raises InputError when there is no job here."""
        try:
            text = self.store.read("job.yaml").decode()
        except FileNotFoundError:
            raise InputError(f"{self.address}: no job there (no job.yaml); send one with `submit`") from None
        origin = f"{self.address}/job.yaml"
        return parse_specification(parse_yaml(text, origin), origin)

    def put_specification(self, specification: JobSpecification) -> None:
        text = to_yaml(specification.model_dump(mode="json"))
        self.store.put("job.yaml", text.encode())

    def attempt(self) -> Attempt | None:
        """The last attempt that was recorded."""
        values = self._json("submission.json")
        return Attempt.from_json(values) if values else None

    def put_attempt(self, attempt: Attempt) -> None:
        self.store.put("submission.json", _dump(attempt.to_json()))

    def state(self) -> AttemptState | None:
        """What the last attempt that began says of itself."""
        values = self._json("state.json", self.own)
        return AttemptState(**values) if values else None

    def last_begun(self) -> int:
        """Number of the last attempt that began, of a task at least; 0 for none."""
        tasks = [JobFolder(self.address, int(name)) for name in self.store.folders(TASKS) if name.isdecimal()]
        return max((state.attempt for folder in (self, *tasks) if (state := folder.state())), default=0)

    def put_state(self, state: AttemptState) -> None:
        self.own.put("state.json", _dump(asdict(state)))

    def control(self) -> Control:
        """What others ask of the running attempt; the default `Control` where nobody has asked."""
        return Control(**self._json("control.json"))

    def put_control(self, control: Control) -> None:
        self.store.put("control.json", _dump(asdict(control)))

    def went_back_to(self) -> str | None:
        """Name of the checkpoint that an attempt went back to last."""
        return self._json("back.json").get("checkpoint")

    def put_went_back_to(self, checkpoint: str) -> None:
        self.store.put("back.json", _dump({"checkpoint": checkpoint}))

    def _json(self, name: str, store: Store | None = None) -> dict[str, Any]:
        try:
            return dict(json.loads((store or self.store).read(name)))
        except FileNotFoundError:
            return {}


def job_address(output: str, job_id: str) -> str:
    """The folder of a job that works on `output`."""
    return f"{output}/{FOLDER}/{job_id}"


def jobs_of(output: str) -> list[str]:
    """Addresses of the folders of all jobs that worked on a dataset or run."""
    store = open_store(output)
    return [f"{store.uri}/{FOLDER}/{name}" for name in store.folders(FOLDER)]


def _dump(values: dict[str, Any]) -> bytes:
    return json.dumps(values, indent=1, sort_keys=True).encode() + b"\n"
