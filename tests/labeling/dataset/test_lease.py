"""Leases: one job at a time on a group, and none for the dead."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from labeling.dataset import LEASE_EXPIRY, LEASE_FILE, Store, lease, open_store, refuse_others
from model.inputs import InputError

FILE = f"edges/{LEASE_FILE}"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path)


def hold(store: Store, **changes: Any) -> None:
    """Write the lease of another job, by default one of this process that is alive."""
    holder = {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "started": psutil.Process().create_time(),
        "job": "",
        "time": time.time(),
    }
    store.put(FILE, json.dumps({**holder, **changes}).encode())


def test_lease_is_held_and_given_back(store: Store) -> None:
    with lease(store, ["edges", "boxes"]):
        assert store.exists(FILE) and store.exists(f"boxes/{LEASE_FILE}")
        with pytest.raises(InputError, match=f"process {os.getpid()}"), lease(store, ["boxes"]):
            pass
    assert not store.exists(FILE) and not store.exists(f"boxes/{LEASE_FILE}")


def test_lease_of_a_live_process_is_refused_and_of_a_dead_one_taken(store: Store) -> None:
    hold(store)
    with pytest.raises(InputError, match="is working on it"), lease(store, ["edges"]):
        pass
    hold(store, started=1.0)  # the same number, another process
    with lease(store, ["edges"]):
        pass
    assert not store.exists(FILE)


def test_lease_of_another_machine_expires(store: Store) -> None:
    hold(store, host="elsewhere")
    with pytest.raises(InputError, match="on elsewhere"), lease(store, ["edges"]):
        pass
    hold(store, host="elsewhere", time=time.time() - LEASE_EXPIRY - 1)
    with lease(store, ["edges"]):
        pass


def test_next_attempt_of_a_job_takes_over(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDIFFUSION_JOB", "runs/jobs/label-1")
    hold(store, host="elsewhere", job="runs/jobs/label-1")
    with lease(store, ["edges"]):
        hold(store, host="a third", job="runs/jobs/label-1")
    assert json.loads(store.read(FILE))["host"] == "a third"  # an attempt gives back only its own lease


def test_jobs_on_other_shards_hold_a_group_beside_each_other(store: Store) -> None:
    with lease(store, ["edges"], (0, 10)), lease(store, ["edges"], (10, 20)):
        assert live_leases(store) == ["running-000000-000010.json", "running-000010-000020.json"]
        for shards, named in (((5, 12), "0:10"), ((19, 30), "10:20"), ((0, 10), "0:10"), (None, "shards")):
            with pytest.raises(InputError, match=named), lease(store, ["edges"], shards):
                pass
        with lease(store, ["edges"], (20, 30)):
            pass
    with lease(store, ["edges"]), pytest.raises(InputError, match="is working on it"), lease(store, ["edges"], (0, 1)):
        pass
    assert not live_leases(store)


def test_a_refused_job_gives_back_what_it_held(store: Store) -> None:
    with lease(store, ["edges"], (0, 5)):
        with pytest.raises(InputError, match="is working on it"), lease(store, ["boxes", "edges"], (4, 6)):
            pass
        assert not store.files("boxes", "running")


def test_of_jobs_that_begin_at_once_none_overlap(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another job's lease comes between the first look and the own lease."""
    put_new = type(store).put_new

    def late(self: Store, name: str, content: bytes) -> bool:
        hold(store, shards=[3, 8])
        return put_new(self, name, content)

    monkeypatch.setattr(type(store), "put_new", late)
    with pytest.raises(InputError, match="3:8"), lease(store, ["edges"], (0, 5)):
        pass
    assert live_leases(store) == [LEASE_FILE]


def test_another_live_job_refuses_what_changes_its_declaration(store: Store) -> None:
    refuse_others(store, "edges", "")
    with lease(store, ["edges"], (0, 5)):
        refuse_others(store, "edges", "")  # the own lease is no other's
    hold(store, host="elsewhere", shards=[0, 5])
    with pytest.raises(InputError, match="on elsewhere is working on it with other parameters"):
        refuse_others(store, "edges", " with other parameters")


def test_lease_is_held_on_s3(s3: str, tmp_path: Path) -> None:
    store = open_store(f"{s3}/{tmp_path.name}")
    with lease(store, ["edges"], (0, 5)), lease(store, ["edges"], (5, 9)):
        assert len(live_leases(store)) == 2
        with pytest.raises(InputError, match="0:5"), lease(store, ["edges"], (0, 1)):
            pass
    assert not live_leases(store)


def live_leases(store: Store) -> list[str]:
    return list(store.files("edges", "running"))


def test_lease_of_another_container_of_the_host_expires(store: Store) -> None:
    hold(store, started=1.0, namespace=1)  # a process that cannot be seen from here
    with pytest.raises(InputError, match="is working on it"), lease(store, ["edges"]):
        pass
    hold(store, namespace=1, time=time.time() - LEASE_EXPIRY - 1)  # its number is of another process here
    with lease(store, ["edges"]):
        pass
