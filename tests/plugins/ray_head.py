"""A Ray cluster of one node on loopback, as someone else would have started it, with a token of its own."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class RayHead:
    """Address of its dashboard, and the file of its token."""

    address: str
    token_file: Path


@contextmanager
def ray_head(folder: Path, environment: dict[str, str]) -> Iterator[RayHead]:
    """Start it with `environment` (as S3 credentials, which are the cluster's own), and end it by process id."""
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    port, dashboard, client = free_ports(3)
    own = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))},
        **environment,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        *("--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=2", f"--object-store-memory={300 << 20}"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"),
        f"--temp-dir={folder / 'ray'}",
    ]
    log = (folder / "head.log").open("wb")
    head = subprocess.Popen(command, env=own, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 90
        while not _listens(dashboard):
            assert head.poll() is None, (folder / "head.log").read_text()
            assert time.monotonic() < deadline, (folder / "head.log").read_text()
            time.sleep(0.3)
        yield RayHead(f"http://127.0.0.1:{dashboard}", token)
    finally:
        family = psutil.Process(head.pid).children(recursive=True) if head.poll() is None else []
        head.send_signal(signal.SIGTERM)
        _, left = psutil.wait_procs([psutil.Process(head.pid), *family], timeout=20)
        for process in left:
            process.kill()
        head.wait()
        log.close()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all different."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
