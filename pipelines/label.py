"""The labeling job: one pass of Ray Data over references to row groups, an actor pool for every stage of labelers.

read and decode ─▶ boxes ─▶ segmentation ─▶ … ─▶ (images dropped) ─▶ … ─▶ send to the shard's writer
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from cluster.session import cluster_has, ray_session
from labeling.dataset import IMAGES, Dataset, Footers, groups_of, lease
from labeling.declaration import declare, is_same
from labeling.labeler import Labeler
from labeling.plan import Wave, choose_labelers, next_wave
from labeling.registry import default_groups
from labeling.resources import ResourcesByLabeler
from labeling.staleness import GroupPlan, plan_errors, plan_groups
from model.inputs import InputError
from pipelines.labeling_job.shard_writer import SendToWriter, start_writers, stop_writers, write_empty_shards
from pipelines.labeling_job.stages import AddLabels, ReadColumns, make_stages, reads_images
from pipelines.progress import progress

MAX_BLOCKS = 4096
MAX_ACTORS = 64  # processes of a stage
SMALL_MACHINE = 4  # CPUs up to which every stage has a single process


@dataclass
class LabelResult:
    """What a labeling run did, by group: shards written, shards fresh before, rows labeled, seconds of work."""

    written: Counter[str] = field(default_factory=Counter)
    fresh: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    busy: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # over all processes of a labeler
    seconds: float = 0.0

    def summary(self) -> list[str]:
        """One line a group: shards written and fresh, rows a second."""
        lines = []
        for group, fresh in self.fresh.items():
            busy = self.busy.get(group, 0.0)
            speed = f", {self.rows[group] / busy:.1f} rows/s a process" if busy else ""
            lines.append(f"{group}: {self.written[group]} shards labeled, {fresh} fresh{speed}")
        return lines


@dataclass(frozen=True)
class Labeling:
    """What a labeling run works on: labelers and their declarations by group, each group after those that it reads.

    most_cpus: what the cluster may grow to.
    """

    dataset: Dataset
    labelers: Mapping[str, Labeler]
    declarations: Mapping[str, Mapping[str, Any]]
    most_cpus: float

    def footers(self) -> Footers:
        """Footers of the groups to label and of those that they read, as they are now."""
        read = [column for labeler in self.labelers.values() for column in labeler.reads]
        return {group: self.dataset.footers(group) for group in sorted({IMAGES, *groups_of(read), *self.labelers})}


def label(
    dataset_uri: str,
    names: Sequence[str],
    parameters: Mapping[str, Mapping[str, Any]] | None = None,
    shards: tuple[int, int] | None = None,
    most_cpus: float = 0.0,
    resources: ResourcesByLabeler | None = None,
    only_errors: bool = False,
    most_gpus: float = 0.0,
) -> LabelResult:
    """Add or refresh column groups: compute the shards that are missing or stale, on the Ray of `cluster.session`.

    names: labelers or groups; empty for every group that is declared. parameters: by labeler or group name.
    shards: [first, end) of the dataset's, in order; all by default. most_cpus, most_gpus: what the cluster may grow to.
    resources: by labeler or group name. only_errors: only rows that are in error, once more.
    Raises InputError for unknown names and parameters, and when another job works on one of the groups.
    """
    started = time.monotonic()
    dataset = Dataset.open(dataset_uri)
    labelers = choose_labelers(dataset, _requested_groups(dataset, names), parameters or {})
    declarations = {group: declare(labeler) for group, labeler in labelers.items()}
    first, end = _range(dataset, shards)
    work = Labeling(dataset, labelers, declarations, most_cpus)
    result = LabelResult()
    with lease(dataset.store, list(labelers)), ExitStack() as session:
        for group, declaration in declarations.items():
            if not is_same(dataset.declaration(group), declaration):
                dataset.declare(group, declaration)
        footers = work.footers()
        done: set[tuple[str, str]] = set()
        while (wave := next_wave(dataset, declarations, footers, (first, end))).work:
            pairs = {(shard, group) for shard, groups in wave.work.items() for group in groups}
            assert not pairs & done, f"computed and still stale: {sorted(pairs & done)[:3]}"
            session.enter_context(ray_session())
            if _run_wave(work, wave, footers, result):
                done |= pairs
            # Otherwise a node was lost with the row groups it had gathered: they come with the next wave.
            footers = work.footers()
        for group in labelers:
            dataset.footers(group, save=True)
            result.fresh[group] = end - first - result.written[group]
    result.seconds = time.monotonic() - started
    return result


def plan(
    dataset_uri: str,
    names: Sequence[str],
    parameters: Mapping[str, Mapping[str, Any]] | None = None,
    shards: tuple[int, int] | None = None,
    only_errors: bool = False,
) -> dict[str, GroupPlan]:
    """What `label` would do with each group, and why, without doing it. Raises InputError as `label` does."""
    dataset = Dataset.open(dataset_uri)
    labelers = choose_labelers(dataset, _requested_groups(dataset, names), parameters or {})
    first, end = _range(dataset, shards)
    declarations = {group: declare(labeler) for group, labeler in labelers.items()}
    declared = {group: dataset.declaration(group) for group in labelers}
    footers, chosen = Labeling(dataset, labelers, declarations, 0.0).footers(), dataset.shard_names[first:end]
    if only_errors:
        return plan_errors(list(labelers), chosen, footers)
    return plan_groups(declared, declarations, chosen, footers)


def _range(dataset: Dataset, shards: tuple[int, int] | None) -> tuple[int, int]:
    """[first, end) of the shards that are asked for. Raises InputError where the dataset has no such shards."""
    first, end = shards or (0, len(dataset.shards))
    if shards and not 0 <= first < end <= len(dataset.shards):
        raise InputError(f"{dataset.uri}: no shards {first} to {end}; it has {len(dataset.shards)}")
    return first, end


def _requested_groups(dataset: Dataset, names: Sequence[str]) -> list[str]:
    """The groups that names stand for; without names, the declared ones that a labeler makes."""
    groups = dataset.groups()
    if not names:
        return [group for group in groups if (dataset.declaration(group) or {}).get("reads")]
    return [group for name in names for group in default_groups(name, [*groups, *names])]


def _run_wave(work: Labeling, wave: Wave, footers: Footers, result: LabelResult) -> bool:
    """Compute the shards of a wave, and add what was done to the result; whether all of the shards are written."""
    labelers = {group: labeler for group, labeler in work.labelers.items() if group in wave.groups}
    result.written.update(write_empty_shards(work.dataset, wave, labelers, work.declarations, footers))
    references: list[dict[str, Any]] = [
        {"shard": shard, "row_group": index, "groups": ",".join(groups)}
        for shard, groups in wave.work.items()
        for index in range(len(footers[IMAGES][shard].row_groups))
    ]
    if not references:
        return True
    writers = start_writers(work.dataset, work.declarations, footers)
    total = sum(footers[IMAGES][row["shard"]].row_groups[row["row_group"]] for row in references)
    with progress("label " + " ".join(labelers), total, "rows") as advance:
        rows = _labeled_row_groups(work, labelers, references, writers)
        for row in rows.iter_rows():
            advance(row["rows"])
            for group in row["groups"].split(","):
                result.rows[group] += row["rows"]
                result.busy[group] += row[f"{group}:seconds"]
    written, all_there = stop_writers(writers)
    result.written.update(written)
    return all_there


def _labeled_row_groups(
    work: Labeling, labelers: Mapping[str, Labeler], references: list[dict[str, Any]], writers: Sequence[Any]
) -> Any:
    """The Ray Data job: a row for each row group, which goes through all stages when it is iterated over.

    labelers: those of this wave. Rows have the fields that `SendToWriter` gives.
    """
    import ray

    stages = make_stages(labelers)
    last_reader = max((index for index, stage in enumerate(stages) if reads_images(stage)), default=-1)
    cpus = cluster_has("CPU") or 1.0  # of a cluster whose nodes are yet to come
    # Every pool holds at least one process at all times; on a small machine they share the cores.
    share = 0.8 * cpus / (len(stages) + 1)
    rows = ray.data.from_items(references, override_num_blocks=min(len(references), MAX_BLOCKS))
    rows = rows.map(ReadColumns(work.dataset, labelers), num_cpus=min(1.0, share))
    for index, stage in enumerate(stages):
        rows = rows.map(
            AddLabels,
            fn_constructor_args=(stage, work.dataset.has_sets, index >= last_reader),
            concurrency=_processes(max(cpus, work.most_cpus)),
            num_cpus=min(1.0, share),
        )
    return rows.map(SendToWriter(writers, list(labelers)), num_cpus=min(0.1, share))


def _processes(most_cpus: float) -> int | tuple[int, int]:
    """How many processes a stage may have: a cluster that grows does so for processes that wait for a CPU."""
    if most_cpus <= SMALL_MACHINE:
        return 1
    return 1, max(1, min(MAX_ACTORS, int(most_cpus)))
