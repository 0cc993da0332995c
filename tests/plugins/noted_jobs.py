"""Jobs as whoever sent them left them noted, without anything having been sent."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from cluster.target import LocalTarget, RayTarget
from cluster.user_data import remember_job
from pipelines.jobs.folder import Control, JobFolder, RunState, Submission, job_address, this_sender
from pipelines.jobs.specification import Job, LabelJob, job_id

LOCAL = LocalTarget(type="local")
GONE = RayTarget(type="ray", address="http://127.0.0.1:9")


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """It ends at once: there is no such dataset."""
    return LabelJob(kind="label", dataset=str(tmp_path / "none"), groups=["edges"])


def noted(
    job: Job, attempt: int, target: Any, state: RunState | None = None, sender: str = "", sent: float = 0.0
) -> Submission:
    """A job as whoever sent it left it noted."""
    identity = job_id(job)
    folder = JobFolder(job_address(job.output, identity))
    values = target.model_dump(mode="json")
    submission = Submission(
        identity, attempt, folder.address, "target.yaml", values, sent or time.time(), sender or this_sender()
    )
    remember_job(identity, folder.address)
    folder.put_job(job)
    folder.put_control(Control(attempt))
    folder.put_submission(submission)
    if state:
        folder.put_state(state)
    return submission
