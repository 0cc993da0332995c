"""What the target runs for `onediffusion doctor`: a process for each worker of a job, and what they find."""

from __future__ import annotations

import json
import socket
from dataclasses import asdict
from typing import Any

from cluster.ray_environment import starts_own_ray
from cluster.session import cluster_has, ray_session
from cluster.work import Finding
from model.inputs import one_line

MARK = "onediffusion-doctor:"  # begins the line with the findings, in whatever log it arrives
JOIN_SECONDS = 300.0
RESULTS = "doctor"


def run_examination(request: dict[str, Any]) -> list[Finding]:
    """The findings of a request: workers, cpus, gpus (of each), address (or None), versions (of the sender).

    They are printed in one line, and written to RESULTS/NAME.json below the address where there is one.
    """
    try:
        findings = _findings(request)
    except Exception as error:  # what keeps a job from running is what was asked for
        findings = [
            Finding("Ray", socket.gethostname(), False, one_line(error, 200), "see `logs` of the target, and mend that")
        ]
    text = json.dumps([asdict(finding) for finding in findings])
    print(f"{MARK}{text}", flush=True)
    if request["address"]:
        from labeling.dataset import open_store

        open_store(request["address"]).put(f"{RESULTS}/{request['name']}.json", text.encode())
    return findings


def _findings(request: dict[str, Any]) -> list[Finding]:
    with ray_session(memory=200 << 20):
        import ray

        from pipelines.doctor.links import Rank, measure_links

        count, cpus, gpus = request["workers"], request["cpus"], request["gpus"]
        for unit, needed in (("CPU", count * cpus), ("GPU", count * gpus)):
            if needed > cluster_has(unit) and starts_own_ray():
                found = f"{cluster_has(unit):g} {unit}s, and {count} workers ask for {needed:g}"
                remedy = f"ask for less (--workers, --{unit.lower()}s)"
                return [Finding(f"{unit}s", socket.gethostname(), False, found, remedy)]
        actor = ray.remote(num_cpus=cpus, num_gpus=gpus, scheduling_strategy="SPREAD")(Rank)
        ranks = [actor.remote(gpus) for _ in range(count)]
        places = [rank.place.remote() for rank in ranks]
        ready, waiting = ray.wait(places, num_returns=count, timeout=JOIN_SECONDS)
        if waiting:
            found = f"{len(ready)} of {count} workers started within {JOIN_SECONDS:.0f} s"
            return [Finding("workers", "the cluster", False, found, "ask for fewer or smaller ones, or add nodes")]
        nodes, addresses, _hosts = (list(part) for part in zip(*ray.get(places), strict=True))
        stores = {node["NodeID"]: node["Resources"].get("object_store_memory", 0.0) for node in ray.nodes()}
        first = {node: rank for rank, node in reversed(list(zip(ranks, nodes, strict=True)))}
        asked = [rank.machine.remote(request["versions"], stores.get(node, 0.0)) for node, rank in first.items()]
        findings = [finding for own in ray.get(asked) for finding in own]
        if request["address"]:
            asked = [rank.store.remote(request["address"]) for rank in first.values()]
            findings += [finding for own in ray.get(asked) for finding in own]
        return findings + measure_links(ranks, nodes, addresses, "nccl" if gpus else "gloo")
