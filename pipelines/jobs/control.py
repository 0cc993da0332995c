"""Stopping and scaling jobs that are under way."""

from __future__ import annotations

import time
from dataclasses import replace

from cluster.target import parse_target
from model.inputs import InputError
from pipelines.jobs.attempt import Attempt, AttemptState, Control
from pipelines.jobs.folder import JobFolder
from pipelines.jobs.resolved import ResolvedJob, stored_job
from pipelines.jobs.specification import TrainJob, WorkersSpec
from pipelines.jobs.status import JobStatus, attempt_state, backend_of, find_attempt, job_status
from pipelines.jobs.submit import Say, send_job, work_of

STOP_SECONDS = 180.0  # for a job to end by itself, before its target ends what is left
CHECKPOINT_SECONDS = 1800.0  # for a training, which writes a checkpoint first


def stop_job(job_id: str, say: Say = lambda line: None) -> JobStatus:
    """End a job, by its id or the address of its folder.

    A running job is asked to end, and a training writes a checkpoint first; its target then ends what is left.
    """
    attempt = find_attempt(job_id)
    return _end(attempt, Control(attempt.number, stop=True), say)


def scale_job(job_id: str, workers: WorkersSpec, say: Say = lambda line: None) -> Attempt:
    """Continue a job with other workers.

    A training changes their number between two steps. For other jobs, for workers of another size, and on targets that
    cannot give running work more resources, the attempt ends and the next one begins.
    Raises InputError when the job is not under way, or cannot use so many.
    """
    attempt = find_attempt(job_id)
    stored = stored_job(attempt.address)
    scaled = stored.scaled(workers)
    status = job_status(attempt)
    if not status.alive:
        raise InputError(f"{attempt.job_id}: it is {status.phase}; submit it again, with the workers wanted")
    backend = backend_of(attempt)
    # Nothing is ended for workers that the target cannot run, or while it cannot be reached.
    backend.plan(work_of(scaled, attempt))
    backend.state(attempt.name)
    in_place = status.phase == "running" and _only_the_count_differs(stored, scaled)
    if in_place and backend.scale(attempt.name, work_of(scaled, attempt)):
        scaled.folder.put_specification(scaled.specification)
        request = workers.model_dump(mode="json")
        scaled.folder.put_control(replace(scaled.folder.control(), attempt=attempt.number, workers=request))
        say(f"{attempt.job_id}: goes on with {workers.count} workers after its next step")
        return attempt
    try:
        _end(attempt, Control(attempt.number + 1), say)  # whoever follows the log then waits for the next attempt
        return send_job(scaled, attempt.target_name, parse_target(attempt.target, attempt.target_name), say)
    except InputError:
        scaled.folder.put_control(Control(attempt.number, stop=True))
        raise


def _only_the_count_differs(stored: ResolvedJob, scaled: ResolvedJob) -> bool:
    same_size = stored.workers.model_copy(update={"count": scaled.workers.count}) == scaled.workers
    return isinstance(stored.specification, TrainJob) and same_size


def _end(attempt: Attempt, control: Control, say: Say) -> JobStatus:
    """End an attempt. control: what is written to the folder, where the attempt reads that it has to end."""
    folder = JobFolder(attempt.address)
    status = job_status(attempt)
    folder.put_control(control)
    if status.phase in ("running", "unknown"):
        trains = status.phase == "running" and isinstance(folder.specification(), TrainJob)
        say(f"{attempt.job_id}: asked to end{'; it writes a checkpoint first' if trains else ''}")
        deadline = time.monotonic() + (CHECKPOINT_SECONDS if trains else STOP_SECONDS)
        while time.monotonic() < deadline and job_status(attempt).phase == "running":
            time.sleep(0.5)
    _end_by_force(attempt, say)
    state = attempt_state(attempt)
    if state is None or state.attempt != attempt.number or not state.has_ended:
        now = time.time()
        if state is None or state.attempt != attempt.number:  # it never began
            state = AttemptState(attempt.number, "", "", 0, now, now)
        folder.put_state(replace(state, phase="stopped", time=now))
    return job_status(attempt)


def _end_by_force(attempt: Attempt, say: Say) -> None:
    """Have the target end what is left of an attempt. Raises InputError when it may still run after that."""
    backend = backend_of(attempt)
    try:
        if not backend.sees_all and backend.state(attempt.name).phase == "absent" and job_status(attempt).alive:
            raise InputError(
                f"{attempt.job_id}: {attempt.sender} sent it, and it cannot be ended by force from here; it has been "
                "asked to end, and `onediffusion jobs` tells when it has"
            )
        backend.stop(attempt.name)
    except InputError as error:
        status = job_status(attempt)
        if status.phase == "unknown":  # if it lives after all, it ends when it next reads its folder
            say(f"{attempt.job_id}: neither its target nor the job answers, so it is taken for ended ({error})")
        elif status.alive:
            raise
