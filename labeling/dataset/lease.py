"""Who works on a column group: a job keeps a small file there fresh, so that no two jobs write the same shards."""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psutil

from labeling.dataset.storage import Store
from model.inputs import InputError

LEASE_FILE = "running.json"  # of a job on all shards; "running-FIRST-END.json" of a job on a range of them
HEARTBEAT = 30.0  # seconds between two heartbeats
LEASE_EXPIRY = 150.0  # seconds without a heartbeat after which a job on another machine counts as dead

Range = tuple[int, int]  # [first, end) of a dataset's shards, in order
_ALL: Range = (0, 1 << 62)
_Holder = dict[str, Any]


@contextmanager
def lease(store: Store, groups: Sequence[str], shards: Range | None = None) -> Iterator[None]:
    """Hold groups, or a range of their shards, for a job of this process.

    Jobs on ranges that have no shard in common run beside each other. Raises InputError, naming the job, when a live
    one holds any of these shards. A submitted job (its address in ONEDIFFUSION_JOB) that begins again elsewhere takes
    over the leases of its attempt before: no two attempts run at once, and it must not wait until the lease of a lost
    machine expires.
    """
    file = LEASE_FILE if shards is None else f"running-{shards[0]:06d}-{shards[1]:06d}.json"
    token = secrets.token_hex(8)  # of this lease: a process may ask for the same twice
    own = {**_this_process(), "token": token, **({"shards": list(shards)} if shards else {})}
    for group in groups:
        _refuse_overlap(store, group, shards, token)

    def content() -> bytes:
        return json.dumps({**own, "time": time.time()}).encode()

    taken: list[str] = []
    stop = threading.Event()

    def keep_beating() -> None:
        while not stop.wait(HEARTBEAT):
            for group in taken:
                with suppress(Exception):  # the next heartbeat makes up for it; trouble shows in the job's own writes
                    holder = _read(store, f"{group}/{file}")
                    if holder is None or holder.get("token") == token:  # an attempt that took over keeps its lease
                        store.put(f"{group}/{file}", content())

    heart = threading.Thread(target=keep_beating, daemon=True)
    try:
        for group in groups:
            name = f"{group}/{file}"
            # What is there is of the dead, or of a job that came at the same time and that is seen below.
            if not store.put_new(name, content()) and not ((holder := _read(store, name)) and _is_alive(holder)):
                store.put(name, content())
            taken.append(group)
            _refuse_overlap(store, group, shards, token)
        heart.start()
        yield
    finally:
        stop.set()
        if heart.is_alive():
            heart.join()
        for group in taken:
            if (_read(store, f"{group}/{file}") or {}).get("token") == token:
                store.delete(f"{group}/{file}")


def refuse_others(store: Store, group: str, why: str) -> None:
    """Raise InputError, which says why, when a live job other than this process holds any shard of a group."""
    for holder in _others(store, group):
        raise InputError(f"{store.uri}/{group}: {_named(holder)} is working on it{why}; wait for it to end, or stop it")


def live_ranges(store: Store, group: str) -> list[Range]:
    """The shards of a group that live jobs other than this process hold."""
    return [_range(holder) for holder in _others(store, group)]


def is_leased(store: Store, group: str) -> bool:
    """Whether any job, this process's too, has renewed a lease of a group within the time after which it expires."""
    return any(time.time() - float(holder.get("time", 0.0)) < LEASE_EXPIRY for holder in _holders(store, group))


def _refuse_overlap(store: Store, group: str, shards: Range | None, token: str) -> None:
    """Raise InputError when a live lease other than the one of this token holds one of the shards."""
    first, end = shards or _ALL
    for holder in _holders(store, group):
        others = _range(holder)
        if first < others[1] and others[0] < end and holder.get("token") != token and _is_alive(holder):
            part = "" if others == _ALL else f", shards {others[0]}:{others[1]}"
            raise InputError(
                f"{store.uri}/{group}: {_named(holder)} is working on it{part}; wait for it to end, or stop it"
            )


def _named(holder: _Holder) -> str:
    return f"a job of process {holder['process']} on {holder['host']}"


def _range(holder: _Holder) -> Range:
    first, end = holder.get("shards") or _ALL
    return int(first), int(end)


def _this_process() -> _Holder:
    process = psutil.Process()
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "started": process.create_time(),
        "job": os.environ.get("ONEDIFFUSION_JOB", ""),
        "namespace": _namespace(),
    }


def _namespace() -> int:
    """What tells apart the containers of a host: each numbers its own processes. 0 where there are none."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def _is_same(one: Mapping[str, Any] | None, other: Mapping[str, Any]) -> bool:
    return one is not None and all(one[key] == other[key] for key in ("host", "process", "started"))


def _holders(store: Store, group: str) -> list[_Holder]:
    """The leases of a group, those of the dead too."""
    files = [name for name in store.files(group, LEASE_FILE.removesuffix(".json")) if name.endswith(".json")]
    return [holder for name in files if (holder := _read(store, f"{group}/{name}"))]


def _others(store: Store, group: str) -> list[_Holder]:
    """Those of live jobs other than this process."""
    own = _this_process()
    return [holder for holder in _holders(store, group) if not _is_same(holder, own) and _is_alive(holder)]


def _read(store: Store, name: str) -> _Holder | None:
    try:
        return dict(json.loads(store.read(name)))
    except (FileNotFoundError, ValueError):
        return None


def _is_alive(holder: _Holder) -> bool:
    if holder.get("job") and holder["job"] == os.environ.get("ONEDIFFUSION_JOB"):
        return False
    own = _namespace()
    if holder["host"] != socket.gethostname() or holder.get("namespace", own) != own:
        return bool(time.time() - holder["time"] < LEASE_EXPIRY)
    try:
        return abs(psutil.Process(holder["process"]).create_time() - holder["started"]) < 1.0
    except psutil.NoSuchProcess:
        return False
