"""Who works on a column group: a job keeps a small file there fresh, so that no two jobs write the same shards."""

from __future__ import annotations

import json
import logging
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

LEASE_FILES = "running"  # what their names begin with: running-TOKEN.json; running.json before they had tokens
HEARTBEAT = 30.0  # seconds between two heartbeats
LEASE_EXPIRY = 150.0  # seconds without a heartbeat after which a job on another machine counts as dead
CLAIM_SECONDS = 0.1  # between two looks at another's claim, which soon becomes a lease or goes
CLAIM_PATIENCE = 60.0  # seconds that a job waits for that, where the other one's machine stalls

_log = logging.getLogger(__name__)

Range = tuple[int, int]  # [first, end) of a dataset's shards, in order
_ALL: Range = (0, 1 << 62)
_Holder = dict[str, Any]


@contextmanager
def lease(store: Store, groups: Sequence[str], shards: Range | None = None) -> Iterator[None]:
    """Hold groups, or a range of their shards, for a job of this process.

    Jobs on ranges that have no shard in common run beside each other. Of jobs that begin at the same time, also where
    they take over from a dead one, one goes on. Raises InputError, naming the job, when a live one holds any of these
    shards. A submitted job (its address in ONEDIFFUSION_JOB) that begins again elsewhere takes over the leases of its
    attempt before: no two attempts run at once, and it must not wait until the lease of a lost machine expires.
    """
    claim = _Claim(store, groups, shards)
    claim.look()  # so that a refused job writes nothing
    with store.without_empty_folders(groups):  # as of a job that is refused later
        try:
            claim.write()
            patience_ends = time.monotonic() + CLAIM_PATIENCE
            while claim.look(waits=time.monotonic() < patience_ends):  # at what came since
                time.sleep(CLAIM_SECONDS)
            claim.claimed = False
            claim.write()
            with claim.kept_fresh():
                yield
        finally:
            claim.withdraw()


class _Claim:
    """One lease: a file in each group, named by its token. It is a claim first: others may have one at that moment.

    Everybody writes a claim before looking at those of others, so that of two one sees the other's at least. Where both
    do, the one with the lesser token waits for the other to go.
    """

    def __init__(self, store: Store, groups: Sequence[str], shards: Range | None) -> None:
        self.store, self.groups = store, groups
        self.shards = shards or _ALL
        self.token = secrets.token_hex(8)  # a process may ask for the same twice
        self.own = {**_this_process(), "token": self.token, **({"shards": list(shards)} if shards else {})}
        self.claimed = True

    def write(self) -> None:
        claim = {"claim": True} if self.claimed else {}
        content = json.dumps({**self.own, **claim, "time": time.time()}).encode()
        for group in self.groups:
            self.store.put(self._file(group), content)

    def look(self, waits: bool = True) -> bool:
        """Whether another job has a claim that must go before this one is a lease. Dead leases are removed.

        waits: otherwise such a claim counts as a lease.

        Raises InputError where a live job holds one of the shards, or claims one before this job.
        """
        rivals = False
        for group in self.groups:
            for name, holder in sorted(_holders(self.store, group).items(), key=lambda one: _range(one[1])):
                others = _range(holder)
                if holder.get("token") == self.token or self.shards[0] >= others[1] or others[0] >= self.shards[1]:
                    continue
                if not _is_alive(holder):
                    self.store.delete(f"{group}/{name}")
                elif waits and holder.get("claim") and str(holder.get("token")) > self.token:
                    rivals = True
                else:
                    part = "" if others == _ALL else f", shards {others[0]}:{others[1]}"
                    raise InputError(
                        f"{self.store.uri}/{group}: {_named(holder)} is working on it{part}; "
                        "wait for it to end, or stop it"
                    )
        return rivals

    @contextmanager
    def kept_fresh(self) -> Iterator[None]:
        """Write it again and again, so that it does not expire: until another job takes it for dead and removes it."""
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(HEARTBEAT):
                with suppress(Exception):  # the next heartbeat makes up for it; trouble shows in the job's own writes
                    if not all(self.store.exists(self._file(group)) for group in self.groups):
                        _log.warning(
                            "%s: this machine stood still, and another job may work on the same", self.store.uri
                        )
                        return
                    self.write()

        heart = threading.Thread(target=beat, daemon=True)
        heart.start()
        try:
            yield
        finally:
            stop.set()
            heart.join()

    def withdraw(self) -> None:
        for group in self.groups:
            self.store.delete(self._file(group))

    def _file(self, group: str) -> str:
        return f"{group}/{LEASE_FILES}-{self.token}.json"


def refuse_others(store: Store, group: str, why: str) -> None:
    """Raise InputError, which says why, when a live job other than this process holds any shard of a group."""
    for holder in _others(store, group):
        raise InputError(f"{store.uri}/{group}: {_named(holder)} is working on it{why}; wait for it to end, or stop it")


def live_ranges(store: Store, group: str) -> list[Range]:
    """The shards of a group that live jobs other than this process hold."""
    return [_range(holder) for holder in _others(store, group)]


def is_leased(store: Store, group: str) -> bool:
    """Whether any job, this process's too, has renewed a lease of a group within the time after which it expires."""
    return any(
        time.time() - float(holder.get("time", 0.0)) < LEASE_EXPIRY for holder in _holders(store, group).values()
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


def _holders(store: Store, group: str) -> dict[str, _Holder]:
    """The leases and claims of a group by file name, those of the dead too."""
    files = [name for name in store.files(group, LEASE_FILES) if name.endswith(".json")]
    return {name: holder for name in files if (holder := _read(store, f"{group}/{name}"))}


def _others(store: Store, group: str) -> list[_Holder]:
    """Leases of live jobs other than this process."""
    own = _this_process()
    return [holder for holder in _holders(store, group).values() if not _is_same(holder, own) and _is_alive(holder)]


def _read(store: Store, name: str) -> _Holder | None:
    """A lease; None where there is none, or what is no lease."""
    try:
        holder = json.loads(store.read(name))
    except (FileNotFoundError, ValueError):
        return None
    return holder if isinstance(holder, dict) and holder.keys() >= {"host", "process", "started", "time"} else None


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
