"""Where each labeler of a job runs: with the others on CPUs, or its network in a pool of processes that have GPUs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from labeling.labeler import Labeler
from labeling.registry import base_name
from labeling.resources import Resources, ResourcesByLabeler, merge_resources
from model.inputs import InputError, nearest


@dataclass(frozen=True)
class NetworkPool:
    """Processes that run the network of labelers of one class with the same parameters.

    groups: the groups that the labelers fill; gpus, cpus: of each process; batch: rows of a call of `infer`;
    least, most: processes, most being None for as many as the GPUs of the cluster allow.
    """

    groups: tuple[str, ...]
    gpus: float
    cpus: float
    batch: int
    least: int = 1
    most: int | None = None


@dataclass(frozen=True)
class Placement:
    """Pools of networks by name, and how many CPUs each process has that labels on CPUs.

    Labelers in no pool run on CPUs whole; of the others only `prepare` and `finish` do.
    """

    pools: Mapping[str, NetworkPool] = field(default_factory=dict)
    cpus: float = 1.0

    def pool_of(self, group: str) -> str | None:
        """Name of the pool that holds a group's network, None where the labeler runs on CPUs."""
        return next((name for name, pool in self.pools.items() if group in pool.groups), None)


def resources_by_group(labelers: Mapping[str, Labeler], given: ResourcesByLabeler | None) -> dict[str, Resources]:
    """The resources of each group: what is given for its labeler, and over it what is given for the group.

    Raises InputError for a name that is none of the groups to label and none of their labelers.
    """
    given = given or {}
    names = list(dict.fromkeys([*labelers, *(base_name(group) for group in labelers)]))
    for name in given:
        if name not in names:
            raise InputError(
                f"resources given for {name!r}{nearest(name, names)}, which is not among the groups to label: "
                f"{', '.join(labelers)}"
            )
    merged = merge_resources({base_name(group): Resources() for group in labelers}, given)
    return {group: merged[base_name(group)].merged(merged.get(group, Resources())) for group in labelers}


def place(
    labelers: Mapping[str, Labeler], resources: Mapping[str, Resources], gpus: float, cpus: float, may_grow: bool
) -> Placement:
    """Where labelers run on a cluster that has so many GPUs and CPUs, or will have.

    A labeler that has a network gets GPUs by default where there are some: one for each process, or a part of one where
    the pools outnumber the GPUs. may_grow: whether nodes can join that have more.
    Raises InputError where more GPUs or CPUs are asked for than there can be.
    """
    for group, own in resources.items():
        if own.gpus and own.gpus > 1 and own.gpus % 1:
            raise InputError(f"{group}.gpus: {own.gpus:g} is neither a part of a GPU nor a whole number of them")
    alike: list[list[str]] = []
    for group, labeler in labelers.items():
        if not labeler.has_network or resources[group].gpus == 0 or not (resources[group].gpus or gpus):
            continue
        for other in alike:
            if are_alike(labeler, labelers[other[0]]) and resources[group] == resources[other[0]]:
                other.append(group)
                break
        else:
            alike.append([group])
    chosen = [groups for groups in alike if resources[groups[0]].gpus is None]
    taken = sum((resources[groups[0]].gpus or 0.0) * _least(resources[groups[0]]) for groups in alike)
    share = _share(gpus - taken, sum(_least(resources[groups[0]]) for groups in chosen))
    pools = {}
    for groups in alike:
        own = resources[groups[0]]
        pools[groups[0]] = NetworkPool(
            groups=tuple(groups),
            gpus=own.gpus or share,
            # A process with a GPU waits for it most of the time: it takes a CPU from nobody unless one is asked for.
            cpus=own.cpus if "cpus" in own.model_fields_set else 0.0,
            batch=own.batch or labelers[groups[0]].batch_size,
            least=_least(own),
            most=own.processes[1] if own.processes else None,
        )
    in_pools = {group for pool in pools.values() for group in pool.groups}
    on_cpus = max((resources[group].cpus for group in labelers if group not in in_pools), default=1.0)
    if not may_grow:
        _check_enough(pools, on_cpus, gpus, cpus)
    return Placement(pools, on_cpus)


def are_alike(one: Labeler, other: Labeler) -> bool:
    """Whether two labelers can share a network, as latents of several sources do."""
    return type(one) is type(other) and one.parameters == other.parameters


def _least(resources: Resources) -> int:
    return resources.processes[0] if resources.processes else 1


def _share(gpus: float, processes: int) -> float:
    """GPUs for each of so many processes: a whole one, or the largest part of one that fits (1/2, 1/3, …)."""
    if not processes or gpus >= processes:
        return 1.0
    on_each = math.ceil(processes / max(math.floor(gpus), 1))
    return math.floor(10_000 / on_each) / 10_000  # Ray counts ten-thousandths


def _check_enough(pools: Mapping[str, NetworkPool], on_cpus: float, gpus: float, cpus: float) -> None:
    """Raises InputError where the least number of processes does not fit: Ray would wait for them without a word."""
    asked = sum(pool.gpus * pool.least for pool in pools.values())
    if asked > gpus + 1e-3:
        names = ", ".join(pools)
        raise InputError(f"{names}: {asked:g} GPUs asked for, and the cluster has {gpus:g}; give less (NAME.gpus=…)")
    needed = on_cpus + sum(pool.cpus * pool.least for pool in pools.values())
    if needed > max(cpus, 1.0) + 1e-3:
        raise InputError(f"{needed:g} CPUs asked for, and the cluster has {cpus:g}; give less (NAME.cpus=…)")
