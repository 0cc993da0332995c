"""The batch script of a Slurm job: how many nodes, how much of each, and what runs on them."""

from __future__ import annotations

import math
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from cluster.checkout import CHECKOUT
from cluster.ray_environment import AUTHENTICATION, RAY_ENVIRONMENT
from cluster.target import SlurmTarget
from cluster.user_data import data_folder
from cluster.work import WORK_VARIABLE, ResourceRequest, Work
from model.inputs import InputError

BODY = Path(__file__).with_name("job.sh")


@dataclass(frozen=True)
class Shape:
    """What a job asks for: a range of nodes, and on each so many CPUs, GPUs and MB (0: the site's default)."""

    min_nodes: int
    max_nodes: int
    cpus: int
    gpus: int
    memory_mb: int

    @property
    def is_elastic(self) -> bool:
        return self.min_nodes < self.max_nodes


def node_shape(target: SlurmTarget, request: ResourceRequest) -> Shape:
    """Nodes for so many workers, as many on a node as fit; a job that fills no node asks for its share of one.

    Raises InputError for a worker that is larger than a node.
    """
    # A part of a GPU comes from one GPU; what is left of that one may be too little for another worker.
    gpus = 1 / math.floor(1 / request.gpus + 1e-9) if 0 < request.gpus < 1 else request.gpus
    limits = (
        ("CPUs", "cpus_per_node", request.cpus, target.cpus_per_node),
        ("GPUs", "gpus_per_node", gpus, target.gpus_per_node),
        ("GB", "memory_gb_per_node", request.memory_gb, target.memory_gb_per_node or math.inf),
    )
    capacities = []
    for unit, key, demand, offer in limits:
        if demand > offer:
            raise InputError(
                f"a worker needs {demand:g} {unit}, and the nodes of this target have {offer:g} ({key}); "
                "let the job ask for less, or correct the target"
            )
        if demand and offer < math.inf:
            capacities.append(int(offer / demand + 1e-9))
    fits = min(capacities, default=request.max_workers)  # workers on one node
    max_nodes = math.ceil(request.max_workers / fits)
    together = math.ceil(request.max_workers / max_nodes)
    share = 1.0 if target.exclusive else min(1.0, together / fits)
    memory = max(share * (target.memory_gb_per_node or 0.0), together * request.memory_gb)
    return Shape(
        min_nodes=math.ceil(request.min_workers / fits),
        max_nodes=max_nodes,
        cpus=max(1, math.ceil(share * target.cpus_per_node - 1e-9)),
        gpus=target.gpus_per_node if target.exclusive else math.ceil(together * gpus - 1e-9),
        memory_mb=math.ceil(memory * 1024),
    )


def script(target: SlurmTarget, work: Work) -> str:
    """The whole batch script of a piece of work. Holds no secret. Raises InputError for what the target cannot run."""
    variables = {**AUTHENTICATION, **RAY_ENVIRONMENT, **target.environment, WORK_VARIABLE: work.name}
    shape = node_shape(target, work.resources)
    lines = ["#!/bin/bash", *(f"#SBATCH {option}" for option in _options(target, work, shape)), ""]
    lines += target.setup
    lines += [
        "{ set +eux; } 2>/dev/null # whatever the lines above have set: what is exported below is not to be printed",
        "# The submitter's environment comes with the job: S3 credentials travel in it, or lie in ~/.aws of the nodes.",
        "# What it says of a Ray is about another one.",
        'for name in "${!RAY_@}"; do unset "$name"; done',
        *(f"export {name}={shlex.quote(value)}" for name, value in variables.items()),
    ]
    values = {
        "python": target.python or sys.executable,
        "working_dir": target.working_dir or str(CHECKOUT),
        "scratch_root": target.scratch.rstrip("/"),
        "cpus": shape.cpus,
        "gpus": shape.gpus,
        "gres": gres(target, shape),
        "object_store": round(target.object_store_gb * (1 << 30)) if target.object_store_gb else "",
        "fixed": "no" if shape.is_elastic else "yes",
        "start_seconds": target.start_seconds,
        "checkpoint_seconds": target.checkpoint_seconds,
        "requeue": "yes" if target.requeue else "no",
    }
    lines += [f"{name}={shlex.quote(str(value))}" for name, value in values.items()]
    task = ' --task "$SLURM_ARRAY_TASK_ID"' if work.tasks > 1 else ""
    lines += [f"arguments=({shlex.join(work.arguments)}{task})", f"container=({shlex.join(_container(target))})"]
    lines += ['export PYTHONPATH="$working_dir${PYTHONPATH:+:$PYTHONPATH}"', "", BODY.read_text()]
    return "\n".join(lines)


def _container(target: SlurmTarget) -> list[str]:
    """Options of pyxis, which srun has where that is installed (its README, "Usage"); none without a container."""
    if not target.container:
        return []
    own = [target.scratch.rstrip("/"), target.working_dir or str(CHECKOUT)]
    mounts = [*(f"{folder}:{folder}" for folder in own), *target.container_mounts]
    mounted = f"--container-mounts={','.join(mounts)}"
    return [f"--container-image={target.container}", mounted, "--no-container-mount-home"]


def output_file(target: SlurmTarget, name: str, task: int | None = None) -> Path:
    """The file that Slurm writes the output of a job to, or of a task of it: on the shared disk, or on the first node.

    task: its number in a job array.
    """
    file = f"{name}.out" if task is None else f"{name}.{task}.out"
    return (script_folder(target) if target.shared_disk else Path(target.scratch)) / file


def script_folder(target: SlurmTarget) -> Path:
    """The folder on this machine for scripts and, on a shared disk, their output."""
    return Path(target.folder).expanduser().absolute() if target.folder else data_folder() / "slurm"


def gres(target: SlurmTarget, shape: Shape) -> str:
    """GPUs of a node as sbatch and srun take them; "" for none."""
    return ":".join(filter(None, ["gpu", target.gpu_type, str(shape.gpus)])) if shape.gpus else ""


def _options(target: SlurmTarget, work: Work, shape: Shape) -> list[str]:
    gpus = gres(target, shape)
    output = str(output_file(target, work.name)).replace("%", "%%")
    at_once = f"%{target.tasks_at_once}" if target.tasks_at_once else ""
    options = [
        f"--job-name={work.name}",
        # Two machines may send a job at the same time, and only one may run: the later waits for the earlier. Tasks of
        # an array have one name, and would wait for each other; they hold their shards themselves.
        f"--array=0-{work.tasks - 1}{at_once}" if work.tasks > 1 else "--dependency=singleton",
        f"--nodes={shape.min_nodes}-{shape.max_nodes}" if shape.is_elastic else f"--nodes={shape.max_nodes}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={shape.cpus}",
        *([f"--gres={gpus}"] if gpus else []),
        *([f"--mem={shape.memory_mb}M"] if shape.memory_mb else ["--mem=0"] if target.exclusive else []),
        *(["--exclusive"] if target.exclusive else []),
        *([f"--time={math.ceil(target.hours * 60)}"] if target.hours else []),
        *(
            f"--{name}={value}"
            for name in ("partition", "account", "qos", "reservation", "constraint")
            if (value := getattr(target, name))
        ),
        "--export=ALL",
        f"--signal=B:USR1@{target.checkpoint_seconds}",
        "--requeue" if target.requeue else "--no-requeue",
        "--open-mode=append",
        f"--output={output.removesuffix('out') + '%a.out' if work.tasks > 1 else output}",
        "--chdir=/",
        *target.options,
    ]
    return [shlex.quote(option) for option in options]
