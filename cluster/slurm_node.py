"""What a Slurm job's script asks on its nodes; `python -m cluster.slurm_node address|port|joined …`."""

from __future__ import annotations

import os
import random
import socket
import sys
import time

# Below the ports that systems give out by themselves (32768 and up), which come and go all the time.
PORTS = range(20_000, 32_000)
ATTEMPTS = 100


def reachable_address(peer: str) -> str:
    """This machine's address on the way to another: of several networks the one that leads there.

    Nothing is sent. Raises OSError for a peer that has no address, or that no way leads to.
    """
    family, kind, protocol, _, place = socket.getaddrinfo(peer, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(place)
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
    """Wait until so many nodes are in the Ray of an address, or the time is over; how many there are."""
    import ray

    deadline = time.monotonic() + seconds
    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    try:
        while (alive := sum(node["Alive"] for node in ray.nodes())) < nodes and time.monotonic() < deadline:
            time.sleep(0.5)
        return alive
    finally:
        ray.shutdown()


def main(question: str, *arguments: str) -> None:
    """Answer the script: print what it asks for, or end with a line that says why not."""
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
    else:
        raise ValueError(question)


if __name__ == "__main__":
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    main(*sys.argv[1:])
