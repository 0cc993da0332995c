"""What is submitted to a target: a command, how much it needs, and which places it reads and writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model.inputs import InputError

Phase = Literal["absent", "pending", "running", "ended"]


@dataclass(frozen=True)
class Workers:
    """How many workers, and what each needs.

    least, most: workers (equal where the number is fixed); cpus, gpus: of each; memory_gb: of each, 0 for the target's.
    """

    least: int = 1
    most: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    memory_gb: float = 0.0


@dataclass(frozen=True)
class Work:
    """One attempt at a job.

    name: unique to the attempt and a DNS label (as "label-1a2b3c4d-1"), by which a target finds it again, so that
    nothing is lost when a submission is killed half-way. arguments: what follows `python -m pipelines`.
    address: the folder (local or s3://) of the attempt's job, which the work keeps its state and log in.
    places: addresses it reads and writes.
    """

    name: str
    kind: str
    arguments: tuple[str, ...]
    address: str
    workers: Workers = Workers()
    places: tuple[str, ...] = ()


@dataclass(frozen=True)
class NativeState:
    """What a target says of a piece of work: its phase, and one line for a person where there is something to say."""

    phase: Phase
    reason: str = ""


class AlreadyThere(InputError):
    """The target has work of this name: what is noted about it is about that work, and stays."""
