"""What a site says of its partitions, nodes and accounts, beside what a target asks for.

The texts are those of `scontrol --oneliner show partition|node` and `sacctmgr --parsable2 show associations`.
"""

from __future__ import annotations

import math
import re

from cluster.slurm.script import Shape
from cluster.target import SlurmTarget
from cluster.work import Finding
from model.inputs import nearest

_CHECK = "Slurm's partition"
_LIMITS = "limits of the account"


def partition_findings(target: SlurmTarget, shape: Shape, partitions: str, nodes: str) -> list[Finding]:
    """Whether the target's partition is up, allows its hours, and has nodes as large as the target says."""
    known = {fields["PartitionName"]: fields for fields in _records(partitions) if "PartitionName" in fields}
    default = next((name for name, fields in known.items() if fields.get("Default") == "YES"), None)
    name = target.partition or default
    if name is None:
        remedy = f"name one as `partition` in the target: {', '.join(known)}"
        return [Finding(_CHECK, "the site", False, "no partition is the default", remedy)]
    if name not in known:
        remedy = f"correct `partition` in the target{nearest(name, list(known))}; there are {', '.join(known)}"
        return [Finding(_CHECK, name, False, "no such partition", remedy)]
    fields = known[name]
    state = fields.get("State", "")
    findings = [
        Finding(_CHECK, name, state == "UP", state, "" if state == "UP" else "wait, or choose another `partition`")
    ]
    hours, most = target.hours, _hours(fields.get("MaxTime", ""))
    told = "no time limit" if most == math.inf else f"at most {most:g} h"
    if hours is None:
        found = f"{told}; the target names none, so a job gets {fields.get('DefaultTime', 'the default')}"
        findings.append(Finding("time limit", name, True, found))
    else:
        remedy = "" if hours <= most else "lower `hours`; jobs are told before the limit, and continue"
        findings.append(Finding("time limit", name, hours <= most, f"{told}, asked for {hours:g} h", remedy))
    return [*findings, _nodes(target, shape, name, nodes)]


def association_findings(target: SlurmTarget, user: str, associations: str) -> list[Finding]:
    """What accounting allows the user: under which accounts, and within which limits."""
    rows = [line.split("|") for line in associations.splitlines() if line.strip()]
    if not rows:
        remedy = f"ask who runs the site to add {user} to an account (`sacctmgr add user`)"
        return [Finding(_LIMITS, user, False, "accounting does not know this user", remedy)]
    accounts = [row[0] for row in rows]
    if target.account and target.account not in accounts:
        remedy = f"correct `account` in the target{nearest(target.account, accounts)}; there are {', '.join(accounts)}"
        return [Finding(_LIMITS, target.account, False, "not an account of this user", remedy)]
    findings = []
    for account, qos, jobs, submitted, wall, together in rows:
        if target.account and account != target.account:
            continue
        limits = {"jobs": jobs, "submitted": submitted, "time": wall, "together": together, "QOS": qos}
        told = ", ".join(f"{name} {limit}" for name, limit in limits.items() if limit) or "none"
        most = _hours(wall) if wall else math.inf
        fits = target.hours is None or target.hours <= most
        findings.append(Finding(_LIMITS, account, fits, told, "" if fits else f"lower `hours` to {most:g} or less"))
    return findings


def _nodes(target: SlurmTarget, shape: Shape, partition: str, nodes: str) -> Finding:
    """Whether enough nodes of the partition are as large as the target says."""
    here = [fields for fields in _records(nodes) if partition in fields.get("Partitions", "").split(",")]
    wanted = f"{shape.cpus} CPUs" + (f", {shape.gpus} GPUs" if shape.gpus else "")
    wanted += f", {shape.memory_mb / 1024:.0f} GB" if shape.memory_mb else ""
    fitting = [fields for fields in here if _fits(target, shape, fields)]
    usable = [fields for fields in fitting if not re.search("DOWN|DRAIN|FAIL|NOT_RESPONDING", fields.get("State", ""))]
    found = f"{len(usable)} of {len(here)} nodes are up and have {wanted} each; the job takes {shape.min_nodes}"
    if len(usable) >= shape.min_nodes:
        return Finding("nodes", partition, True, found)
    if len(fitting) >= shape.min_nodes:
        return Finding("nodes", partition, False, found, "wait for nodes that are down or drained (`sinfo -R`)")
    remedy = "lower cpus_per_node, gpus_per_node or memory_gb_per_node, or ask for fewer workers"
    return Finding("nodes", partition, False, found, remedy)


def _fits(target: SlurmTarget, shape: Shape, fields: dict[str, str]) -> bool:
    gpus = 0
    for kind, count in re.findall(r"gpu(?::([^:,(]+))?:(\d+)", fields.get("Gres", "")):
        gpus += int(count) if target.gpu_type in (None, kind) else 0
    enough = int(fields.get("CPUTot", 0)) >= shape.cpus and gpus >= shape.gpus
    return enough and int(fields.get("RealMemory", 0)) >= shape.memory_mb


def _records(text: str) -> list[dict[str, str]]:
    """KEY=VALUE pairs of each line; values with spaces (a reason, an operating system) are cut, and not needed."""
    return [dict(re.findall(r"(\w+)=(\S*)", line)) for line in text.splitlines() if line.strip()]


def _hours(limit: str) -> float:
    """Hours of a time limit as Slurm writes it: [DAYS-]HH:MM:SS, or UNLIMITED."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", limit)
    if not match:
        return math.inf
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return days * 24 + hours + minutes / 60 + seconds / 3600
