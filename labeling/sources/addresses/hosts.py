"""Politeness and patience by host: few connections at once, a pace, pauses that it asks for, and when to give it up."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

FAILURES = 20  # in a row, without an answer between them, after which a host is taken for dead
DEAD_SECONDS = 300.0
MANY = 10_000  # dead hosts that are remembered


class DeadHost(Exception):
    """A host has not answered lately and is not asked again for a while."""


class DeadHosts:
    """Hosts that were given up, for some minutes, over all shards that a process fetches."""

    def __init__(self) -> None:
        self._until: OrderedDict[str, float] = OrderedDict()

    def __contains__(self, host: str) -> bool:
        return self._until.get(host, 0.0) > time.monotonic()

    def add(self, host: str) -> None:
        """Give a host up for DEAD_SECONDS."""
        self._until[host] = time.monotonic() + DEAD_SECONDS
        self._until.move_to_end(host)
        while len(self._until) > MANY:
            self._until.popitem(last=False)


class Host:
    """One host, as one event loop talks to it.

    connections: at once; rate: requests per second, 0 for no limit.
    """

    def __init__(self, name: str, connections: int, rate: float, dead: DeadHosts) -> None:
        self.name = name
        self._slots = asyncio.Semaphore(connections)
        self._interval = 1 / rate if rate else 0.0
        self._next = 0.0  # time.monotonic() of the next request
        self._failures = 0
        self._dead = dead

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait until a request may be sent. Raises DeadHost."""
        self._check()
        async with self._slots:
            while (wait := self._next - time.monotonic()) > 0:
                await asyncio.sleep(wait)
                self._check()
            self._check()
            self._next = max(self._next, time.monotonic() + self._interval)
            yield

    def pause(self, seconds: float) -> None:
        """Send nothing for so long, as the host has asked."""
        self._next = max(self._next, time.monotonic() + seconds)

    def answered(self) -> None:
        """The host lives."""
        self._failures = 0

    def failed(self) -> None:
        """The host did not answer, or said that it cannot."""
        self._failures += 1
        if self._failures >= FAILURES:
            self._dead.add(self.name)

    def _check(self) -> None:
        if self.name in self._dead:
            raise DeadHost(f"host {self.name} failed {FAILURES} times in a row and was not asked further")
