"""Where each labeler of a job runs: with the others on CPUs, or its network in a pool of processes that have GPUs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from labeling.labeler import Labeler
from labeling.registry import base_name
from labeling.resources import Resources, ResourcesByLabeler, merge_resources
from model.inputs import InputError, nearest

WHOLE = 10_000  # parts of a GPU, as Ray counts them

_log = logging.getLogger(__name__)


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

    def fit(self, gpus: float, pools: int) -> int:
        """How many processes fit on this pool's part of so many GPUs, and at least those that it has to have.

        pools: among which the GPUs are divided. A process that has a part of a GPU never lies across two of them.
        """
        on_each = WHOLE // max(1, _parts(self.gpus))
        fitting = _whole_gpus(gpus) * on_each if self.gpus < 1 else int(gpus / self.gpus + 1e-3)
        return max(self.least, fitting // pools)


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

    def reserved_cpus(self, gpus: float, cpus: float) -> float:
        """CPUs that processes which label on CPUs leave to the networks, of a cluster that has so many GPUs and CPUs.

        Those of the least processes of each network, and half of all CPUs at most for more of them.
        """
        least = sum(pool.cpus * pool.least for pool in self.pools.values())
        whole = 0.0
        for pool in self.pools.values():
            fitting = pool.fit(gpus, len(self.pools))
            whole += pool.cpus * (fitting if pool.most is None else min(fitting, pool.most))
        return max(least, min(whole, cpus / 2))


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


def place_labelers(
    labelers: Mapping[str, Labeler], resources: Mapping[str, Resources], gpus: float, cpus: float, may_grow: bool
) -> Placement:
    """Where labelers run on a cluster that has so many GPUs and CPUs, or will have.

    A labeler that has a network here gets GPUs by default where there are some: one for each process, or a part of one
    where the pools outnumber the GPUs; none where those that asked for theirs leave nothing. may_grow: whether nodes
    can join that have more.
    Raises InputError where more GPUs or CPUs are asked for than there can be.
    """
    for group, own in resources.items():
        if own.gpus and own.gpus > 1 and own.gpus % 1:
            raise InputError(f"{group}.gpus: {own.gpus:g} is neither a part of a GPU nor a whole number of them")
    alike: list[list[str]] = []
    for group, labeler in labelers.items():
        if not labeler.uses_device or resources[group].gpus == 0 or not (resources[group].gpus or gpus):
            continue
        for other in alike:
            if are_alike(labeler, labelers[other[0]]) and resources[group] == resources[other[0]]:
                other.append(group)
                break
        else:
            alike.append([group])
    chosen = [groups for groups in alike if resources[groups[0]].gpus is None]
    requests = [resources[groups[0]] for groups in alike if groups not in chosen]
    free = _free([own.gpus or 0.0 for own in requests for _ in range(_least(own))], gpus)
    share = _share(free or [], sum(_least(resources[groups[0]]) for groups in chosen))
    if chosen and not share:
        names = ", ".join(group for groups in chosen for group in groups)
        _log.warning("%s: on CPUs, since others have asked for all GPUs (NAME.gpus=…)", names)
        alike = [groups for groups in alike if groups not in chosen]
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
        _check_enough(pools, on_cpus, gpus, cpus, fits=free is not None)
    return Placement(pools, on_cpus)


def are_alike(one: Labeler, other: Labeler) -> bool:
    """Whether two labelers can share a network, as latents of several sources do."""
    return type(one) is type(other) and one.parameters == other.parameters


def _least(resources: Resources) -> int:
    return resources.processes[0] if resources.processes else 1


def _parts(gpus: float) -> int:
    return round(WHOLE * gpus)


def _whole_gpus(gpus: float) -> int:
    return int(gpus + 1e-3)


def _free(requests: Sequence[float], gpus: float) -> list[int] | None:
    """Parts of each GPU that are left when every process has what it asked for; None where they do not all fit."""
    free = [WHOLE] * _whole_gpus(gpus)
    for own in sorted(requests, reverse=True):
        parts = min(_parts(own), WHOLE)
        for _ in range(max(1, int(own))):
            fitting = [left for left in free if left >= parts]
            if not fitting:
                return None
            free.remove(min(fitting))
            free.append(min(fitting) - parts)
    return free


def _share(free: Sequence[int], processes: int) -> float:
    """GPUs for each of so many processes: the largest part of one that is free so many times, 0 where none is."""
    sizes = {left // count for left in set(free) for count in range(1, processes + 1)} - {0}
    return max((size for size in sizes if sum(left // size for left in free) >= processes), default=0) / WHOLE


def _check_enough(pools: Mapping[str, NetworkPool], on_cpus: float, gpus: float, cpus: float, fits: bool) -> None:
    """Raises InputError where the least number of processes does not fit: Ray would wait for them without a word."""
    total = sum(pool.gpus * pool.least for pool in pools.values())
    names = ", ".join(pools)
    if total > gpus + 1e-3:
        raise InputError(f"{names}: {total:g} GPUs asked for, and the cluster has {gpus:g}; give less (NAME.gpus=…)")
    if not fits:
        raise InputError(f"{names}: asked for parts of GPUs that do not fit on {gpus:g}; give less (NAME.gpus=…)")
    total_cpus = on_cpus + sum(pool.cpus * pool.least for pool in pools.values())
    if total_cpus > max(cpus, 1.0) + 1e-3:
        raise InputError(f"{total_cpus:g} CPUs asked for, and the cluster has {cpus:g}; give less (NAME.cpus=…)")
