"""What a labeling job gives each labeler: resources belong to the job, and never to a shard's recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, model_validator

from model.inputs.schema import Section


class Resources(Section):
    """Resources of one labeler in a job; what is None is chosen by the job.

    gpus: share of a GPU for each process of the network, or number of GPUs; None: 1 where the labeler has a network
    and the cluster has GPUs. cpus: CPUs for each process. batch: rows of a call. processes: least and most processes
    of the network. timeout: seconds that a call may take before its rows are tried one by one; memory_gb: what a
    process may hold; max_errors: share of rows in error for which nobody can have planned, above which the labeler
    stops (in jobs of at least 100 rows).
    """

    gpus: Annotated[float, Field(ge=0)] | None = None
    cpus: Annotated[float, Field(gt=0)] = 1.0
    batch: Annotated[int, Field(ge=1)] | None = None
    processes: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None
    timeout: Annotated[float, Field(gt=0)] = 600.0
    memory_gb: Annotated[float, Field(gt=0)] | None = None
    max_errors: Annotated[float, Field(ge=0, le=1)] = 0.05

    @model_validator(mode="after")
    def _least_before_most(self) -> Resources:
        if self.processes and self.processes[0] > self.processes[1]:
            raise ValueError(f"processes: {self.processes[0]} to {self.processes[1]}; turn them round")
        return self


ResourcesByLabeler = Mapping[str, Resources]  # by labeler or group name; a group's own go over its labeler's
