"""Faults of a soak: what each does to a training, and where they happen."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from s3_proxy import Handler, S3Proxy
from soak_training import Training

from labeling.dataset import LEASE_EXPIRY
from training.checkpoint import FOLDER

DISK_MB = 200  # of the small disk: some checkpoints of 30 MB

# Does something to a training; whether other processes go on with it.
Fault = Callable[[Training, random.Random], bool]


def kill(kind: str) -> Fault:
    """SIGKILL to one of the processes of a kind, some time within the next step or two."""

    def meet(training: Training, draw: random.Random) -> bool:
        time.sleep(draw.uniform(0, 0.5))
        draw.choice(training.find(kind)).send_signal(signal.SIGKILL)
        return True

    return meet


def kill_driver(training: Training, draw: random.Random) -> bool:
    """SIGKILL to the command."""
    time.sleep(draw.uniform(0, 0.5))
    training.kill()
    return True


def stop_worker(training: Training, draw: random.Random) -> bool:
    """It stands still for some seconds, as a machine that swaps."""
    [worker] = training.find("worker")
    worker.suspend()
    time.sleep(5)
    worker.resume()
    return False


def killed_at(pattern: str) -> Fault:
    """Whoever writes (or removes) such a file next is killed halfway."""

    def meet(training: Training, draw: random.Random) -> bool:
        training.tell("trap", pattern)
        training.wait(lambda: not (training.folder / "trap").exists())
        return True

    return meet


def killed_starting(pattern: str) -> Fault:
    """The driver is killed, and once more halfway through such a file of its next start."""

    def meet(training: Training, draw: random.Random) -> bool:
        training.kill()
        training.tell("trap", pattern)
        training.start()
        training.wait(lambda: training.has_ended, runs=False)
        assert not (training.folder / "trap").exists(), training.said()
        return True

    return meet


def lost_machine(training: Training, draw: random.Random) -> bool:
    """The driver's machine is gone, and its lease stays: others are refused until it has expired."""
    training.kill()
    store = training.store
    [name] = [name for name in store.files(FOLDER) if name.startswith("running")]
    lease = json.loads(store.read(f"{FOLDER}/{name}"))
    store.put(f"{FOLDER}/{name}", json.dumps({**lease, "host": "gone", "time": time.time()}).encode())
    training.start()
    assert training.wait_for_end() == 2 and "is working on it" in training.said(), training.said()
    expired = {**lease, "host": "gone", "time": time.time() - LEASE_EXPIRY - 1}
    store.put(f"{FOLDER}/{name}", json.dumps(expired).encode())
    return True


def resize(workers: int) -> Fault:
    """So many workers are asked for, while it runs."""

    def meet(training: Training, draw: random.Random) -> bool:
        training.tell("workers", workers)
        training.wait(lambda: training.losses()[-1]["workers"] == workers)
        return True

    return meet


def fill_disk(left: int) -> Fault:
    """So many bytes are left of its disk, until it has ended with one line."""

    def meet(training: Training, draw: random.Random) -> bool:
        filler = Path(training.run).parent / "filler"
        stat = os.statvfs(filler.parent)
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, stat.f_bavail * stat.f_frsize - left))
        assert training.wait_for_end() == 2, training.said()
        said = [line for line in training.said().splitlines() if "No space left on device" in line]
        filler.unlink()
        assert len(said) == 1, training.said()
        return True

    return meet


WRITES = {
    "SIGKILL within a shard": killed_at("*/checkpoints/step-*/shard-00000-*"),
    "SIGKILL within index.json": killed_at("*/checkpoints/step-*/index.json"),
    "SIGKILL within state.json": killed_at("*/checkpoints/step-*/state.json"),
    "SIGKILL while an old checkpoint is removed": killed_at("*/checkpoints/step-*/"),
    "SIGKILL within a line of metrics.jsonl": killed_at("*/metrics.jsonl"),
}


@contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """A file system of its own in `folder`; None where that is not allowed."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "soak", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


class CutUploads(Handler):
    """Cuts the next uploads to a checkpoint: S3 has half of the body, and nobody an answer."""

    server: FailingS3

    def _forward(self, sent: bytes, is_cut: bool) -> None:
        if self.command != "PUT" or not self.server.takes(self.path):
            super()._forward(sent, is_cut)
            return
        host, _, port = self.server.behind.partition(":")
        with socket.create_connection((host, int(port))) as upstream:
            headers = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items() if name != "Expect")
            upstream.sendall(f"PUT {self.path} HTTP/1.1\r\n{headers}\r\n".encode() + sent[: len(sent) // 2])
        self.close_connection = True


class FailingS3(S3Proxy):
    """An S3 that fails in the share of its answers, and cuts `cuts` uploads to checkpoints."""

    cuts = 0

    def takes(self, path: str) -> bool:
        with self._lock:
            if not self.cuts or f"/{FOLDER}/" not in path or "/shard-" not in path:
                return False
            self.cuts -= 1
            return True
