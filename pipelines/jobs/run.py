"""What runs on every target: one attempt at a job, its output and state kept in the job's folder.

The folder outlives the cluster, so `jobs` and `logs` need nothing else.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from dataclasses import dataclass, field
from typing import Any

from cluster.own_ray import NodeLost
from model.inputs import InputError, error_for_person, one_line
from pipelines.jobs.arrays import task_specification
from pipelines.jobs.folder import JobFolder
from pipelines.jobs.log import captured_log
from pipelines.jobs.running import CONTROL_SECONDS, Interrupted, RunningAttempt
from pipelines.jobs.specification import JobSpecification
from pipelines.jobs.steps import run_job

TRY_AGAIN = 75  # EX_TEMPFAIL: interrupted after a checkpoint, to be started again


def execute(address: str, attempt: int, task: int | None = None) -> int:
    """Run a job to its end, or until a signal, its control file or a lost node ends it; the exit code (see TRY_AGAIN).

    SIGTERM and SIGUSR1 interrupt: labeling keeps its finished shards, training writes a checkpoint first.
    task: which of a job array's; it has state and log of its own.
    """
    folder = JobFolder(address, task)
    specification = folder.specification()
    if task is not None:
        recorded = folder.attempt()
        if recorded is None or recorded.number != attempt:
            print(f"attempt {attempt} is over: there is another", flush=True)
            return 0
        specification = task_specification(specification, recorded, task)
    if _is_over(folder, attempt) or (_wait_for_another(folder, attempt) and _is_over(folder, attempt)):
        return 0
    os.environ["ONEDIFFUSION_JOB"] = folder.own.uri
    with RunningAttempt(folder, attempt) as running:
        with captured_log(folder.own):
            outcome = _outcome(specification, running)
        # After the log is whole: whoever follows it stops reading once the job has ended.
        running.end(outcome.phase, outcome.reason, outcome.result)
    return outcome.code


@dataclass(frozen=True)
class _Outcome:
    """How an attempt ended, as `AttemptState` has it, and its exit code."""

    code: int
    phase: str
    reason: str = ""
    result: dict[str, Any] = field(default_factory=dict)


def _is_over(folder: JobFolder, attempt: int) -> bool:
    """Whether it ended before: a target that starts work again by itself does not know that."""
    before = folder.state()
    if before and (before.attempt > attempt or (before.attempt == attempt and before.has_ended)):
        print(f"attempt {attempt} is over: attempt {before.attempt} {before.phase}", flush=True)
        return True
    return False


def _wait_for_another(folder: JobFolder, attempt: int) -> bool:
    """Wait until no other attempt runs, since two must not write at once; whether there was one to wait for.

    An attempt that was taken for dead may still run, and is asked to end. Two senders may have sent the same number.
    """
    waited = False
    while (before := folder.state()) and before.attempt <= attempt and before.is_running:
        if not waited:
            print(f"attempt {attempt} waits for attempt {before.attempt} on {before.host} to end", flush=True)
            waited = True
        time.sleep(CONTROL_SECONDS)
    return waited


def _outcome(specification: JobSpecification, running: RunningAttempt) -> _Outcome:
    try:
        try:
            running.polls = False
            if running.interrupted:
                raise Interrupted
            result = run_job(specification, running)
        finally:
            running.polls = True  # what is left to do is short, and has to be done
    except (KeyboardInterrupt, SystemExit):  # Ray turns ours into a plain one; while it starts, SIGTERM into the latter
        running.interrupted = True
        result = {"finished": False}
    except Exception as error:
        cause = error_for_person(error)
        reason = one_line(cause or f"{type(error).__name__}: {error}")
        if cause is None:
            traceback.print_exc()
        else:
            print(f"onediffusion: {reason}", file=sys.stderr)
        if isinstance(cause, NodeLost):
            return _Outcome(TRY_AGAIN, "interrupted", reason)
        return _Outcome(2 if isinstance(cause, InputError) else 1, "failed", reason)
    if running.interrupted and not result.get("finished", True):
        phase = "stopped" if running.stopped else "interrupted"
        print(f"{phase}; the same job submitted again continues", flush=True)
        return _Outcome(0 if running.stopped else TRY_AGAIN, phase)
    return _Outcome(0, "succeeded", result=result)
