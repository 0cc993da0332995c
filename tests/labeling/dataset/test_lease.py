"""Leases: one job at a time on a group, and none for the dead."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections import Counter
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import psutil
import pytest

from labeling.dataset import LEASE_EXPIRY, Store, lease, open_store, refuse_others
from model.inputs import InputError

FILE = "edges/running.json"  # as before leases were named by tokens


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
        assert len(live_leases(store)) == len(live_leases(store, "boxes")) == 1
        with pytest.raises(InputError, match=f"process {os.getpid()}"), lease(store, ["boxes"]):
            pass
    assert not live_leases(store) and not live_leases(store, "boxes")


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
        assert len(live_leases(store)) == 2
        for shards, named in (((5, 12), "0:10"), ((19, 30), "10:20"), ((0, 10), "0:10"), (None, "shards")):
            with pytest.raises(InputError, match=named), lease(store, ["edges"], shards):
                pass
        with lease(store, ["edges"], (20, 30)):
            pass
    with lease(store, ["edges"]), pytest.raises(InputError, match="is working on it"), lease(store, ["edges"], (0, 1)):
        pass
    assert not live_leases(store)


def test_refused_job_gives_back_what_it_held(store: Store) -> None:
    with lease(store, ["edges"], (0, 5)):
        with pytest.raises(InputError, match="is working on it"), lease(store, ["boxes", "edges"], (4, 6)):
            pass
        assert not store.files("boxes", "running")


def test_job_that_makes_nothing_leaves_no_folder(tmp_path: Path) -> None:
    dataset = open_store(tmp_path / "new" / "dataset")
    with pytest.raises(InputError, match="refused"), lease(dataset, ["edges", "boxes"]):
        raise InputError("refused")
    assert not (tmp_path / "new").exists()
    (tmp_path / "new" / "dataset" / "edges").mkdir(parents=True)
    with lease(dataset, ["edges", "boxes", "depth"]):
        dataset.put("depth/000000.parquet", b"")
    assert {path.name for path in (tmp_path / "new" / "dataset").iterdir()} == {"edges", "depth"}


@pytest.mark.parametrize("dead", [False, True])
def test_concurrent_leases_keep_one_job(store: Store, dead: bool) -> None:
    """Also where they find the lease of a dead job."""
    for _ in range(5):
        barrier, outcomes = Barrier(6), Counter[str]()
        if dead:
            hold(store, started=1.0)

        def begin(barrier: Barrier = barrier, outcomes: Counter[str] = outcomes) -> None:
            barrier.wait()
            try:
                with lease(store, ["edges", "boxes"]):
                    outcomes["held"] += 1
                    barrier.wait(60)  # no other one comes in meanwhile
            except InputError:
                outcomes["refused"] += 1
                barrier.wait(60)

        threads = [Thread(target=begin) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert outcomes == {"held": 1, "refused": 5} and not live_leases(store)


def test_claim_waits_for_a_later_one_and_gives_way_to_an_earlier_one(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another job's claim comes between the first look and the own claim."""
    put = type(store).put
    claims = iter(["f" * 17, "0"])

    def late(self: Store, name: str, content: bytes) -> None:
        monkeypatch.setattr(type(store), "put", put)
        hold(store, shards=[3, 8], claim=True, token=next(claims))
        put(self, name, content)

    monkeypatch.setattr(type(store), "put", late)
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        store.delete(FILE)

    monkeypatch.setattr(time, "sleep", sleep)
    with lease(store, ["edges"], (0, 5)):
        assert len(looks) == 1
    monkeypatch.setattr(type(store), "put", late)
    with pytest.raises(InputError, match="3:8"), lease(store, ["edges"], (0, 5)):
        pass
    assert live_leases(store) == ["running.json"]


def test_claim_that_stays_refuses_in_the_end(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a job whose machine stalls just then."""
    put = type(store).put
    monkeypatch.setattr(sys.modules["labeling.dataset.lease"], "CLAIM_PATIENCE", 0.2)

    def late(self: Store, name: str, content: bytes) -> None:
        monkeypatch.setattr(type(store), "put", put)
        hold(store, claim=True, token="f" * 17)
        put(self, name, content)

    monkeypatch.setattr(type(store), "put", late)
    with pytest.raises(InputError, match="is working on it"), lease(store, ["edges"]):
        pass
    assert live_leases(store) == ["running.json"]


def test_lease_that_another_job_took_for_dead_is_not_written_again(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys.modules["labeling.dataset.lease"], "HEARTBEAT", 0.05)
    with lease(store, ["edges"]):
        [name] = live_leases(store)
        before = store.read(f"edges/{name}")
        deadline = time.monotonic() + 120
        while store.read(f"edges/{name}") == before:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        store.delete(f"edges/{name}")
        while "another job may work on the same" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert not live_leases(store)


@pytest.mark.parametrize("content", [b"null", b"3", b"{}", b"{", b'{"host": "elsewhere"}'])
def test_file_that_is_no_lease_holds_nothing(store: Store, content: bytes) -> None:
    store.put(FILE, content)
    with lease(store, ["edges"]):
        pass


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


def live_leases(store: Store, group: str = "edges") -> list[str]:
    return list(store.files(group, "running"))


def test_lease_of_another_container_of_the_host_expires(store: Store) -> None:
    hold(store, started=1.0, namespace=1)  # a process that cannot be seen from here
    with pytest.raises(InputError, match="is working on it"), lease(store, ["edges"]):
        pass
    hold(store, namespace=1, time=time.time() - LEASE_EXPIRY - 1)  # its number is of another process here
    with lease(store, ["edges"]):
        pass
