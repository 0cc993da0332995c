"""Who is working on a column group: a small file that a job keeps fresh, so that two jobs do not fight over shards."""

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

NAME = "running.json"
HEARTBEAT = 30.0  # seconds between signs of life
EXPIRY = 150.0  # seconds after which a job on another machine that gave none is taken for dead


@contextmanager
def lease(store: Store, groups: Sequence[str]) -> Iterator[None]:
    """Hold groups for a job of this process. Raises InputError, naming the job, when a live one holds any of them.

    A submitted job (its address in ONEDIFFUSION_JOB) that begins again elsewhere takes over what it held before:
    no two attempts of it run at once, and a lost machine would otherwise hold it up until its lease expires.
    """
    for group in groups:
        holder = _holder(store, group)
        if holder and _is_alive(holder):
            raise InputError(
                f"{store.uri}/{group}: a job of process {holder['process']} on {holder['host']} is working on it; "
                "wait for it to end, or stop it"
            )
    stop = threading.Event()

    def sign() -> None:
        life = json.dumps({**_myself(), "time": time.time()}).encode()
        for group in groups:
            store.put(f"{group}/{NAME}", life)

    def beat() -> None:
        while not stop.wait(HEARTBEAT):
            with suppress(Exception):  # a missed beat is made up by the next; the job's own writes tell of real trouble
                sign()

    sign()
    heart = threading.Thread(target=beat, daemon=True)
    heart.start()
    try:
        yield
    finally:
        stop.set()
        heart.join()
        for group in groups:
            if _same(_holder(store, group), _myself()):  # not of an attempt that took over
                store.delete(f"{group}/{NAME}")


def _myself() -> dict[str, Any]:
    process = psutil.Process()
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "started": process.create_time(),
        "job": os.environ.get("ONEDIFFUSION_JOB", ""),
    }


def _same(one: dict[str, Any] | None, other: dict[str, Any]) -> bool:
    return one is not None and all(one[key] == other[key] for key in ("host", "process", "started"))


def _holder(store: Store, group: str) -> dict[str, Any] | None:
    try:
        return dict(json.loads(store.read(f"{group}/{NAME}")))
    except (FileNotFoundError, ValueError):
        return None


def _is_alive(holder: dict[str, Any]) -> bool:
    if holder.get("job") and holder["job"] == os.environ.get("ONEDIFFUSION_JOB"):
        return False
    if holder["host"] != socket.gethostname():
        return bool(time.time() - holder["time"] < EXPIRY)
    try:
        return abs(psutil.Process(holder["process"]).create_time() - holder["started"]) < 1.0
    except psutil.NoSuchProcess:
        return False
