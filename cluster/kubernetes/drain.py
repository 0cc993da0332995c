"""What pods run before they are taken away: `python -m cluster.kubernetes.drain head|worker --seconds N`.

On the head it asks the job for a checkpoint (SIGTERM to its process) and waits for it to end. On a worker it tells Ray
that the node goes, upon which a training writes a checkpoint and goes on elsewhere (training.coordinator), and waits
until no task or actor is left. So a spot node, Kueue that needs the resources, and `stop` lose no work, if N suffices.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from contextlib import suppress
from typing import Any

JOB = ["-m", "pipelines", "execute"]
# Ray's own processes. Those in the second and third lines belong to Ray Data, and stay as long as the cluster.
NOT_WORK = (
    *("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent"),
    *("ray::_StatsActor", "ray::_StatsSummaryActor", "ray::_UsageCollectionActor"),
    *("ray::ActorLocationTracker", "ray::AutoscalingRequester", "ray::_AutoscalingCoordinatorActor"),
)
LEAVE = (
    *(sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--reason=DRAIN_NODE_REASON_PREEMPTION"),
    "--reason-message=its pod is taken away",
)
LEAVE_SECONDS = 60.0  # that the command may take at most: a busy machine imports Ray for half a minute


def drain(role: str, seconds: float) -> bool:
    """Wait at most so many seconds until the work in this pod has ended; returns whether it has."""
    import psutil

    deadline = time.monotonic() + seconds
    if role == "head":
        for process in _work_processes(role):
            with suppress(psutil.NoSuchProcess):
                process.terminate()
    else:
        leave(seconds)
    while _work_processes(role):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True


def leave(seconds: float, *more: str) -> None:
    """Tell Ray that this node goes away within some seconds: it gets no new work, and its workers are notified."""
    # KubeRay sets it for every worker. Without it, Ray would look for any other cluster.
    if "RAY_ADDRESS" not in os.environ:
        return
    with suppress(OSError, subprocess.TimeoutExpired):  # a Ray that does not answer has no work to wait for
        subprocess.run(  # noqa: S603 - Ray's own command
            [*LEAVE, f"--deadline-remaining-seconds={int(seconds)}", *more],
            timeout=min(seconds, LEAVE_SECONDS),
            check=False,
        )


def _work_processes(role: str) -> list[Any]:
    import psutil

    processes = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            words = process.cmdline()
            if process.status() == psutil.STATUS_ZOMBIE or not words:
                continue
            # Ray replaces the command line of a worker by what it does.
            busy = words[0].startswith("ray::") and not words[0].startswith(NOT_WORK)
            job = any(words[i : i + 3] == JOB for i in range(len(words)))
            if job if role == "head" else busy:
                processes.append(process)
    return processes


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=("head", "worker"))
    parser.add_argument("--seconds", type=float, required=True)
    arguments = parser.parse_args()
    if "KUBERNETES_SERVICE_HOST" not in os.environ:
        parser.error("this is for pods alone: elsewhere it would end the jobs of others")
    raise SystemExit(0 if drain(arguments.role, arguments.seconds) else 1)
