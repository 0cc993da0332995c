"""Sending what a form says through `pipelines.jobs.submit`, like any other job: never within Dagster.

A Dagster run only follows the job: it copies the job's log, looks at its state, and reports the result. So a job
outlives a dashboard that is closed or killed. When its Dagster run is terminated in the browser, the job is stopped.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

import dagster as dg

from cluster.ray_jobs import RayBackend
from model.inputs import InputError, WorkFailed, one_line
from pipelines.dashboard.instance import JOB_TAG, TARGET_TAG
from pipelines.dashboard.jobs_page import ray_page
from pipelines.jobs.attempt import Attempt
from pipelines.jobs.control import stop_job
from pipelines.jobs.folder import JobFolder
from pipelines.jobs.log import log_lines, stored_lines
from pipelines.jobs.resolved import ResolvedJob, resolve_job
from pipelines.jobs.specification import JobSpecification
from pipelines.jobs.status import JobStatus, backend_of, job_status
from pipelines.jobs.submit import submit_job

PROGRESS_SECONDS = 15.0  # between calls of on_progress
POLL_SECONDS = 2.0
NEXT_SECONDS = 8.0  # after the end of an attempt, within which the next may begin
ANNOUNCED_SECONDS = 600.0  # the same, where a next attempt was announced
PATIENCE_SECONDS = 600.0  # that a job is followed while its target does not answer
Context = dg.OpExecutionContext | dg.AssetExecutionContext


@dataclass(frozen=True)
class FinishedJob:
    """A job that succeeded, and its figures."""

    attempt: Attempt
    result: dict[str, Any]


@contextmanager
def input_errors_fail_run() -> Iterator[None]:
    """Let an InputError or WorkFailed fail the Dagster run with its one line, without a traceback."""
    try:
        yield
    except (InputError, WorkFailed) as error:
        raise dg.Failure(str(error), allow_retries=False) from None


def run_job(
    context: Context,
    specification: JobSpecification,
    target: str,
    on_progress: Callable[[], None] = lambda: None,
) -> FinishedJob:
    """Send a job, follow it to its end, and return its result.

    on_progress: called now and then while it runs. A job that does not succeed fails the Dagster run with one line.
    Terminating the Dagster run stops the job; closing the dashboard does not. Raises InputError (see
    `input_errors_fail_run`).
    """
    resolved = resolve_job(specification)
    attempt, skip = _submit(context, resolved, target)
    attempt, status = _follow(context, resolved.folder, attempt, skip, on_progress)
    if status.phase == "stopped":
        raise dg.Failure(f"{attempt.job_id} was stopped; materialize again to continue", allow_retries=False)
    if status.phase != "succeeded":
        reason = status.reason or "its log says why"
        raise dg.Failure(f"{attempt.job_id}: {status.phase}: {reason}", allow_retries=False)
    return FinishedJob(attempt, status.result or {})


def _submit(context: Context, job: ResolvedJob, target: str) -> tuple[Attempt, int]:
    """Send a job; its attempt, and the number of lines in its log that earlier attempts wrote."""
    before = job.folder.attempt()
    earlier_lines = len(list(stored_lines(job.folder.store))) if before else 0
    try:
        attempt = submit_job(job, target, context.log.info)
    except dg.DagsterExecutionInterruptedError:
        sent = job.folder.attempt()
        if sent and (before is None or sent.number != before.number):
            _interrupted(context, sent)
        raise
    if before and before.number == attempt.number:
        return attempt, 0  # it was running already: its log is shown from the start
    return attempt, earlier_lines


def _follow(
    context: Context, folder: JobFolder, attempt: Attempt, skip: int, on_progress: Callable[[], None]
) -> tuple[Attempt, JobStatus]:
    """Print a job's log without the first `skip` lines until the job ends; its last attempt, and how that ended."""
    _introduce(context, attempt)
    try:
        while True:
            for line in _lines(attempt, skip, on_progress):
                print(line, flush=True)
                skip += 1
            status, newer = _outcome(attempt, folder)
            if newer is None:
                return attempt, status
            attempt = newer  # scaling ended one attempt and began the next
            _introduce(context, attempt)
    except dg.DagsterExecutionInterruptedError:
        _interrupted(context, attempt)
        raise


def _introduce(context: Context, attempt: Attempt) -> None:
    """Tell the Dagster run which job it follows, and where else that can be watched."""
    context.instance.add_run_tags(context.run_id, {JOB_TAG: attempt.job_id, TARGET_TAG: attempt.target_name})
    context.log.info(f"{attempt.name} on {attempt.target_name}, kept in {attempt.address}")
    page = ray_page(attempt)
    if page:
        context.log.info(f"Ray's dashboard: {page}")
    if isinstance(context, dg.AssetExecutionContext):
        for key in sorted(context.selected_asset_keys)[:1]:
            context.log_event(dg.AssetObservation(key, metadata=job_metadata(attempt)))


def _outcome(attempt: Attempt, folder: JobFolder) -> tuple[JobStatus, Attempt | None]:
    """How an attempt ended, and the next attempt where there is one, which begins some moments after the last.

    Scaling announces the next attempt before it ends the last, which may take its target minutes.
    """
    began = time.monotonic()
    while True:
        # Read before the newest attempt: the announcement stays until that attempt is there.
        announced = folder.control().attempt > attempt.number
        status = job_status(attempt)
        newest = folder.attempt()
        if newest and newest.number > attempt.number:
            return status, newest
        patience = ANNOUNCED_SECONDS if announced else NEXT_SECONDS
        if time.monotonic() - began > patience or (status.phase in ("succeeded", "failed") and not announced):
            return status, None
        time.sleep(POLL_SECONDS / 2)


def _interrupted(context: Context, attempt: Attempt) -> None:
    """Stop the job of a Dagster run that a person terminated; leave it running when the dashboard ends."""
    run = context.instance.get_run_by_id(context.run_id)
    if run and run.status == dg.DagsterRunStatus.CANCELING:
        context.log.info(f"stopping {attempt.job_id}")
        stop_job(attempt.job_id, context.log.info)
    else:
        context.log.info(f"the dashboard ends; {attempt.job_id} goes on: onediffusion logs -f {attempt.job_id}")


def _lines(attempt: Attempt, skip: int, on_progress: Callable[[], None]) -> Iterator[str]:
    """The lines of a job's log as they come, without the first `skip`, until the job ends."""
    lines: queue.Queue[str | BaseException | None] = queue.Queue()

    def read() -> None:
        try:
            for line in _log(attempt, skip):
                lines.put(line)
            lines.put(None)
        except BaseException as error:
            lines.put(error)

    # A thread, since a log may be silent for long; a daemon, since it may wait for a network that is gone.
    threading.Thread(target=read, daemon=True).start()
    due = time.monotonic() + PROGRESS_SECONDS
    watch = _StatusWatch(attempt)
    while True:
        if time.monotonic() >= due:
            with suppress(Exception):  # showing progress must not end the run
                on_progress()
            watch.is_alive()
            if watch.message:
                yield watch.message
            due = time.monotonic() + PROGRESS_SECONDS
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
    while watch.is_alive():  # the log may end a moment before the job does, or break off
        if watch.message:
            yield watch.message
        time.sleep(POLL_SECONDS)


class _StatusWatch:
    """The status of a job whose target may not answer. message: a line to print since the last check, or ""."""

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self.message = self._trouble = ""
        self._until = time.monotonic() + PATIENCE_SECONDS

    def is_alive(self) -> bool:
        """Check whether the job is running. Raises InputError where that was unknown for PATIENCE_SECONDS."""
        try:
            status = job_status(self.attempt)
        except Exception as error:
            status = JobStatus("unknown", one_line(error))
        trouble = status.reason if status.phase == "unknown" else ""
        self.message = f"it is not known how the job stands: {trouble}" if trouble and not self._trouble else ""
        self._trouble = trouble
        if not trouble:
            self._until = time.monotonic() + PATIENCE_SECONDS
        elif time.monotonic() > self._until:
            raise InputError(f"{self.attempt.job_id}: {trouble}; it is followed no longer, and may go on")
        return status.alive


def _log(attempt: Attempt, skip: int) -> Iterator[str]:
    """The lines that a job prints.

    The log in the job's folder serves every target, but for a job on S3 that means reading a growing file every two
    seconds. A Ray cluster streams what its jobs print, and dagster-ray has the reader for it. (Its own ways to start
    jobs, the run launcher and the Pipes client, are not used: all jobs are sent in one way, which keeps their ids,
    attempts and logs the same on every target.)
    """
    if attempt.target.get("type") == "ray" and attempt.address.startswith("s3://"):
        yield from ray_log(attempt)
    else:
        yield from islice(log_lines(attempt, follow=True, say=print), skip, None)


def ray_log(attempt: Attempt) -> Iterator[str]:
    """Lines that a job on a Ray cluster prints, as they come, until it ends."""
    from dagster_ray.core.pipes import tail_logs

    while job_status(attempt).phase == "pending":
        time.sleep(POLL_SECONDS)
    backend = backend_of(attempt)
    assert isinstance(backend, RayBackend)
    rest = ""
    for chunk in tail_logs(backend.client().tail_job_logs(attempt.name)):
        *lines, rest = (rest + (chunk or "")).split("\n")
        yield from lines
    if rest:
        yield rest


def job_metadata(attempt: Attempt) -> dict[str, Any]:
    """Metadata of a job: its id, where it runs, and its page on Ray's own dashboard, where its target has one."""
    metadata: dict[str, Any] = {"job": attempt.job_id, "target": attempt.target_name}
    page = ray_page(attempt)
    if page:
        metadata["Ray's dashboard"] = dg.MetadataValue.url(page)
    return metadata
