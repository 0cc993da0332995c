"""A job's folder, OUTPUT/jobs/ID/, on disk or S3: what is wanted, what became of it, and its log.

job.yaml           what to do, resolved
submission.json    the last attempt: its number, its target, when and by whom it was sent
state.json         written by the running attempt: phase, signs of life, how it ended
control.json       written by others for the running attempt: stop, or another number of workers
log/000001.txt …   its output, over all attempts, in parts
"""

from __future__ import annotations

import getpass
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from labeling.dataset import open_store
from model.inputs import InputError
from pipelines.jobs.log import PART
from pipelines.jobs.specification import Job, parse_job

FOLDER = "jobs"
ENDED = ("succeeded", "failed", "stopped")
ALIVE_SECONDS = 150.0  # without a sign of life for longer than this, an attempt elsewhere is taken for dead


@dataclass(frozen=True)
class Submission:
    """One sending of a job: id, attempt (from 1), the target's name and its whole description, when (Unix time)."""

    id: str
    attempt: int
    address: str
    target_name: str
    target: dict[str, Any]
    sent: float
    sender: str

    @property
    def name(self) -> str:
        """What the target knows the attempt by."""
        return f"{self.id}-{self.attempt}"


@dataclass(frozen=True)
class RunState:
    """What an attempt says of itself.

    phase: running, succeeded, failed, stopped or interrupted (it will go on when its target starts it again);
    time: of the last sign of life; result: figures of a finished job; reason: one line where there is one.
    """

    attempt: int
    phase: str
    host: str
    process: int
    started: float
    time: float
    reason: str = ""
    result: dict[str, Any] = field(default_factory=dict)
    progress: dict[str, Any] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        return self.phase in ENDED

    @property
    def breathes(self) -> bool:
        return self.phase == "running" and time.time() - self.time < ALIVE_SECONDS

    @property
    def lives(self) -> bool:
        """Whether it runs still: of this machine's own its process is the witness, of others their signs of life."""
        if self.host != socket.gethostname():
            return self.breathes
        try:
            process = psutil.Process(self.process)
            there = process.create_time() < self.started + 1 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False
        return self.phase == "running" and there


@dataclass(frozen=True)
class Control:
    """What others want of a running attempt. workers: a `WorkersSpec`, as JSON."""

    attempt: int = 0
    stop: bool = False
    workers: dict[str, Any] | None = None


class JobFolder:
    """The folder of one job. Every file in it is written whole; the last writer wins."""

    def __init__(self, address: str) -> None:
        self.store = open_store(address)
        self.address = self.store.uri

    def remove(self) -> None:
        """Remove it, and the folders that were made for it alone."""
        self.store.delete_tree("")
        if not self.address.startswith("s3://"):
            with suppress(OSError):
                for folder in list(Path(self.address).parents)[:2]:
                    folder.rmdir()

    def job(self) -> Job:
        """Raises InputError when there is no job here."""
        try:
            return parse_job(yaml.safe_load(self.store.read("job.yaml")), f"{self.address}/job.yaml")
        except FileNotFoundError:
            raise InputError(f"{self.address}: no job there (no job.yaml); send one with `submit`") from None

    def put_job(self, job: Job) -> None:
        self.store.put("job.yaml", yaml.safe_dump(job.model_dump(mode="json"), sort_keys=False).encode())

    def submission(self) -> Submission | None:
        values = self._json("submission.json")
        return Submission(**values) if values else None

    def put_submission(self, submission: Submission) -> None:
        self.store.put("submission.json", _dump(asdict(submission)))

    def state(self) -> RunState | None:
        values = self._json("state.json")
        return RunState(**values) if values else None

    def put_state(self, state: RunState) -> None:
        self.store.put("state.json", _dump(asdict(state)))

    def control(self) -> Control:
        return Control(**self._json("control.json"))

    def put_control(self, control: Control) -> None:
        self.store.put("control.json", _dump(asdict(control)))

    def _json(self, name: str) -> dict[str, Any]:
        try:
            return dict(json.loads(self.store.read(name)))
        except FileNotFoundError:
            return {}

    def log_parts(self) -> list[str]:
        return [name for name in self.store.files("log") if PART.fullmatch(name)]

    def log_lines(self, over: Callable[[], bool] = lambda: True, seconds: float = 2.0) -> Iterator[str]:
        """Lines of the log; then, every few seconds, those that came, until `over` (asked before each last look)."""
        seen: dict[str, int] = {}  # bytes of each part that were given out
        rest = b""
        while True:
            last = over()
            sizes = self.store.files("log")
            for name in filter(PART.fullmatch, sizes):
                if sizes[name].size > seen.get(name, 0):
                    content = self.store.read(f"log/{name}")
                    rest += content[seen.get(name, 0) :]
                    seen[name] = len(content)
            *lines, rest = rest.split(b"\n")
            yield from (line.decode(errors="replace") for line in lines)
            if last:
                break
            time.sleep(seconds)
        if rest:
            yield rest.decode(errors="replace")


def this_sender() -> str:
    """Who submits from here."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


def job_address(output: str, identity: str) -> str:
    """The folder of a job that works on `output`."""
    return f"{output}/{FOLDER}/{identity}"


def jobs_of(output: str) -> list[str]:
    """Addresses of the folders of all jobs that worked on a dataset or run."""
    store = open_store(output)
    return [f"{store.uri}/{FOLDER}/{name}" for name in store.folders(FOLDER)]


def _dump(values: dict[str, Any]) -> bytes:
    return json.dumps(values, indent=1, sort_keys=True).encode() + b"\n"
