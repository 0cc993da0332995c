"""Between the processes of a job: whether they reach each other's ports, and how fast they sum gradients.

Bandwidths are bus bandwidths, 2 (n - 1) / n × bytes / seconds, as NVIDIA's nccl-tests report them (PERFORMANCE.md,
"AllReduce"): they do not depend on the number of ranks n.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any

from cluster.work import Finding
from model.inputs import one_line

CONNECT_SECONDS = 10.0
GROUP_SECONDS = 120.0
ROUNDS, WARM_UP = 5, 2
# Bytes that are summed: as a bucket of gradients; gloo goes through this machine's memory.
SIZES = {"nccl": 256 << 20, "gloo": 16 << 20}
# What is below this has fallen back to sockets of a slow network, in bytes/s; gloo has none.
LEAST = {("nccl", "ranks of a node"): 5e9, ("nccl", "nodes"): 1e9}


class Rank:
    """A process of the examination, as an actor. It holds what a training's worker would hold."""

    def __init__(self, gpus: float) -> None:
        self.gpus = gpus
        self.backend = "nccl" if gpus else "gloo"
        self._listener: socket.socket | None = None

    def place(self) -> tuple[str, str, str]:
        """(id of the Ray node, its address, the host's name)."""
        import ray

        return ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address(), socket.gethostname()

    def machine(self, sent: dict[str, str], object_store: float) -> list[Finding]:
        """What this rank's node has."""
        from cluster.ray_internals import own_node
        from pipelines.doctor.machine import examine_machine

        node = own_node()
        folder = node.get_session_dir_path() if node else None
        return examine_machine(sent, self.gpus, object_store, folder)

    def store(self, address: str) -> list[Finding]:
        """What a place of data allows from this node."""
        from pipelines.doctor.place import place_findings

        return place_findings(address, socket.gethostname())

    def listen(self) -> int:
        """Listen on a port that the system chooses, as torch's rendezvous does; the port."""
        self._listener = socket.create_server(("", 0))
        threading.Thread(target=_accept, args=(self._listener,), daemon=True).start()
        return int(self._listener.getsockname()[1])

    def reach(self, addresses: list[tuple[str, int]]) -> list[str]:
        """Those of the addresses that cannot be connected to from here, with the reason."""
        failures = []
        for host, port in addresses:
            try:
                socket.create_connection((host, port), CONNECT_SECONDS).close()
            except OSError as error:
                failures.append(f"{host}:{port} ({error.strerror or one_line(error)})")
        return failures

    def free_port(self) -> int:
        """A port that nothing listens on now."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return int(probe.getsockname()[1])

    def all_reduce(self, rank: int, count: int, address: str) -> float:
        """Bus bandwidth of an all-reduce of `count` ranks in bytes/s. address: HOST:PORT of rank 0."""
        import torch
        import torch.distributed as dist

        size = SIZES[self.backend]
        dist.init_process_group(
            self.backend,
            init_method=f"tcp://{address}",
            rank=rank,
            world_size=count,
            timeout=timedelta(seconds=GROUP_SECONDS),
        )
        try:
            values = torch.ones(size // 4, device="cuda" if self.gpus else "cpu")
            for _ in range(WARM_UP):
                dist.all_reduce(values)
            _finish()
            began = time.monotonic()
            for _ in range(ROUNDS):
                dist.all_reduce(values)
            _finish()
            seconds = (time.monotonic() - began) / ROUNDS
        finally:
            dist.destroy_process_group()
        return 2 * (count - 1) / count * size / seconds


def bandwidth_finding(backend: str, between: str, count: int, bandwidth: float) -> Finding:
    """bandwidth: in bytes/s of the bus; between: "ranks of a node" or "nodes"."""
    least = LEAST.get((backend, between), 0.0)
    told = f"{bandwidth / 1e9:.2f} GB/s over {count} ({backend})"
    remedy = ""
    if bandwidth < least:
        of_nodes = "name the fast network (NCCL_SOCKET_IFNAME, NCCL_IB_HCA, EFA)"
        way = of_nodes if between == "nodes" else "unset NCCL_P2P_DISABLE, give it shared memory"
        remedy = f"under {least / 1e9:.0f} GB/s: NCCL_DEBUG=INFO tells its way; {way}"
    return Finding("all-reduce", f"between {between}", not remedy, told, remedy)


def port_finding(failures: list[str], count: int) -> Finding:
    """failures: "FROM: HOST:PORT (reason)" of connections that failed; count: of ranks."""
    if not failures:
        return Finding("ports", f"{count} ranks", True, "each reaches each, on a port that the system chose")
    remedy = "open all TCP ports between the nodes (security group, network policy, firewall)"
    return Finding("ports", f"{count} ranks", False, one_line("; ".join(failures), 200), remedy)


def _accept(listener: socket.socket) -> None:
    with suppress(OSError):
        while True:
            listener.accept()[0].close()


def _finish() -> None:
    """Wait for the device: NCCL's calls return before their work is done."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure_links(ranks: list[Any], nodes: list[str], addresses: list[str], backend: str) -> list[Finding]:
    """Ports and bandwidths between actors of `Rank`. nodes, addresses: of each rank's node.

    A group that does not come together in time is a finding, not an error.
    """
    import ray

    ports = ray.get([rank.listen.remote() for rank in ranks])
    listening = list(zip(addresses, ports, strict=True))
    failures = ray.get([rank.reach.remote(listening) for rank in ranks])
    told = [f"{here}: {line}" for here, lines in zip(addresses, failures, strict=True) for line in lines]
    findings = [port_finding(told, len(ranks))]
    if told:
        return findings
    by_node: dict[str, list[int]] = {}
    for index, node in enumerate(nodes):
        by_node.setdefault(node, []).append(index)
    fullest = max(by_node.values(), key=len)
    for between, group in (("ranks of a node", fullest), ("nodes", [members[0] for members in by_node.values()])):
        if len(group) > 1:
            findings.append(_bandwidth([ranks[index] for index in group], addresses[group[0]], backend, between))
    return findings


def _bandwidth(ranks: list[Any], address: str, backend: str, between: str) -> Finding:
    import ray

    meeting = f"{address}:{ray.get(ranks[0].free_port.remote())}"
    calls = [rank.all_reduce.remote(index, len(ranks), meeting) for index, rank in enumerate(ranks)]
    try:
        bandwidth = min(ray.get(calls, timeout=2 * GROUP_SECONDS))
    except Exception as error:
        remedy = f"NCCL_DEBUG=INFO tells more; name the network of the nodes ({backend.upper()}_SOCKET_IFNAME)"
        return Finding("all-reduce", f"between {between}", False, one_line(error, 200), remedy)
    return bandwidth_finding(backend, between, len(ranks), bandwidth)
