"""What a machine must have for some of a job's workers, as far as arithmetic tells: of trainings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import cache

from cluster.work import MachineNeeds
from pipelines.jobs.specification import JobSpecification, TrainJob


def machine_needs(specification: JobSpecification) -> Callable[[int], MachineNeeds] | None:
    """Number of workers on a machine → what it must have. specification: a resolved one.

    None for jobs whose memory depends on what they read.
    """
    if not isinstance(specification, TrainJob) or not isinstance(specification.config, dict):
        return None
    values, workers = specification.config, specification.workers

    @cache
    def needs(together: int) -> MachineNeeds:
        from training.config import parse_config
        from training.host_memory import host_needs  # it imports torch

        config = parse_config(values, "config")
        count = workers.count if workers else config.workers.count
        least = count if isinstance(count, int) else count[0]
        return MachineNeeds(**asdict(host_needs(config, max(least, together), together)))

    return needs
