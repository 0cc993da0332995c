"""Sending a job to a target: one id for a job, one attempt at a time, nothing lost in between.

An attempt gets its name before it is sent, and targets find work by name. Whoever is killed at any moment leaves
either the record of something that never began, which the next `submit` sends again, or a job that is listed and
can be stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

from cluster.backend import Backend, open_backend
from cluster.kubernetes_target import KubernetesTarget
from cluster.target import Target, load_target
from cluster.user_data import one_at_a_time
from cluster.work import AlreadySubmitted, Work
from model.inputs import InputError, one_line
from pipelines.jobs.arrays import array_of
from pipelines.jobs.attempt import Attempt, Control, this_sender
from pipelines.jobs.folder import JobFolder
from pipelines.jobs.known_jobs import forget_job, remember_job, remembered_jobs
from pipelines.jobs.needs import machine_needs
from pipelines.jobs.resolved import ResolvedJob
from pipelines.jobs.specification import JobSpecification
from pipelines.jobs.status import backend_of, job_status

Say = Callable[[str], None]


def submit_job(job: ResolvedJob, target_name: str, say: Say = lambda line: None) -> Attempt:
    """Send a job to a target; or, if it is under way already, say so and return the attempt that is.

    Raises InputError for what a user can mend: then nothing is left behind.
    """
    return send_job(job, target_name, load_target(target_name), say)


def send_job(job: ResolvedJob, target_name: str, target: Target, say: Say) -> Attempt:
    """`submit_job` with a target that was read already, whatever its file says by now."""
    backend = _backend_for(job, target)
    with one_at_a_time(job.id):
        previous = job.folder.attempt()
        if previous and _is_under_way(job, previous, say):
            return previous
        number = _next_number(job.folder, previous)
        target_values = target.model_dump(mode="json")
        place = (job.address, target_name, target_values)
        attempt = Attempt(job.id, number, *place, time.time(), this_sender(), *array_of(job, target))
        remarks = backend.remarks(work_of(job, attempt))
        undo = _record(job, attempt, previous)
        _send(job, attempt, backend, undo)
    for remark in remarks:
        say(f"{job.id}: {remark}")
    return attempt


def plan_job(job: ResolvedJob, target_name: str) -> dict[str, str]:
    """What `submit_job` would send, by title, and what it would remark; nothing is touched."""
    target, number = load_target(target_name), 1
    backend = _backend_for(job, target)
    # Only the output of a job that was sent from here has to answer.
    previous = job.folder.attempt() if job.id in remembered_jobs() else None
    if previous:
        number = previous.number if job_status(previous).alive else _free_number(job.folder, previous)
    work = work_of(job, Attempt(job.id, number, job.address, target_name, {}, 0.0, "", *array_of(job, target)))
    plan = backend.plan(work)
    if remarks := backend.remarks(work):
        plan["remarks"] = "".join(f"#   {remark}\n" for remark in remarks)
    return plan


def work_of(job: ResolvedJob, attempt: Attempt) -> Work:
    """An attempt as targets take it."""
    return Work(
        name=attempt.name,
        kind=job.specification.kind,
        arguments=("execute", attempt.address, "--attempt", str(attempt.number)),
        address=attempt.address,
        resources=job.resources,
        data=tuple(job.specification.data),
        needs=machine_needs(job.specification),
        tasks=attempt.tasks,
    )


def _backend_for(job: ResolvedJob, target: Target) -> Backend:
    """The target's backend. Raises InputError for a job that names what only other kinds of targets have."""
    if job.workers.gpu_type and not isinstance(target, KubernetesTarget):
        raise InputError(
            f"workers.gpu_type {job.workers.gpu_type}: names a pool of a Kubernetes target, and this one is of type "
            f"{target.type}; leave it out"
        )
    return open_backend(target)


def _is_under_way(job: ResolvedJob, previous: Attempt, say: Say) -> bool:
    """Whether the previous attempt is under way, which is said.

    Raises InputError when nobody knows, and when the job's output is being worked on in another way.
    """
    status = job_status(previous)
    if status.phase == "unknown":
        raise InputError(
            f"{job.id}: it may still run on {previous.target_name}, which does not answer ({status.reason}); "
            f"`onediffusion stop {job.id}` gives it up"
        )
    if not status.alive:
        return False
    if not job.does_the_same(job.folder.specification()):
        raise InputError(
            f"{job.id}: {job.specification.output} is being worked on with another configuration; "
            f"wait for it, or end it with `onediffusion stop {job.id}`"
        )
    say(f"{job.id} is {status.phase} already on {previous.target_name}; nothing was sent")
    return True


def _next_number(folder: JobFolder, previous: Attempt | None) -> int:
    """The number of the attempt to send, after the previous one is ended for good."""
    if previous is None:
        return 1
    with suppress(InputError):  # the target must not start the previous attempt again beside the next
        backend_of(previous).stop(previous.name)
    return _free_number(folder, previous)


def _free_number(folder: JobFolder, previous: Attempt) -> int:
    """The number of the attempt after one that is not under way.

    An attempt that was sent from here, never began, and that its target has no trace of, is sent again under its own
    number. All others may yet begin, and then see that there is a later one.
    """
    try:
        absent = previous.sender == this_sender() and backend_of(previous).state(previous.name).phase == "absent"
    except InputError:
        absent = False
    began = folder.last_begun()
    last = max(previous.number, began)
    return last if absent and began < last else last + 1


def _record(job: ResolvedJob, attempt: Attempt, previous: Attempt | None) -> Callable[[], None]:
    """Write the attempt into the job's folder, before it is sent; returns a function that takes that back.

    Raises InputError when another sender has recorded its own at the same moment.
    """
    folder = job.folder
    remember_job(job.id, job.address)
    replaced: tuple[JobSpecification, Control] | None = None
    if previous:
        replaced = folder.specification(), folder.control()
    folder.put_specification(job.specification)
    folder.put_control(Control(attempt.number))
    folder.put_attempt(attempt)
    if folder.attempt() != attempt:
        raise InputError(f"{job.id}: another sender was sending it at the same moment; see `onediffusion jobs`")

    def undo() -> None:
        if folder.attempt() != attempt:
            return  # another sender has recorded its own by now
        if previous and replaced:
            folder.put_specification(replaced[0])
            folder.put_control(replaced[1])
            folder.put_attempt(previous)
        elif not folder.last_begun():  # otherwise another sender's attempt has begun
            folder.remove()
            forget_job(job.id)

    return undo


def _send(job: ResolvedJob, attempt: Attempt, backend: Backend, undo: Callable[[], None]) -> None:
    try:
        backend.submit(work_of(job, attempt))
    except AlreadySubmitted:  # another machine sent it at the same moment, and the record is true of what it sent
        raise
    except InputError:
        undo()
        raise
    except ConnectionError as error:  # the target may have taken it, so the record stays
        raise InputError(
            f"{job.id}: {attempt.target_name} did not answer ({one_line(error)}); `onediffusion jobs` tells "
            "whether it has it, and submitting again never doubles it"
        ) from None
