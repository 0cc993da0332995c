"""A Ray cluster of one node on loopback, as someone else would have started it, with a token of its own."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from free_ports import free_ports

from cluster.ray_environment import AUTHENTICATION, RAY_ENVIRONMENT

START = (sys.executable, "-m", "ray.scripts.scripts", "start", "--block")
# The same with another script that starts workers, which is no option of the command.
START_WITH = """
import sys
from functools import partial
import ray._private.parameter as parameter
parameter.RayParams = partial(parameter.RayParams, setup_worker_path=sys.argv.pop(1))
from ray.scripts.scripts import main
main()
"""
# Ports as the system gives them out, since other Rays run beside it; no process for workers' logs, which nobody reads.
WORKERS = ("--min-worker-port=0", "--max-worker-port=0", "--include-log-monitor=false")


@dataclass(frozen=True)
class RayHead:
    """Address that takes jobs, where its nodes meet, the file of its token, and the environment of its nodes."""

    address: str
    gcs: str
    token_file: Path
    environment: dict[str, str]


@contextmanager
def ray_head(
    folder: Path,
    environment: dict[str, str],
    cwd: Path | None = None,
    takes_jobs: bool = False,
    worker_start: Path | None = None,
) -> Iterator[RayHead]:
    """Start it with `environment` (as S3 credentials, which are the cluster's own), and end it by process id.

    cwd: the folder that it works in, the base of relative paths. takes_jobs: whether jobs can be sent to `address`,
    for which Ray's dashboard has to run, a dozen processes. worker_start: the script that starts a worker, in the place
    of Ray's own.
    """
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    port, dashboard, client, agent = free_ports(4)
    scratch = tempfile.mkdtemp(prefix="ray-")  # it makes sockets there, whose paths must be short
    own = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))},
        **environment,
        **AUTHENTICATION,
        **RAY_ENVIRONMENT,
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_health_check_period_ms": "1000",  # of nodes: tests do not wait as long for the loss of one
        "RAY_raylet_start_wait_time_s": "120",  # on a busy machine
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    command = [
        *([sys.executable, "-c", START_WITH, str(worker_start), "start", "--block"] if worker_start else START),
        *(
            "--head",
            "--node-ip-address=127.0.0.1",
            f"--port={port}",
            "--num-cpus=2",
            f"--object-store-memory={300 << 20}",
        ),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"),
        f"--temp-dir={scratch}",
        f"--include-dashboard={str(takes_jobs).lower()}",
        "--no-monitor",  # of an autoscaler
        *WORKERS,
        f"--dashboard-agent-listen-port={agent}",  # a Ray that runs beside it may have taken the usual one
    ]
    log = folder / "head.log"
    head = _start_head(command, own, cwd, log)
    try:
        if not _ready(head, log, Path(scratch), dashboard if takes_jobs else None):
            _end(head)
            head = _start_head(command, own, cwd, log)
            assert _ready(head, log, Path(scratch), dashboard if takes_jobs else None), log.read_text()
        yield RayHead(f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{port}", token, own)
    finally:
        _end(head)
        shutil.rmtree(scratch)


def _start_head(
    command: list[str], environment: dict[str, str], cwd: Path | None, log: Path
) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(command, env=environment, cwd=cwd, stdout=output, stderr=output, start_new_session=True)


def _ready(head: subprocess.Popen[bytes], log: Path, scratch: Path, dashboard: int | None) -> bool:
    """Wait until nodes can join, and jobs be sent. False: Ray allows a node half a minute, and the machine was busy."""
    deadline = time.monotonic() + 240
    while not ((scratch / "ray_current_cluster").exists() and (dashboard is None or _listens(dashboard))):
        has_ended = head.poll() is not None
        if has_ended and "timed out during startup" in log.read_text():
            return False
        assert not has_ended and time.monotonic() < deadline, log.read_text()
        time.sleep(0.3)
    return True


@contextmanager
def ray_node(head: RayHead, cpus: int, runs_jobs: bool = False) -> Iterator[psutil.Process]:
    """One more node; yields its raylet, whose death is that of the node.

    runs_jobs: its temporary files are its own, as on another machine. A node that unpacks a job's code first removes
    what another node beside it unpacked, and may run already.
    """
    scratch = tempfile.mkdtemp(prefix="ray-")
    command = [*START, f"--address={head.gcs}", f"--num-cpus={cpus}", f"--object-store-memory={100 << 20}"]
    command += [f"--dashboard-agent-listen-port={free_ports(1)[0]}", *WORKERS]
    command += [f"--temp-dir={scratch}"] if runs_jobs else []
    # It prints much when it is killed.
    silent = subprocess.DEVNULL
    node = subprocess.Popen(command, env=head.environment, stdout=silent, stderr=silent, start_new_session=True)
    try:
        deadline = time.monotonic() + 240
        while not (raylets := [process for process in _descendants(node) if process.name() == "raylet"]):
            assert node.poll() is None and time.monotonic() < deadline
            time.sleep(0.3)
        yield raylets[0]
    finally:
        _end(node)
        shutil.rmtree(scratch, ignore_errors=True)


def _descendants(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []


def _end(process: subprocess.Popen[bytes]) -> None:
    descendants = _descendants(process)
    process.send_signal(signal.SIGTERM)
    _, left = psutil.wait_procs(descendants, timeout=6)
    for one in left:
        with suppress(psutil.NoSuchProcess):  # it ended by itself in this moment
            one.kill()
    process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
