"""What is submitted to a target: a command, the resources it asks for, and the addresses it reads and writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from model.inputs import InputError

Phase = Literal["absent", "pending", "running", "ended"]  # of work at a target; "absent": it has no trace of it
MORE_CPUS = "ONEDIFFUSION_MORE_CPUS"  # CPUs of a job's cluster besides those that its workers ask for
WORK_VARIABLE = "ONEDIFFUSION_WORK"  # the environment variable that holds the name of the work in its processes


@dataclass(frozen=True)
class ResourceRequest:
    """How many workers, and what each needs.

    min_workers, max_workers: equal where the number is fixed. cpus, gpus, memory_gb: of each worker; a memory of 0
    leaves it to the target. gpu_type: as a target names its pools of GPUs; "" leaves it to the target.
    """

    min_workers: int = 1
    max_workers: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    memory_gb: float = 0.0
    gpu_type: str = ""


@dataclass(frozen=True)
class MachineNeeds:
    """What a machine must have for the workers on it, where that is known beforehand.

    memory: part → bytes; shared_memory of them are in /dev/shm, and of these object_store are for Ray's objects.
    disk: part → bytes. checkpoint_seconds: from a notice that the machine goes until all is saved; 0 where nothing has
    to be.
    """

    memory: Mapping[str, float]
    object_store: float
    shared_memory: float
    disk: Mapping[str, float]
    checkpoint_seconds: float = 0.0


@dataclass(frozen=True)
class Work:
    """One attempt at a job, as targets take it.

    name: unique to the attempt and a DNS label (as "label-1a2b3c4d-1"). A target finds the work by this name, so
    nothing is lost when a submission is killed half-way. arguments: what follows `python -m pipelines`.
    address: the job's folder (local or s3://), which the work keeps its state and log in.
    data: the other addresses that it reads and writes. needs: what a machine with so many of the workers must have;
    None where nobody knows. tasks: more than 1 for a job array: so many processes with the same arguments and
    `--task NUMBER`, each with `resources` of its own.
    """

    name: str
    kind: str
    arguments: tuple[str, ...]
    address: str
    resources: ResourceRequest = ResourceRequest()
    data: tuple[str, ...] = ()
    needs: Callable[[int], MachineNeeds] | None = field(default=None, compare=False, repr=False)
    tasks: int = 1


@dataclass(frozen=True)
class TargetState:
    """What a target says of a piece of work: its phase, and one line for a person where there is something to say."""

    phase: Phase
    reason: str = ""


@dataclass(frozen=True)
class Finding:
    """One line of `onediffusion doctor`.

    check: what was looked at; where: a node, a target, or several in words; found: what is there; remedy: what to do
    where that is not as it should be.
    """

    check: str
    where: str
    ok: bool
    found: str
    remedy: str = ""


class AlreadySubmitted(InputError):
    """The target has work of this name already. What is recorded about that work is true and stays."""
