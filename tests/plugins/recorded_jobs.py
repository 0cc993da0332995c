"""Jobs as their sender recorded them, without anything having been sent."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from cluster.target import LocalTarget, RayTarget
from pipelines.jobs.attempt import Attempt, AttemptState, Control, this_sender
from pipelines.jobs.known_jobs import remember_job
from pipelines.jobs.resolved import ResolvedJob, resolve_job
from pipelines.jobs.specification import LabelJob

LOCAL = LocalTarget(type="local")
GONE = RayTarget(type="ray", address="http://127.0.0.1:9")


@pytest.fixture
def job(tmp_path: Path) -> ResolvedJob:
    """A job that fails at once: there is no such dataset."""
    return resolve_job(LabelJob(kind="label", dataset=str(tmp_path / "none"), groups=["edges"]))


def recorded(
    job: ResolvedJob,
    number: int,
    target: Any,
    state: AttemptState | None = None,
    sender: str = "",
    sent: float = 0.0,
) -> Attempt:
    """An attempt as its sender recorded it."""
    values = target.model_dump(mode="json")
    attempt = Attempt(job.id, number, job.address, "target.yaml", values, sent or time.time(), sender or this_sender())
    remember_job(job.id, job.address)
    job.folder.put_specification(job.specification)
    job.folder.put_control(Control(number))
    job.folder.put_attempt(attempt)
    if state:
        job.folder.put_state(state)
    return attempt
