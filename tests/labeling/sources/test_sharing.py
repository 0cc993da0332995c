"""Connections to hosts that processes share: few for each host, for everyone in turn, and none lost with a process."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from picture_server import Answer, PictureServer

from labeling.sources.addresses import sharing
from labeling.sources.addresses.fetch import Fetcher
from labeling.sources.addresses.policy import FetchPolicy
from labeling.sources.addresses.sharing import Grant, HostShares

A = "a.test"


def test_a_host_has_as_many_connections_as_it_may_whoever_asks() -> None:
    shares = HostShares(3)
    assert shares.exchange("one", {}, {A: 2, "b.test": 5}, 9) == Grant({A: 2, "b.test": 3})
    assert shares.exchange("two", {}, {A: 2}, 9).connections == {A: 1}
    assert shares.exchange("three", {}, {A: 2}, 9).connections == {}
    assert shares.exchange("one", {A: 2, "b.test": 3}, {}, 4) == Grant({}, frozenset({A}))
    assert shares.exchange("one", {A: 1}, {}, 8).contested == {A}  # one of them is free now, for who has waited
    assert shares.exchange("four", {}, {A: 1}, 9).connections == {}
    assert shares.exchange("three", {}, {A: 2}, 9).connections == {A: 1}


def test_room_of_a_process_is_kept_to() -> None:
    asked = HostShares(8).exchange("one", {}, {f"{n}.test": 2 for n in range(9)}, 5)
    assert sum(asked.connections.values()) == 5


def test_who_does_not_want_any_more_blocks_nobody() -> None:
    shares = HostShares(1)
    for name in ("one", "two", "three"):
        shares.exchange(name, {}, {A: 1}, 1)
    shares.exchange("two", {}, {}, 1)
    shares.exchange("one", {}, {}, 1)
    assert shares.exchange("three", {}, {A: 1}, 1).connections == {A: 1}


def test_answer_that_was_lost_and_process_that_is_gone_keep_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(sharing.time, "monotonic", lambda: clock[0])
    shares = HostShares(2)
    assert shares.exchange("one", {}, {A: 2}, 9).connections == {A: 2}
    assert shares.exchange("one", {}, {A: 2}, 9).connections == {A: 2}  # it has not got the first two
    clock[0] = sharing.SILENT_SECONDS + 1
    assert shares.exchange("two", {}, {A: 2}, 9).connections == {A: 2}


def test_fetchers_together_keep_to_the_limit_and_all_get_their_turn() -> None:
    policy = replace(FetchPolicy.of(allow_private=["127.0.0.1"]), host_connections=3)
    shares = HostShares(3)

    def fetch(_: int) -> list[Any]:
        return Fetcher(policy, shares).fetch_all([server.url("/ok")] * 8, lambda index, raw: index)

    with PictureServer() as server, ThreadPoolExecutor(5) as pool:
        server.answers["/ok"] = Answer(b"x", wait=0.03)
        found = list(pool.map(fetch, range(5)))  # more processes than connections
        assert found == [list(range(8))] * 5
        assert server.most <= 3
