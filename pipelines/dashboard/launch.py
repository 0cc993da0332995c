"""Launch forms, and sending what they say: through `pipelines.jobs.submit`, like any other job, never within Dagster.

A Dagster run only follows the job: it copies the job's log, looks at its state, and reports what came of it. So a job
outlives a dashboard that is closed or killed; when its Dagster run is terminated in the browser, the job is stopped.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

import dagster as dg

from cluster.ray_jobs import RayBackend
from cluster.target import targets
from model.inputs import InputError, one_line
from pipelines.dashboard.submissions import ray_page
from pipelines.jobs.attempt import Attempt
from pipelines.jobs.control import stop_job
from pipelines.jobs.folder import JobFolder
from pipelines.jobs.log import log_lines, stored_lines
from pipelines.jobs.resolved import resolve_job
from pipelines.jobs.specification import JobSpecification, WorkersSpec
from pipelines.jobs.status import JobStatus, backend_of, job_status
from pipelines.jobs.submit import submit_job

LOOK_SECONDS = 15.0  # between reports of how far a job has come
POLL_SECONDS = 2.0
NEXT_SECONDS = 8.0  # that an attempt may begin after the end of the last
ANNOUNCED_SECONDS = 600.0  # the same, where it was said that one will
PATIENCE_SECONDS = 600.0  # with a place that does not answer
Context = dg.OpExecutionContext | dg.AssetExecutionContext


def workers_field(as_now: bool = False) -> dg.Field:
    """The part of a form that says how much a job may use. as_now: what is left out stays as it is."""
    fields: dict[str, tuple[type, Any, Any, str]] = {
        "least": (int, 1, 0, "Workers, at least."),
        "most": (int, 1, 0, "Workers, at most."),
        "cpus": (float, 1.0, 0.0, "CPUs of each worker."),
        "gpus": (float, 0.0, -1.0, "GPUs of each worker."),
    }
    shape = {
        name: dg.Field(kind, default_value=now if as_now else value, is_required=False, description=text)
        for name, (kind, value, now, text) in fields.items()
    }
    about = "How much it may use; more than one worker where the target has room for them."
    if as_now:
        about += " 0 (of GPUs -1): as it is; of `least` and `most` alone, exactly so many."
    return dg.Field(dg.Shape(shape), description=about)


def target_fields(target: str = "local") -> dict[str, dg.Field]:
    """The part of a form that says where a job runs."""
    return {
        "target": dg.Field(
            dg.Enum("Target", [dg.EnumValue(name) for name in targets()]),
            default_value=target,
            is_required=False,
            description="Where it runs.",
        ),
        "target_file": dg.Field(
            str, default_value="", is_required=False, description="A target file of your own, instead of `target`."
        ),
    }


def chosen_target(config: Mapping[str, Any]) -> str:
    """What a form says of where to run."""
    return str(config.get("target_file") or config["target"])


def chosen_workers(config: Mapping[str, Any]) -> WorkersSpec:
    """What a form says of how much to use. Raises InputError."""
    return WorkersSpec(**given_workers(config))


def given_workers(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same as values of `WorkersSpec`, without those that the form leaves out. Raises InputError."""
    values = dict(config.get("workers") or {})
    as_now = {"least": 0, "most": 0, "cpus": 0, "gpus": -1}
    values = {name: value for name, value in values.items() if value != as_now[name]}
    least, most = (values.pop(name, None) for name in ("least", "most"))
    if least is None and most is None:
        return values
    least, most = (most if least is None else least), (least if most is None else most)
    if not 1 <= least <= most:
        raise InputError(f"workers: at least {least} and at most {most}; give 1 or more, in order")
    return {"count": least if least == most else (least, most), **values}


@dataclass(frozen=True)
class Ended:
    """A job that succeeded, and its figures."""

    submission: Attempt
    result: dict[str, Any]


@contextmanager
def explained() -> Iterator[None]:
    """Let what a user can mend fail a Dagster run with its one line, not with a traceback."""
    try:
        yield
    except InputError as error:
        raise dg.Failure(str(error), allow_retries=False) from None


def run_job(
    context: Context,
    job: JobSpecification,
    target: str,
    look: Callable[[], None] = lambda: None,
) -> Ended:
    """Send a job, follow it to its end, and return how it ended.

    look: called now and then while it runs. A job that does not succeed fails the Dagster run with one line.
    Terminating the Dagster run stops the job; closing the dashboard does not. Raises InputError (see `explained`).
    """
    resolved = resolve_job(job)
    folder = resolved.folder
    before = folder.attempt()
    told = len(list(stored_lines(folder.store))) if before else 0
    try:
        submission = submit_job(resolved, target, context.log.info)
    except dg.DagsterExecutionInterruptedError:
        begun = folder.attempt()
        if begun and (before is None or begun.number != before.number):
            _interrupted(context, begun)
        raise
    if before and before.number == submission.number:
        told = 0  # one joins what is under way already
    _introduce(context, submission)
    try:
        while True:
            for line in _lines(submission, told, look):
                print(line, flush=True)
                told += 1
            state, newer = _outcome(submission, folder)
            if newer is None:
                break
            submission = newer  # it was scaled by ending one attempt and beginning the next
            _introduce(context, submission)
    except dg.DagsterExecutionInterruptedError:
        _interrupted(context, submission)
        raise
    if state.phase == "stopped":
        raise dg.Failure(f"{submission.job_id} was stopped; materialize again to continue", allow_retries=False)
    if state.phase != "succeeded":
        reason = state.reason or "its log says why"
        raise dg.Failure(f"{submission.job_id}: {state.phase}: {reason}", allow_retries=False)
    return Ended(submission, state.result or {})


def _introduce(context: Context, submission: Attempt) -> None:
    """Say what is followed, where, and where else it can be watched."""
    tags = {"onediffusion/job": submission.job_id, "onediffusion/target": submission.target_name}
    context.instance.add_run_tags(context.run_id, tags)
    context.log.info(f"{submission.name} on {submission.target_name}, kept in {submission.address}")
    page = ray_page(submission)
    if page:
        context.log.info(f"Ray's dashboard: {page}")
    if isinstance(context, dg.AssetExecutionContext):
        for key in sorted(context.selected_asset_keys)[:1]:
            context.log_event(dg.AssetObservation(key, metadata=job_details(submission)))


def _outcome(submission: Attempt, folder: JobFolder) -> tuple[JobStatus, Attempt | None]:
    """How an attempt ended, and the next one where there is one: it begins some moments after the last.

    Scaling announces the next before it ends the last, which may take its target minutes.
    """
    began = time.monotonic()
    while True:
        announced = folder.control().attempt > submission.number  # looked at first: it is there until the next is
        state = job_status(submission)
        newest = folder.attempt()
        if newest and newest.number > submission.number:
            return state, newest
        patience = ANNOUNCED_SECONDS if announced else NEXT_SECONDS
        if time.monotonic() - began > patience or (state.phase in ("succeeded", "failed") and not announced):
            return state, None
        time.sleep(POLL_SECONDS / 2)


def _interrupted(context: Context, submission: Attempt) -> None:
    run = context.instance.get_run_by_id(context.run_id)
    if run and run.status == dg.DagsterRunStatus.CANCELING:
        context.log.info(f"stopping {submission.job_id}")
        stop_job(submission.job_id, context.log.info)
    else:
        context.log.info(f"the dashboard ends; {submission.job_id} goes on: onediffusion logs -f {submission.job_id}")


def _lines(submission: Attempt, told: int, look: Callable[[], None]) -> Iterator[str]:
    """The job's log as it comes, without the lines `told` by earlier attempts; `look` is called in between."""
    lines: queue.Queue[str | BaseException | None] = queue.Queue()

    def read() -> None:
        try:
            for line in _log(submission, told):
                lines.put(line)
            lines.put(None)
        except BaseException as error:
            lines.put(error)

    # Its own thread, since a log may be silent for long; a daemon, since it may wait for a network that is gone.
    threading.Thread(target=read, daemon=True).start()
    due = time.monotonic() + LOOK_SECONDS
    patience = _Patience(submission)
    while True:
        if time.monotonic() >= due:
            with suppress(Exception):  # what it shows is not worth to lose the job for
                look()
            patience.look()
            if patience.news:
                yield patience.news
            due = time.monotonic() + LOOK_SECONDS
        try:
            item = lines.get(timeout=0.5)
        except queue.Empty:
            continue
        if item is None:
            break
        if isinstance(item, BaseException):
            yield f"its log cannot be read further ({one_line(item)}); the job is followed all the same"
            break
        yield item
    while patience.look():  # its log may end a moment before it does, or break off
        if patience.news:
            yield patience.news
        time.sleep(POLL_SECONDS)


class _Patience:
    """How a job stands, from where it may not answer; news: what is to be said of that since the last look, or ""."""

    def __init__(self, submission: Attempt) -> None:
        self.submission = submission
        self.news = self._trouble = ""
        self._until = time.monotonic() + PATIENCE_SECONDS

    def look(self) -> bool:
        """Whether it is under way. Raises InputError where that was not known for PATIENCE_SECONDS."""
        try:
            state = job_status(self.submission)
        except Exception as error:
            state = JobStatus("unknown", one_line(error))
        trouble = state.reason if state.phase == "unknown" else ""
        self.news = f"it is not known how the job stands: {trouble}" if trouble and not self._trouble else ""
        self._trouble = trouble
        if not trouble:
            self._until = time.monotonic() + PATIENCE_SECONDS
        elif time.monotonic() > self._until:
            raise InputError(f"{self.submission.job_id}: {trouble}; it is followed no longer, and may go on")
        return state.alive


def _log(submission: Attempt, told: int) -> Iterator[str]:
    """What the job prints.

    The log in the job's folder serves every target, but for a job on S3 that means reading a growing file every two
    seconds. A Ray cluster streams what its jobs print, and dagster-ray has the reader for it. (Its own ways to start
    jobs, the run launcher and the Pipes client, are not used: jobs are to be sent by one path alone, which keeps their
    ids, attempts and logs the same on every target.)
    """
    if submission.target.get("type") == "ray" and submission.address.startswith("s3://"):
        yield from ray_log(submission)
    else:
        yield from islice(log_lines(submission, follow=True, say=print), told, None)


def ray_log(submission: Attempt) -> Iterator[str]:
    """Lines that a job on a Ray cluster prints, as they come, until it ends."""
    from dagster_ray.core.pipes import tail_logs

    while job_status(submission).phase == "pending":
        time.sleep(POLL_SECONDS)
    backend = backend_of(submission)
    assert isinstance(backend, RayBackend)
    rest = ""
    for chunk in tail_logs(backend.client().tail_job_logs(submission.name)):
        *lines, rest = (rest + (chunk or "")).split("\n")
        yield from lines
    if rest:
        yield rest


def job_details(submission: Attempt) -> dict[str, Any]:
    """Of a job, as metadata: its id, where it runs, and Ray's own dashboard where its target has one."""
    found: dict[str, Any] = {"job": submission.job_id, "target": submission.target_name}
    page = ray_page(submission)
    if page:
        found["Ray's dashboard"] = dg.MetadataValue.url(page)
    return found
