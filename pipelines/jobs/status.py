"""How jobs stand: finding and listing them, and the status that follows of what both attempt and target say."""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from cluster.backend import Backend, open_backend
from cluster.target import parse_target
from cluster.work import TargetState
from model.inputs import InputError, nearest, one_line
from pipelines.jobs.arrays import state_of_tasks
from pipelines.jobs.attempt import Attempt, AttemptState, Control, this_sender
from pipelines.jobs.folder import JobFolder, jobs_of
from pipelines.jobs.known_jobs import remembered_jobs

SENDING_SECONDS = 120.0  # that another sender may take between its record and the job's arrival at the target
LISTING_THREADS = 16


@dataclass(frozen=True)
class JobStatus:
    """How the last attempt at a job stands.

    phase: pending, running, succeeded, failed, stopped, interrupted (submit it again, or its target does), lost (it
    ended without a word) or unknown (its target does not answer); reason: one line where there is one.
    """

    phase: str
    reason: str = ""
    progress: str = ""
    result: dict[str, Any] | None = None

    @property
    def alive(self) -> bool:
        return self.phase in ("pending", "running", "unknown")


def find_attempt(job_id: str) -> Attempt:
    """The last attempt at a job, by the job's id or the address of its folder. Raises InputError."""
    known = remembered_jobs()
    address = job_id if "/" in job_id else known.get(job_id)
    attempt = JobFolder(address).attempt() if address else None
    if attempt is None:
        raise InputError(
            f"{job_id}: no such job{nearest(job_id, list(known))}; `onediffusion jobs` lists those sent from here, "
            "`onediffusion jobs DATASET|RUN` those of a place"
        )
    return attempt


def list_jobs(output: str | None = None) -> list[tuple[Attempt, JobStatus]]:
    """The jobs sent from here, or all of a dataset or run, the newest first.

    Of a folder that cannot be read only its address is known: attempt 0 at no target, with the status "unknown".
    """
    return look_at_jobs(jobs_of(output) if output else list(remembered_jobs().values()))


def look_at_jobs(addresses: Iterable[str]) -> list[tuple[Attempt, JobStatus]]:
    """The jobs in these folders, each looked at once, the newest first; see `list_jobs`."""

    def look(address: str) -> tuple[Attempt, JobStatus] | None:
        try:
            attempt = JobFolder(address).attempt()
            return (attempt, job_status(attempt)) if attempt else None
        except Exception as error:  # one address that cannot be reached must not hide the jobs of all others
            reason = f"{address}: {one_line(error)}"
            return Attempt(address.rpartition("/")[2], 0, address, "", {}, 0.0, ""), JobStatus("unknown", reason)

    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        listed = [one for one in pool.map(look, dict.fromkeys(addresses)) if one]
    return sorted(listed, key=lambda one: -one[0].sent)


def backend_of(attempt: Attempt) -> Backend:
    """The backend it was sent to, as the target was then."""
    return open_backend(parse_target(attempt.target, attempt.target_name))


def job_status(attempt: Attempt) -> JobStatus:
    """What the attempt says of itself, and where it says nothing more, what its target says of it."""
    own = attempt_state(attempt)
    if own and own.has_ended:
        return JobStatus(own.phase, own.reason, result=own.result)
    try:
        backend = backend_of(attempt)
        target = backend.state(attempt.name)
    except InputError as error:
        if own and own.is_responding:
            return JobStatus("running", progress=_progress(own))
        return JobStatus("unknown", str(error))
    if target.phase == "absent" and not backend.sees_all and (status := _status_from_folder(attempt, own)):
        return status
    return _status_from_both(attempt, own, target, backend.sees_all)


def attempt_state(attempt: Attempt) -> AttemptState | None:
    """What an attempt says of itself, of a job array what its tasks say together; None before it has begun."""
    state = JobFolder(attempt.address).state()
    if state and state.attempt == attempt.number:
        return state
    if attempt.tasks == 1:
        return None
    folders = [JobFolder(attempt.address, task) for task in range(attempt.tasks)]
    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        return state_of_tasks(attempt, list(pool.map(JobFolder.state, folders)))


def _status_from_folder(attempt: Attempt, own: AttemptState | None) -> JobStatus | None:
    """The status of an attempt that its target cannot be asked about from here, where its folder shows it."""
    if own and own.is_running:
        return JobStatus("running", progress=_progress(own))
    if own is None and attempt.sender != this_sender() and time.time() - attempt.sent < SENDING_SECONDS:
        return JobStatus("pending", f"{attempt.sender} is sending it")
    return None


def _status_from_both(attempt: Attempt, own: AttemptState | None, target: TargetState, sees_all: bool) -> JobStatus:
    if target.phase in ("pending", "running"):
        if own is None or own.phase != "running":
            return JobStatus("pending", target.reason or "starting")
        return JobStatus(target.phase, target.reason, _progress(own))
    # It may have ended between the looks at its folder and at the target.
    latest = attempt_state(attempt)
    if latest and latest.phase != "running":
        return JobStatus(latest.phase, latest.reason, result=latest.result)
    if sees_all and JobFolder(attempt.address).control() == Control(attempt.number, stop=True):
        # The attempt was stopped, and a last write of its process replaced the state that said so.
        return JobStatus("stopped", target.reason)
    if own is None:
        return JobStatus("lost", target.reason or "it never began; submit it again")
    return JobStatus("lost", target.reason or "it ended without a word (killed, or out of memory?); submit it again")


def _progress(own: AttemptState) -> str:
    """How far it is; where it has begun to move, how fast, and how long the rest takes at that speed."""
    progress = own.progress
    if tasks := progress.get("tasks"):
        rest = _progress(replace(own, progress={key: value for key, value in progress.items() if key != "tasks"}))
        return f"{tasks[0]} of {tasks[1]} tasks have ended" + (f"; {rest}" if rest else "")
    if not progress:
        return ""
    done, total, unit = progress["done"], progress["total"], progress["unit"]
    told = f"{progress['what']}: {done} of {total} {unit}".rstrip()
    moved = done - progress.get("before", 0)
    seconds = own.time - progress.get("began", own.time)  # earlier versions did not write when it began
    if moved <= 0 or seconds <= 0:
        return told
    rate = moved / seconds
    speed = f"{rate:.3g} {unit}/s" if rate >= 1 else f"{60 * rate:.3g} {unit}/min"
    return f"{told}, {speed}, {_duration((total - done) / rate)} left"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
