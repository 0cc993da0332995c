"""Who works on a column group: a job keeps a small file there fresh, so that no two jobs write the same shards."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psutil

from labeling.dataset.storage import Store
from model.inputs import InputError

LEASE_FILE = "running.json"
HEARTBEAT = 30.0  # seconds between two heartbeats
LEASE_EXPIRY = 150.0  # seconds without a heartbeat after which a job on another machine counts as dead


@contextmanager
def lease(store: Store, groups: Sequence[str]) -> Iterator[None]:
    """Hold groups for a job of this process. Raises InputError, naming the job, when a live one holds any of them.

    A submitted job (its address in ONEDIFFUSION_JOB) that begins again elsewhere takes over the leases of its attempt
    before: no two attempts run at once, and it must not wait until the lease of a lost machine expires.
    """
    for group in groups:
        holder = _holder(store, group)
        if holder and _is_alive(holder):
            raise InputError(
                f"{store.uri}/{group}: a job of process {holder['process']} on {holder['host']} is working on it; "
                "wait for it to end, or stop it"
            )
    stop = threading.Event()

    def beat() -> None:
        holder = json.dumps({**_this_process(), "time": time.time()}).encode()
        for group in groups:
            store.put(f"{group}/{LEASE_FILE}", holder)

    def keep_beating() -> None:
        while not stop.wait(HEARTBEAT):
            with suppress(Exception):  # the next heartbeat makes up for it; real trouble shows in the job's own writes
                beat()

    beat()
    heart = threading.Thread(target=keep_beating, daemon=True)
    heart.start()
    try:
        yield
    finally:
        stop.set()
        heart.join()
        for group in groups:
            if _is_same(_holder(store, group), _this_process()):  # an attempt that took over keeps its lease
                store.delete(f"{group}/{LEASE_FILE}")


def _this_process() -> dict[str, Any]:
    process = psutil.Process()
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "started": process.create_time(),
        "job": os.environ.get("ONEDIFFUSION_JOB", ""),
    }


def _is_same(one: dict[str, Any] | None, other: dict[str, Any]) -> bool:
    return one is not None and all(one[key] == other[key] for key in ("host", "process", "started"))


def _holder(store: Store, group: str) -> dict[str, Any] | None:
    try:
        return dict(json.loads(store.read(f"{group}/{LEASE_FILE}")))
    except (FileNotFoundError, ValueError):
        return None


def _is_alive(holder: dict[str, Any]) -> bool:
    if holder.get("job") and holder["job"] == os.environ.get("ONEDIFFUSION_JOB"):
        return False
    if holder["host"] != socket.gethostname():
        return bool(time.time() - holder["time"] < LEASE_EXPIRY)
    try:
        return abs(psutil.Process(holder["process"]).create_time() - holder["started"]) < 1.0
    except psutil.NoSuchProcess:
        return False
