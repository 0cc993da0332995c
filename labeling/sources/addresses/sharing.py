"""Who may talk to which host: connections that the processes of an ingest share, so that each host has few of them.

A process says what it holds and what it wants, and hears what it gets. Nothing else is remembered: a process that ends,
and one that keeps these books and is started again, need no word of their own.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

SILENT_SECONDS = 60.0  # after which a process that says nothing has ended


@dataclass(frozen=True)
class Grant:
    """connections: to each host, more than before; contested: hosts of which others want what this process holds."""

    connections: Mapping[str, int]
    contested: frozenset[str] = frozenset()


class Shares(Hashable, Protocol):
    """What a process asks; the same for all fetching of an ingest."""

    def exchange(self, holder: str, held: Mapping[str, int], wanted: Mapping[str, int], room: int) -> Grant:
        """See `HostShares.exchange`."""


@dataclass
class _Holder:
    heard: float
    held: Counter[str] = field(default_factory=Counter)
    wanted: set[str] = field(default_factory=set)


class HostShares:
    """The books. connections: to one host, of all processes together."""

    def __init__(self, connections: int) -> None:
        self._connections = connections
        self._holders: dict[str, _Holder] = {}
        self._queues: dict[str, list[str]] = {}  # host → who has asked in vain, in order
        self._held: Counter[str] = Counter()  # by host, of all
        self._lock = threading.Lock()

    def exchange(self, holder: str, held: Mapping[str, int], wanted: Mapping[str, int], room: int) -> Grant:
        """Note what a holder has and wants; what it gets.

        held: connections by host that it has now; wanted: how many more; room: how many more it can use in all.
        """
        with self._lock:
            now = time.monotonic()
            for name in [name for name, one in self._holders.items() if now - one.heard > SILENT_SECONDS]:
                self._note(name, {}, {})
                del self._holders[name]
            own = self._holders.setdefault(holder, _Holder(now))
            own.heard = now
            self._note(holder, held, wanted)
            granted: dict[str, int] = {}
            for host, count in wanted.items():
                given = min(count, room, self._free_for(holder, host))
                if given > 0:
                    granted[host] = given
                    room -= given
                    self._leave(holder, host)
                elif holder not in (queue := self._queues.setdefault(host, [])):
                    queue.append(holder)
            for host, given in granted.items():
                own.held[host] += given
                self._held[host] += given
            if not (own.held or own.wanted):
                del self._holders[holder]
            return Grant(granted, frozenset(host for host in own.held if set(self._queues.get(host, ())) - {holder}))

    def _note(self, holder: str, held: Mapping[str, int], wanted: Mapping[str, int]) -> None:
        own = self._holders[holder]
        self._held.subtract(own.held)
        self._held.update(held)
        for host in [host for host in {*own.held, *held} if not self._held[host]]:
            del self._held[host]
        for host in own.wanted - set(wanted):
            self._leave(holder, host)
        own.held, own.wanted = Counter(held), set(wanted)

    def _free_for(self, holder: str, host: str) -> int:
        """What is free of a host when one is left for each of those who asked before."""
        queue = self._queues.get(host, [])
        before = queue.index(holder) if holder in queue else len(queue)
        return self._connections - self._held[host] - before

    def _leave(self, holder: str, host: str) -> None:
        queue = self._queues.get(host, [])
        if holder in queue:
            queue.remove(holder)
            if not queue:
                del self._queues[host]
