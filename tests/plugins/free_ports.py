"""Ports for servers that tests start."""

from __future__ import annotations

from cluster.slurm.node import free_port


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all different.

    They are drawn at random below the range that the system gives out by itself: tests of another process, which look
    for ports at the same moment, hardly draw the same ones, and no client of theirs is given one.
    """
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_port())
    return list(ports)
