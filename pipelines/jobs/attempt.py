"""One attempt at a job: what was sent, what it says of itself, and what others ask of it while it runs.

Three views of how a job stands are kept apart: `AttemptState` is what the attempt says of itself,
`cluster.work.TargetState` is what its target says of it, and `pipelines.jobs.status.JobStatus` is what follows of both.
"""

from __future__ import annotations

import getpass
import socket
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil

FINAL_PHASES = ("succeeded", "failed", "stopped")
SILENT_SECONDS = 150.0  # without a heartbeat for longer than this, an attempt elsewhere is taken for dead


@dataclass(frozen=True)
class Attempt:
    """One sending of a job.

    number: from 1; address: of the job's folder; target_name, target: the target's name and whole description;
    sent: Unix time; sender: USER@HOST. tasks: more than 1 for a job array, whose tasks share the shards [first, end).
    """

    job_id: str
    number: int
    address: str
    target_name: str
    target: dict[str, Any]
    sent: float
    sender: str
    tasks: int = 1
    shards: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """What the target knows the attempt by."""
        return f"{self.job_id}-{self.number}"

    def to_json(self) -> dict[str, Any]:
        """The values that submission.json keeps."""
        values = asdict(self)
        if self.tasks == 1:  # as all versions read it
            del values["tasks"], values["shards"]
        return {"id": values.pop("job_id"), "attempt": values.pop("number"), **values}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Attempt:
        """The attempt that submission.json keeps."""
        rest = {key: value for key, value in values.items() if key not in ("id", "attempt")}
        if shards := rest.get("shards"):
            rest["shards"] = tuple(shards)
        return cls(values["id"], values["attempt"], **rest)


@dataclass(frozen=True)
class AttemptState:
    """What an attempt says of itself.

    phase: running, succeeded, failed, stopped or interrupted (it continues when its target starts it again);
    time: of the last heartbeat; result: figures of a finished job; reason: one line where there is one.
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
    def has_ended(self) -> bool:
        return self.phase in FINAL_PHASES

    @property
    def is_responding(self) -> bool:
        """Whether it runs by its own account, and its last heartbeat is not long ago."""
        return self.phase == "running" and time.time() - self.time < SILENT_SECONDS

    @property
    def is_running(self) -> bool:
        """Whether it still runs: on this machine its process shows it, on others its heartbeats do."""
        if self.host != socket.gethostname():
            return self.is_responding
        try:
            process = psutil.Process(self.process)
            exists = process.create_time() < self.started + 1 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False
        return self.phase == "running" and exists


@dataclass(frozen=True)
class Control:
    """What others ask of a running attempt. workers: a `WorkersSpec`, as JSON."""

    attempt: int = 0
    stop: bool = False
    workers: dict[str, Any] | None = None


def this_sender() -> str:
    """Who submits from here."""
    return f"{getpass.getuser()}@{socket.gethostname()}"
