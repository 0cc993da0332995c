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

from labeling.dataset import LEASE_EXPIRY, LEASE_FILE, Store, lease, open_store
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
