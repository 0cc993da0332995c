"""A job's processes: which there are, and that they end with it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import psutil


def below(process: int) -> list[psutil.Process]:
    """All processes that a process has started, directly or not."""
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(process).children(recursive=True)
    return []


def training_workers() -> list[psutil.Process]:
    """The processes in which trainings take their steps, on the Ray that this process has started."""
    processes = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "".join(process.cmdline()).startswith("ray::RayTrainWorker"):
                processes.append(process)
    return processes


@contextmanager
def training_suspended() -> Iterator[list[psutil.Process]]:
    """Within, trainings take no steps, which would take the cores that a test waits for. Gives their processes."""
    workers = training_workers()
    assert workers
    for worker in workers:
        worker.suspend()
    try:
        yield workers
    finally:
        for worker in workers:
            with suppress(psutil.NoSuchProcess):
                worker.resume()


def wait_for_end(job: subprocess.Popen[bytes], children: Sequence[psutil.Process]) -> None:
    """What works for a job ends with it. Ray's own agents outlive its daemon by a minute and touch nothing of ours."""
    job.wait()
    names = {process.pid: _name(process) for process in children}
    agents = [process for process in children if names[process.pid].endswith("Agent")]
    _, working = psutil.wait_procs([process for process in children if process not in agents], timeout=120)
    for agent in agents:
        with suppress(psutil.NoSuchProcess):
            agent.kill()
    assert not working, f"still there: {working}"


def _name(process: psutil.Process) -> str:
    with suppress(psutil.NoSuchProcess):
        return str(process.name())
    return ""
