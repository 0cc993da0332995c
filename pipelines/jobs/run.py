"""What runs on every target: one attempt at a job, its output and state kept in the job's folder.

The folder outlives the cluster, so `jobs` and `logs` need nothing else; the attempt looks there for what others want.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from types import FrameType
from typing import Any

from cluster.session import NodeLost, cluster_has, own_ray, ray_session
from model.inputs import InputError, input_error_behind, one_line
from pipelines.jobs.folder import JobFolder, RunState
from pipelines.jobs.log import kept_log
from pipelines.jobs.specification import EvaluateJob, Job, LabelJob, ReportJob, TrainJob, ViewsJob, WorkersSpec
from pipelines.progress import under_way

COME_BACK = 75  # EX_TEMPFAIL: interrupted after a checkpoint, to be started again
LIFE_SECONDS = 20.0
CONTROL_SECONDS = 2.0


class _Interrupted(KeyboardInterrupt):
    """A signal asked the job to end. Of what is raised while it waits in C++, Ray lets out this kind only."""


def execute(address: str, attempt: int) -> int:
    """Run a job to its end, or until a signal, its control file or a lost node ends it; the exit code (see COME_BACK).

    SIGTERM and SIGUSR1 interrupt: labeling keeps its finished shards, training writes a checkpoint first.
    """
    folder = JobFolder(address)
    job = folder.job()
    if _is_over(folder, attempt) or (_await_end(folder, attempt) and _is_over(folder, attempt)):
        return 0
    os.environ["ONEDIFFUSION_JOB"] = folder.address
    with _Attempt(folder, attempt) as own:
        with kept_log(folder.store):
            outcome = _outcome(job, own)
        own.end(outcome)  # when the log is whole: who follows it reads no further once a job has ended
    return outcome.code


@dataclass(frozen=True)
class _Outcome:
    """How an attempt ended, as `RunState` has it, and its exit code."""

    code: int
    phase: str
    reason: str = ""
    result: dict[str, Any] = field(default_factory=dict)


def _is_over(folder: JobFolder, attempt: int) -> bool:
    """A target that tries again by itself has not seen how it ended."""
    before = folder.state()
    if before and (before.attempt > attempt or (before.attempt == attempt and before.ended)):
        print(f"attempt {attempt} is over: attempt {before.attempt} {before.phase}", flush=True)
        return True
    return False


def _await_end(folder: JobFolder, attempt: int) -> bool:
    """Whether it had to wait for another attempt: two must not write at once.

    One that was taken for dead may live, and is told to end by now; and two senders may have sent the same number.
    """
    told = False
    while (before := folder.state()) and before.attempt <= attempt and before.lives:
        if not told:
            print(f"attempt {attempt} waits for attempt {before.attempt} on {before.host} to end", flush=True)
            told = True
        time.sleep(CONTROL_SECONDS)
    return told


def _outcome(job: Job, own: _Attempt) -> _Outcome:
    try:
        try:
            own.lets_go = False
            if own.interrupted:
                raise _Interrupted
            result = _run(job, own)
        finally:
            own.lets_go = True  # what is left to do is short, and has to be done
    except (KeyboardInterrupt, SystemExit):  # Ray turns ours into a plain one; while it starts, SIGTERM into the latter
        own.interrupted = True
        result = {"finished": False}
    except NodeLost as loss:
        print(f"onediffusion: {loss}", file=sys.stderr)
        return _Outcome(COME_BACK, "interrupted", str(loss))
    except Exception as error:
        cause = input_error_behind(error)
        reason = one_line(cause or f"{type(error).__name__}: {error}")
        if cause is None:
            traceback.print_exc()
        else:
            print(f"onediffusion: {reason}", file=sys.stderr)
        return _Outcome(1 if cause is None else 2, "failed", reason)
    if own.interrupted and not result.get("finished", True):
        phase = "stopped" if own.stopped else "interrupted"
        print(f"{phase}; the same job submitted again continues", flush=True)
        return _Outcome(0 if own.stopped else COME_BACK, phase)
    return _Outcome(0, "succeeded", result=result)


class _Attempt:
    """This process as an attempt at a job: signs of life, and what others want of it."""

    def __init__(self, folder: JobFolder, number: int) -> None:
        self.folder = folder
        now = time.time()
        self.state = RunState(number, "running", socket.gethostname(), os.getpid(), now, now)
        self.interrupted = False
        self.stopped = False
        self.workers: WorkersSpec | None = None
        self.lets_go = True  # whether `interrupted` is looked at, now or soon, and nothing has to be raised
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True)

    def __enter__(self) -> _Attempt:
        self._put(self.state)
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM):
            signal.signal(number, self._interrupt)
        self._report = sys.unraisablehook
        sys.unraisablehook = self._dropped
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._over.set()
        self._thread.join()
        sys.unraisablehook = self._report

    def end(self, outcome: _Outcome) -> None:
        """Say how it ended: the last word on this attempt."""
        self._over.set()
        self._thread.join()
        self.state = replace(
            self.state, phase=outcome.phase, reason=outcome.reason, result=outcome.result, time=time.time()
        )
        self._put(self.state)

    def _put(self, state: RunState) -> None:
        """Nothing, once a later attempt has the word: this one was taken for dead, and is told to end."""
        last = self.folder.state()
        if last is None or last.attempt <= state.attempt:
            self.folder.put_state(state)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.interrupted:
            return
        self.interrupted = True
        if not self.lets_go:
            raise _Interrupted

    def _dropped(self, lost: sys.UnraisableHookArgs) -> None:
        """Python drops what is raised while it clears an object away: then it is raised again, a moment later."""
        if lost.exc_type is _Interrupted:
            self.interrupted = False
            signal.setitimer(signal.ITIMER_REAL, 0.1)
        else:
            self._report(lost)

    def _live(self) -> None:
        beat = time.monotonic()
        while not self._over.wait(CONTROL_SECONDS):
            with suppress(Exception):  # made up for by the next; the job's own writes tell of real trouble
                control = self.folder.control()
                if control.attempt == self.state.attempt:
                    self.workers = WorkersSpec(**control.workers) if control.workers else None
                superseded = control.attempt > self.state.attempt
                if (superseded or (control.stop and control.attempt == self.state.attempt)) and not self.stopped:
                    self.stopped = True
                    os.kill(os.getpid(), signal.SIGUSR1)
                if time.monotonic() - beat > LIFE_SECONDS:
                    self._put(replace(self.state, time=time.time(), progress=dict(under_way)))
                    beat = time.monotonic()


def _run(job: Job, own: _Attempt) -> dict[str, Any]:
    """Do the job with the commands that a person would use; figures of what it did."""
    if isinstance(job, LabelJob):
        return _label(job)
    if isinstance(job, ViewsJob):
        from pipelines.views import views

        return asdict(views(job.source, job.dataset, job.count, job.size, job.seed))
    if isinstance(job, EvaluateJob):
        return _evaluate(job)
    if isinstance(job, ReportJob):
        from pipelines.reports.page import report

        page = report(job.of)
        print(page)
        return {"page": page}
    return _train(job, own)


def _label(job: LabelJob) -> dict[str, Any]:
    from pipelines.cli.app import print_labels
    from pipelines.ingest import ingest
    from pipelines.label import label

    result: dict[str, Any] = {}
    if job.source:
        taken = ingest(job.source, job.dataset)
        print(f"ingest: {taken.added} pictures added, {taken.rejected} files rejected", flush=True)
        result["ingest"] = asdict(taken)
    room = job.workers.resources()
    labeled = label(job.dataset, job.groups, job.parameters, job.shards, room.most * room.cpus)
    print_labels(labeled)
    figures = ("written", "fresh", "rows", "busy", "seconds")
    return result | {name: _plain(getattr(labeled, name)) for name in figures}


def _evaluate(job: EvaluateJob) -> dict[str, Any]:
    """On a worker, since this process may have no GPU."""
    with ray_session():
        import ray

        from pipelines.evaluate import evaluate

        each = job.workers.resources()
        for unit, needed in (("CPU", each.cpus), ("GPU", each.gpus)):
            if needed > (there := cluster_has(unit)):  # Ray itself waits for them without a word
                lacking = f"evaluate: its worker asks for {needed:g} {unit}s, and Ray has {there:g}"
                if own_ray():
                    raise InputError(f"{lacking}: this machine's; ask for less (workers.{unit.lower()}s)")
                print(f"{lacking}; waiting for nodes that may yet join", flush=True)
        task = ray.remote(evaluate).options(num_cpus=each.cpus, num_gpus=each.gpus, max_retries=0)
        figures = ray.get(task.remote(job.run))
    for name, figure in figures.items():
        print(f"{name}: {figure['model']:.2f}", flush=True)
    return {"figures": {name: figure["model"] for name, figure in figures.items()}}


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, dict) else value


def _train(job: TrainJob, own: _Attempt) -> dict[str, Any]:
    from pipelines.train import train
    from training.config import parse_config
    from training.coordinator import ControlRequest

    assert isinstance(job.config, dict)
    config = parse_config(job.config, "config")

    def control() -> ControlRequest:
        return ControlRequest(own.interrupted, own.workers.count if own.workers else None)

    own.lets_go = True
    done = train(config, job.run, control=control)
    finished = done.step >= config.steps
    return {"step": done.step, "checkpoint": done.checkpoint, "metrics": done.metrics, "finished": finished}
