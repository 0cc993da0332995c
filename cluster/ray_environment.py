"""Environment variables of Ray: the one table for every Ray that the project starts, on any kind of target.

Ray reads some of them once, when it is imported or when its processes start. So they are in the environment before:
`prepare_ray` sets them in this process, and the Slurm script, the pods and the runtime environments carry them.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from cluster.user_data import data_folder, one_at_a_time, write_whole

# One thread each: labels must not depend on how many cores a machine has, and pools already use them all.
THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
AUTHENTICATION = {"RAY_AUTH_MODE": "token"}
RAY_ENVIRONMENT = {
    **THREADS,
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    # Ray Train's own watch for nodes that are taken away: training asks Ray for them itself (training.coordinator).
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # A labeling job has a dozen small processes whatever the number of cores; they may start together.
    "RAY_worker_maximum_startup_concurrency": "16",
}
# A Ray that ends with the command has these too. Nobody reads its metrics, and where its agent is late, every process
# would print that it cannot export them. A cluster's own may be read by its monitoring.
# Nor what it reads of all processes every five seconds, now once an hour.
SESSION_ENVIRONMENT = {"RAY_enable_metrics_collection": "0", "REPORTER_UPDATE_INTERVAL_MS": "3600000"}
# How much Ray's C++ code writes to the terminal. A session sets it while it connects, for this process alone.
LOG_LEVEL, LOG_LEVEL_OF_SESSION = "RAY_BACKEND_LOG_LEVEL", "fatal"


def stopping_environment(seconds: int) -> dict[str, str]:
    """How long a driver that is stopped has for its checkpoint before Ray kills it; Ray's default is 3 s."""
    return {"RAY_JOB_STOP_WAIT_TIME_S": str(seconds)}


def prepare_ray() -> None:
    """Set what this process lacks of the table, and the token. Call it before the first import of Ray."""
    if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(token_file() if starts_own_ray() else cluster_token_file())
    session = SESSION_ENVIRONMENT if starts_own_ray() else {}
    for name, value in {**AUTHENTICATION, **RAY_ENVIRONMENT, **session}.items():
        os.environ.setdefault(name, value)


def starts_own_ray() -> bool:
    """Whether a session starts a Ray of its own, on this machine only; otherwise RAY_ADDRESS names a cluster."""
    return not os.environ.get("RAY_ADDRESS")


def token_file() -> Path:
    """The project's own Ray token, made on first use and readable by its owner only."""
    path = data_folder() / "ray-token"
    with one_at_a_time("ray-token"):
        if not path.exists():
            write_whole(path, secrets.token_hex(32))
    return path


def cluster_token_file() -> Path:
    """The token for a Ray that was not started here: where Ray itself looks for one, or else the project's own."""
    users = Path.home() / ".ray" / "auth_token"
    return users if users.exists() else token_file()
