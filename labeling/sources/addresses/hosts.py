"""Politeness and patience by host: few connections at once, a pace, pauses that it asks for, and when to give it up."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
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

    rate: requests per second of each connection that it holds, 0 for no limit;
    wake: called when more connections are wanted, or some are left over.
    """

    def __init__(self, name: str, rate: float, dead: DeadHosts, wake: Callable[[], None]) -> None:
        self.name = name
        self.held = 0  # connections
        self.contested = False  # whether other processes want those
        self._busy = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._rate = rate
        self._next = 0.0  # time.monotonic() of the next request
        self._failures = 0
        self._dead = dead
        self._wake = wake

    @property
    def wanted(self) -> int:
        """How many more connections could be used."""
        return len(self._waiting)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait until a request may be sent. Raises DeadHost."""
        self._check()
        if self._busy < self.held and not self._waiting:
            self._busy += 1
        else:
            await self._wait()
        try:
            while (wait := self._next - time.monotonic()) > 0:
                await asyncio.sleep(wait)
                self._check()
            self._check()
            if self._rate:
                self._next = max(self._next, time.monotonic()) + 1 / (self._rate * max(1, self.held))
            yield
        finally:
            self._busy -= 1
            if not self.contested:
                self._serve()
            if self._busy < self.held:
                self._wake()

    def grant(self, connections: int) -> None:
        """There are more connections."""
        self.held += connections
        self._serve()
        if self._busy < self.held:  # who waited for it has gone
            self._wake()

    def give_back(self) -> None:
        """Let go of the connections that nobody uses."""
        self.held = self._busy

    async def _wait(self) -> None:
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(mine)
        self._wake()
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():
                self._busy -= 1
                self._serve()
            elif mine in self._waiting:
                self._waiting.remove(mine)
            raise

    def _serve(self) -> None:
        """Let those who wait have the connections that nobody uses."""
        while self._waiting and self._busy < self.held:
            mine = self._waiting.popleft()
            if not mine.done():
                self._busy += 1
                mine.set_result(None)

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
