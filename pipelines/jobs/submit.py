"""Sending jobs to targets and steering them: one id a job, one attempt at a time, nothing lost in between.

An attempt gets its name before it is sent, and targets find work by name. So whoever is killed at any moment leaves
either a note of something that never began, which the next `submit` sends again, or a job that is listed and steered.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from cluster.backend import Backend, open_backend
from cluster.target import Target, load_target, parse_target
from cluster.user_data import forget_job, one_at_a_time, remember_job, remembered_jobs
from cluster.work import AlreadyThere, NativeState, Work
from model.inputs import InputError, nearest, one_line
from pipelines.jobs.folder import Control, JobFolder, RunState, Submission, job_address, jobs_of, this_sender
from pipelines.jobs.specification import Job, TrainJob, WorkersSpec, job_id, room, scaled

STOP_SECONDS = 180.0  # for a job to end by itself, before its target ends what is left
CHECKPOINT_SECONDS = 1800.0  # for a training, which writes a checkpoint first
SENDING_SECONDS = 120.0  # that another sender may take between its note and what its target has of it


@dataclass(frozen=True)
class JobState:
    """What is known of a job's last attempt.

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


def submit_job(job: Job, target_name: str, say: Callable[[str], None] = lambda line: None) -> Submission:
    """Send a resolved job to a target; or, if it is under way already, say so and return what was sent before.

    Raises InputError for what a user can mend: then nothing is left behind.
    """
    return _submit(job, target_name, load_target(target_name), say)


def _submit(job: Job, target_name: str, target: Target, say: Callable[[str], None]) -> Submission:
    backend = open_backend(target)
    folder = JobFolder(job_address(job.output, job_id(job)))
    identity = job_id(job)
    with one_at_a_time(identity):
        before = folder.submission()
        state = job_state(before) if before else None
        if before and state and state.phase == "unknown":
            raise InputError(
                f"{identity}: it may still run on {before.target_name}, which does not answer ({state.reason}); "
                f"`onediffusion stop {identity}` gives it up"
            )
        if before and state and state.alive:
            if _sent(folder.job()) != _sent(job):
                raise InputError(
                    f"{identity}: {job.output} is being worked on with another configuration; "
                    f"wait for it, or end it with `onediffusion stop {identity}`"
                )
            say(f"{identity} is {state.phase} already on {before.target_name}; nothing was sent")
            return before
        number = 1
        if before:
            with suppress(InputError):  # what a target would start again by itself must not meet the next attempt
                backend_of(before).stop(before.name)
            number = _next_attempt(folder, before)
        values = target.model_dump(mode="json")
        submission = Submission(identity, number, folder.address, target_name, values, time.time(), this_sender())
        remember_job(identity, folder.address)
        old = (folder.job(), folder.control()) if before else None
        folder.put_job(job)
        folder.put_control(Control(number))
        folder.put_submission(submission)
        if folder.submission() != submission:
            raise InputError(f"{identity}: another sender was sending it at the same moment; see `onediffusion jobs`")
        try:
            backend.submit(work_of(job, submission))
        except AlreadyThere:  # another machine sent it at the same moment: what is noted is true of that one
            raise
        except InputError:
            if folder.submission() == submission:  # else another sender has noted its own by now
                if before and old:
                    folder.put_job(old[0])
                    folder.put_control(old[1])
                    folder.put_submission(before)
                elif folder.state() is None:  # else another's, which has begun
                    folder.remove()
                    forget_job(identity)
            raise
        except ConnectionError as error:  # it may have been taken: what is noted stays
            raise InputError(
                f"{identity}: {target_name} did not answer ({one_line(error)}); `onediffusion jobs` tells "
                "whether it has it, and submitting again never doubles it"
            ) from None
    return submission


def _next_attempt(folder: JobFolder, before: Submission) -> int:
    """The number of the attempt after one that is not under way.

    One that was sent from here, never began, and that its target has no trace of, is sent again under its own number.
    All others may yet begin, and then see that there is a later one.
    """
    try:
        free = before.sender == this_sender() and backend_of(before).state(before.name).phase == "absent"
    except InputError:
        free = False
    began = folder.state()
    last = max(before.attempt, began.attempt if began else 0)
    return last if free and (began is None or began.attempt < last) else last + 1


def plan_job(job: Job, target_name: str) -> dict[str, str]:
    """What `submit_job` would send, by title; nothing is touched."""
    target = load_target(target_name)
    identity = job_id(job)
    address = job_address(job.output, identity)
    folder = JobFolder(address)
    before = folder.submission() if identity in remembered_jobs() else None  # else its place need not answer
    number = 1
    if before:
        number = before.attempt if job_state(before).alive else _next_attempt(folder, before)
    submission = Submission(identity, number, address, target_name, {}, 0.0, "")
    return open_backend(target).plan(work_of(job, submission))


def work_of(job: Job, submission: Submission) -> Work:
    """An attempt as targets take it."""
    return Work(
        name=submission.name,
        kind=job.kind,
        arguments=("execute", submission.address, "--attempt", str(submission.attempt)),
        address=submission.address,
        workers=room(job),
        places=tuple(job.places),
    )


def find_job(identity: str) -> Submission:
    """The last submission of a job, by its id or the address of its folder. Raises InputError."""
    known = remembered_jobs()
    address = identity if "/" in identity else known.get(identity)
    found = JobFolder(address).submission() if address else None
    if found is None:
        raise InputError(
            f"{identity}: no such job{nearest(identity, list(known))}; `onediffusion jobs` lists those sent from here, "
            "`onediffusion jobs DATASET|RUN` those of a place"
        )
    return found


def list_jobs(place: str | None = None) -> list[tuple[Submission, JobState]]:
    """The jobs sent from here, or all of a dataset or run, the newest first.

    Of a folder that cannot be read only its address is known: attempt 0 of no target, in the state "unknown".
    """
    addresses = jobs_of(place) if place else list(remembered_jobs().values())

    def look(address: str) -> tuple[Submission, JobState] | None:
        try:
            found = JobFolder(address).submission()
            return (found, job_state(found)) if found else None
        except Exception as error:  # one place that cannot be reached must not hide the jobs of all others
            reason = f"{address}: {one_line(error)}"
            return Submission(address.rpartition("/")[2], 0, address, "", {}, 0.0, ""), JobState("unknown", reason)

    with ThreadPoolExecutor(16) as pool:
        found = [item for item in pool.map(look, addresses) if item]
    return sorted(found, key=lambda item: -item[0].sent)


def backend_of(submission: Submission) -> Backend:
    """The backend it was sent to, as the target was then."""
    return open_backend(parse_target(submission.target, submission.target_name))


def job_state(submission: Submission) -> JobState:
    """What the job says of itself, and where it says nothing more, what its target says of it."""
    own = JobFolder(submission.address).state()
    own = own if own and own.attempt == submission.attempt else None
    if own and own.ended:
        return JobState(own.phase, own.reason, result=own.result)
    try:
        backend = backend_of(submission)
        native = backend.state(submission.name)
    except InputError as error:
        if own and own.breathes:
            return JobState("running", progress=_progress(own))
        return JobState("unknown", str(error))
    if native.phase == "absent" and not backend.sees_all and (unseen := _unseen(submission, own)):
        return unseen
    return _merged(submission, own, native, backend.sees_all)


def _unseen(submission: Submission, own: RunState | None) -> JobState | None:
    """Of an attempt that its target cannot be asked about from here: what its folder tells."""
    if own and own.lives:
        return JobState("running", progress=_progress(own))
    if own is None and submission.sender != this_sender() and time.time() - submission.sent < SENDING_SECONDS:
        return JobState("pending", f"{submission.sender} is sending it")
    return None


def _merged(submission: Submission, own: RunState | None, native: NativeState, sees_all: bool) -> JobState:
    if native.phase in ("pending", "running"):
        began = own is not None and own.phase == "running"
        phase = "running" if native.phase == "running" and began else "pending"
        reason = native.reason or ("" if began else "starting")
        return JobState(phase, reason if phase == "pending" else native.reason, _progress(own) if began else "")
    # It may have ended between the two looks.
    again = JobFolder(submission.address).state()
    if again and again.attempt == submission.attempt and again.phase != "running":
        return JobState(again.phase, again.reason, result=again.result)
    if sees_all and JobFolder(submission.address).control() == Control(submission.attempt, stop=True):
        return JobState("stopped", native.reason)  # and a last write of what was ended came after the word on its end
    if own is None:
        return JobState("lost", native.reason or "it never began; submit it again")
    return JobState("lost", native.reason or "it ended without a word (killed, or out of memory?); submit it again")


def _progress(own: RunState | None) -> str:
    at = own.progress if own else {}
    return f"{at['what']}: {at['done']} of {at['total']} {at['unit']}" if at else ""


def log_lines(
    submission: Submission, follow: bool = False, say: Callable[[str], None] = lambda line: None
) -> Iterator[str]:
    """The log kept in the job's folder, of all attempts; where there is none yet, what the target kept of it.

    follow: until the job ends. say: told why it waits, when that changes; such lines are none of the log's.
    """
    folder = JobFolder(submission.address)
    told = ""

    def over() -> bool:
        nonlocal told
        last = folder.submission() or submission
        state = job_state(last)
        if state.phase == "pending" and state.reason != told:
            told = state.reason
            say(f"pending: {told}")
        return not follow or not (state.alive or folder.control().attempt > last.attempt)

    if follow and not folder.log_parts():
        while not over() and not folder.log_parts():
            time.sleep(2.0)
    if folder.log_parts():
        yield from folder.log_lines(over)
    else:
        yield from backend_of(submission).logs(submission.name)


def stop_job(identity: str, say: Callable[[str], None] = lambda line: None) -> JobState:
    """End a job: a running one writes a checkpoint and ends by itself; what is then left its target ends."""
    submission = find_job(identity)
    return _end(submission, Control(submission.attempt, stop=True), say)


def _end(submission: Submission, control: Control, say: Callable[[str], None]) -> JobState:
    """End an attempt. control: what tells it so where it looks."""
    folder, backend = JobFolder(submission.address), backend_of(submission)
    state = job_state(submission)
    folder.put_control(control)
    if state.phase in ("running", "unknown"):
        trains = state.phase == "running" and isinstance(folder.job(), TrainJob)
        say(f"{submission.id}: asked to end{'; it writes a checkpoint first' if trains else ''}")
        deadline = time.monotonic() + (CHECKPOINT_SECONDS if trains else STOP_SECONDS)
        while time.monotonic() < deadline and job_state(submission).phase == "running":
            time.sleep(0.5)
    try:
        if not backend.sees_all and backend.state(submission.name).phase == "absent" and job_state(submission).alive:
            raise InputError(
                f"{submission.id}: {submission.sender} sent it, and it cannot be ended by force from here; it has been "
                "asked to end, and `onediffusion jobs` tells when it has"
            )
        backend.stop(submission.name)
    except InputError as error:
        left = job_state(submission)
        if left.phase == "unknown":  # should it live, it ends at its next look into its folder
            say(f"{submission.id}: neither its target nor the job answers, so it is taken for ended ({error})")
        elif left.alive:
            raise
    own = folder.state()
    if own is None or own.attempt != submission.attempt or not own.ended:
        now = time.time()
        began = own if own and own.attempt == submission.attempt else None
        life = began or RunState(submission.attempt, "", "", 0, now, now)
        folder.put_state(replace(life, phase="stopped", time=now))
    return job_state(submission)


def scale_job(identity: str, workers: WorkersSpec, say: Callable[[str], None] = lambda line: None) -> Submission:
    """Go on with other workers: a training changes their number between two steps; other jobs, workers of another
    size, and targets that cannot make room for running work, end the attempt and begin the next.

    Raises InputError when the job is not under way, or cannot use so many.
    """
    submission = find_job(identity)
    folder = JobFolder(submission.address)
    now = folder.job()
    job = scaled(now, workers)
    state = job_state(submission)
    if not state.alive:
        raise InputError(f"{submission.id}: it is {state.phase}; submit it again, with the workers wanted")
    target = parse_target(submission.target, submission.target_name)
    # What its target cannot run, or now nobody could send there, is not worth ending it for.
    open_backend(target).plan(work_of(job, submission))
    backend_of(submission).state(submission.name)
    in_place = state.phase == "running" and isinstance(job, TrainJob) and _of_each(job) == _of_each(now)
    if in_place and backend_of(submission).scale(submission.name, work_of(job, submission)):
        folder.put_job(job)
        wanted = workers.model_dump(mode="json")
        folder.put_control(replace(folder.control(), attempt=submission.attempt, workers=wanted))
        say(f"{submission.id}: goes on with {workers.count} workers after its next step")
        return submission
    try:
        _end(submission, Control(submission.attempt + 1), say)  # who follows it then waits for the next attempt
        return _submit(job, submission.target_name, target, say)
    except InputError:
        folder.put_control(Control(submission.attempt, stop=True))
        raise


def _of_each(job: Job) -> dict[str, Any]:
    """What every worker has, however many there are."""
    return (job.workers or WorkersSpec()).model_dump(exclude={"count"})


def _sent(job: Job) -> dict[str, Any]:
    """What must agree for two jobs to be the same; not their scale."""
    values = job.model_dump(mode="json", exclude={"workers"})
    if isinstance(values.get("config"), dict):
        values["config"] = {key: value for key, value in values["config"].items() if key != "workers"}
    return values
