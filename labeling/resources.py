"""What a labeling job gives each labeler: resources belong to the job, and never to a shard's recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from labeling.registry import base_name, group_name, is_known, labeler_names
from model.inputs import InputError, nearest
from model.inputs.schema import Section, split_range, validate


class Resources(Section):
    """Resources of one labeler in a job; what is None is chosen by the job.

    gpus: share of a GPU for each process of the network, or number of GPUs; None: 1, or the part of one that there is
    for each network, where the labeler has a network and the cluster has GPUs. cpus: CPUs for each process; that of a
    network on a GPU takes none from others unless they are given. batch: rows of a call. processes: least and most
    processes of the network; None: one, and more as it is needed and the GPUs allow. timeout: seconds that a call may
    take before its rows are tried one by one; memory_gb: what a process may hold; max_errors: share of rows in error
    for which nobody can have planned, above which the labeler stops (in jobs of at least 100 rows); python: of another
    environment with the same Ray, for the engine of a model that `ray.data.llm` runs.
    """

    gpus: Annotated[float, Field(ge=0)] | None = None
    cpus: Annotated[float, Field(gt=0)] = 1.0
    batch: Annotated[int, Field(ge=1)] | None = None
    processes: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None
    timeout: Annotated[float, Field(gt=0)] = 600.0
    memory_gb: Annotated[float, Field(gt=0)] | None = None
    python: Annotated[str, Field(pattern=r"^/\S+$")] | None = None
    max_errors: Annotated[float, Field(ge=0, le=1)] = 0.05

    @field_validator("processes", mode="before")
    @classmethod
    def _from_number_or_text(cls, value: Any) -> Any:
        """A number stands for exactly so many; "LEAST:MOST" is how the command line has them."""
        return (value, value) if isinstance(value, int) else split_range(value)

    @model_serializer(mode="wrap")
    def _only_what_was_said(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What was left out stays so in a recorded job: a group's resources go over its labeler's field by field."""
        return {name: value for name, value in dump(self).items() if name in self.model_fields_set}

    @model_validator(mode="after")
    def _least_before_most(self) -> Resources:
        if self.processes and self.processes[0] > self.processes[1]:
            raise ValueError(f"processes: {self.processes[0]} to {self.processes[1]}; turn them round")
        return self

    def merged(self, above: Resources) -> Resources:
        """These with what others say put over them."""
        values = {name: getattr(above, name) for name in above.model_fields_set}
        return Resources(**{**{name: getattr(self, name) for name in self.model_fields_set}, **values})


ResourcesByLabeler = Mapping[str, Resources]  # by labeler or group name; a group's own go over its labeler's


def parse_resources(values: Mapping[str, Mapping[str, Any]], origin: str) -> dict[str, Resources]:
    """Resources by labeler or group, of the values that people wrote in `origin`.

    Raises InputError for a key that resources do not have, with the nearest right one, and for a wrong value.
    """
    return validate(dict[str, Resources], values, origin)


def merge_resources(below: ResourcesByLabeler, above: ResourcesByLabeler) -> dict[str, Resources]:
    """Resources with others put over them, field by field."""
    merged = dict(below)
    for name, own in above.items():
        merged[name] = own if name not in below else below[name].merged(own)
    return merged


def check_names(resources: ResourcesByLabeler, groups: Sequence[str], origin: str) -> None:
    """Raise InputError for resources of a labeler that is unknown here, and none of the groups to label.

    groups: as they were requested. A class that this machine cannot import is taken to fill any group: it may be
    installed where the job runs, and the job checks the names again.
    """
    try:
        named = [group_name(group) if ":" in group else group for group in groups]
    except InputError:
        return
    names = {name for group in named for name in (group, base_name(group))}
    for name in resources:
        if name not in names and not is_known(name):
            choices = sorted({*names, *labeler_names()})
            raise InputError(
                f"{origin}: unknown labeler {name!r}{nearest(name, choices)}; there are {', '.join(choices)}"
            )


def needed_gpus(resources: ResourcesByLabeler, machines: int) -> float:
    """GPUs that each of so many machines has to have for the least number of processes of every labeler."""
    gpus = [own.gpus or 0.0 for own in resources.values()]
    together = sum((own.gpus or 0.0) * (own.processes[0] if own.processes else 1) for own in resources.values())
    each = max([*gpus, together / machines], default=0.0)
    return each if each <= 1 else float(math.ceil(each))
