"""Helpers of a Slurm job's script, on its nodes: `python -m cluster.slurm.node address|port|joined|end …`."""

from __future__ import annotations

import random
import socket
import sys
import time
from contextlib import suppress

import psutil

# Below the ephemeral ports (32768 and up), which the system gives to any client.
PORTS = range(20_000, 32_000)
ATTEMPTS = 100
END_SECONDS = 10.0


def reachable_address(peer: str) -> str:
    """This machine's address in the network that leads to a peer.

    Nothing is sent. Raises OSError for a peer that has no address, or that no way leads to.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(peer, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)
        return str(probe.getsockname()[0])


def free_port() -> int:
    """A port that nothing listens on, drawn at random, since other jobs of this machine look for one as well."""
    for _ in range(ATTEMPTS):
        port = random.SystemRandom().choice(PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        return port
    raise OSError(f"no free port between {PORTS.start} and {PORTS.stop}")


def wait_until_joined(address: str, nodes: int, seconds: float) -> int:
    """Wait until the Ray at an address has so many nodes, or the time is over; returns how many it has."""
    import ray

    deadline = time.monotonic() + seconds
    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    try:
        while (alive := sum(node["Alive"] for node in ray.nodes())) < nodes and time.monotonic() < deadline:
            time.sleep(0.5)
        return alive
    finally:
        ray.shutdown()


def end(process: int, seconds: float = END_SECONDS) -> None:
    """Terminate a process. After some seconds, kill what is left of it and of the processes that it started.

    Ray's agents can outlive the rest, and only some sites end what a job leaves behind.
    """
    try:
        root = psutil.Process(process)
        tree = [root, *root.children(recursive=True)]
        root.terminate()
    except psutil.NoSuchProcess:
        return
    deadline = time.monotonic() + seconds
    while any(map(_runs, tree)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for survivor in filter(_runs, tree):
        with suppress(psutil.NoSuchProcess):
            survivor.kill()


def _runs(process: psutil.Process) -> bool:
    """Whether a process runs; a zombie does not."""
    with suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def main(question: str, *arguments: str) -> None:
    """Print what the script asks for, or end with a line that says why that is not possible."""
    if question == "address":
        print(reachable_address(*arguments))
    elif question == "port":
        print(free_port())
    elif question == "joined":
        address, nodes, seconds = arguments
        alive = wait_until_joined(address, int(nodes), float(seconds))
        if alive < int(nodes):
            sys.exit(
                f"{alive} of {nodes} nodes joined Ray within {seconds} s (start_seconds): the lines above "
                f"say why, or {address} cannot be reached from them"
            )
    elif question == "end":
        end(int(arguments[0]))
    else:
        raise ValueError(question)


if __name__ == "__main__":
    main(*sys.argv[1:])
