"""The log of a job: copied into its folder while an attempt runs, and read from there.

It is kept in parts (log/000001.txt …), since nothing appends to an object on S3.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from labeling.dataset import PAUSE_SECONDS, GrowingText, Store, lines_of_many, open_store, text_parts
from labeling.dataset import stored_lines as text_lines
from model.inputs import InputError
from pipelines.jobs.attempt import Attempt
from pipelines.jobs.folder import JobFolder
from pipelines.jobs.known_jobs import remembered_jobs
from pipelines.jobs.status import backend_of, find_attempt, job_status
from training.rank_output import FOLDER as RANKS
from training.rank_output import rank_folder

FOLDER = "log"  # of a job's folder


def log_lines(
    attempt: Attempt, follow: bool = False, say: Callable[[str], None] = lambda line: None, task: int | None = None
) -> Iterator[str]:
    """The log kept in the job's folder, of all attempts; where there is none yet, what the target kept of it.

    Lines of a job array begin with the number of their task; task: of one alone. follow: until the job ends. say: is
    given the reason why the job waits, when that changes; these lines are not part of the log.
    """
    folder = JobFolder(attempt.address)
    stores = _logs(attempt, task)
    last_reason = ""

    def over() -> bool:
        nonlocal last_reason
        last = folder.attempt() or attempt
        status = job_status(last)
        if status.phase == "pending" and status.reason != last_reason:
            last_reason = status.reason
            say(f"pending: {last_reason}")
        return not follow or not (status.alive or folder.control().attempt > last.number)

    def has_begun() -> bool:
        return any(text_parts(store, FOLDER) for store in stores.values())

    if follow and not has_begun():
        while not over() and not has_begun():
            time.sleep(PAUSE_SECONDS)
    if has_begun():
        for name, line in lines_of_many(stores, FOLDER, over):
            yield f"[{name}] {line}" if len(stores) > 1 else line
    else:
        yield from backend_of(attempt).logs(attempt.name)


def _logs(attempt: Attempt, task: int | None) -> dict[str, Store]:
    """The stores that hold the logs of an attempt: by task where it is a job array. Raises InputError for no task."""
    if task is not None and task >= attempt.tasks:
        told = (
            f"its tasks are 0 to {attempt.tasks - 1}" if attempt.tasks > 1 else "it is no job array; leave --task out"
        )
        raise InputError(f"{attempt.job_id}: no task {task}; {told}")
    if attempt.tasks == 1:
        return {"": JobFolder(attempt.address).store}
    tasks = range(attempt.tasks) if task is None else [task]
    return {str(number): JobFolder(attempt.address, number).own for number in tasks}


def stored_lines(store: Store, over: Callable[[], bool] = lambda: True) -> Iterator[str]:
    """Lines of the log in a job's folder; then new ones, until `over`."""
    return text_lines(store, FOLDER, over)


def rank_lines(name: str, rank: int, follow: bool = False) -> Iterator[str]:
    """What a rank of a training printed, over all attempts. name: of a job, or the address of a run.

    follow: until the job ends; a run that was trained without a job is followed until this is interrupted.
    Raises InputError for a run that has no such rank.
    """
    is_run = name not in remembered_jobs() and open_store(name).exists("config.yaml")
    attempt = None if is_run else find_attempt(name)
    run = attempt.address.rpartition("/jobs/")[0] if attempt else name
    store = open_store(run)

    def over() -> bool:
        if not follow:
            return True
        return attempt is not None and not job_status(JobFolder(attempt.address).attempt() or attempt).alive

    if not text_parts(store, rank_folder(rank)) and over():
        printed = [str(int(name)) for name in store.folders(RANKS)]
        others = f"; ranks that did: {', '.join(printed)}" if printed else ""
        raise InputError(f"{run}: rank {rank} has printed nothing{others}")
    return text_lines(store, rank_folder(rank), over)


@contextmanager
def captured_log(store: Store) -> Iterator[None]:
    """Copy standard output and error to STORE/log/, every few seconds, after what earlier attempts left there.

    This process's and those of the processes it starts.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    originals = [os.dup(1), os.dup(2)]
    reading, writing = os.pipe()
    os.dup2(writing, 1)
    os.dup2(writing, 2)
    os.close(writing)
    log = GrowingText(store, FOLDER)
    copying = threading.Thread(target=_copy, args=(reading, originals[0], log), daemon=True)
    writing_parts = threading.Thread(target=log.write_until_over, daemon=True)
    copying.start()
    writing_parts.start()
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(originals[0], 1)
        os.dup2(originals[1], 2)
        # The pipe ends when no process holds it; one that was left behind must not delay the end for long.
        copying.join(timeout=PAUSE_SECONDS)
        log.over.set()
        writing_parts.join(timeout=10)


def _copy(reading: int, shown: int, log: GrowingText) -> None:
    """Pass output on to `shown` and to the log without waiting for either: a full pipe would stop the job."""
    while data := os.read(reading, 65536):
        log.add(data)
        with suppress(OSError):  # a terminal that went away
            os.write(shown, data)
