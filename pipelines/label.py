"""The labeling job: one pass of Ray Data over references to parts of shards.

parts of shards ─▶ read, decode, label on CPUs ─▶ the shard's writer
                     │ ▲
              inputs ▼ │ outputs
              networks on GPUs
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from cluster.session import ray_session
from labeling.dataset import (
    IMAGES,
    TEXT,
    Dataset,
    Entry,
    Footers,
    FooterTable,
    fresh_shards,
    groups_of,
    lease,
    refuse_others,
)
from labeling.dataset.lease import Range, live_ranges
from labeling.declaration import declare, is_same
from labeling.labeler import Labeler, WholeLabeler
from labeling.plan import SELECTION, Wave, choose_labelers, next_wave, reselected_shards
from labeling.registry import base_name, default_groups
from labeling.resources import ResourcesByLabeler
from labeling.staleness import GroupPlan, plan_errors, plan_groups
from model.inputs import InputError, WorkFailed
from pipelines.labeling_job.language_model import check_engines
from pipelines.labeling_job.placement import resources_by_group
from pipelines.labeling_job.result import LabelResult
from pipelines.labeling_job.shard_writer import write_empty_shards
from pipelines.labeling_job.wave import WaveRun
from pipelines.labeling_job.whole import declare_whole, label_whole

__all__ = ["LabelResult", "label", "plan"]

FooterTables = dict[str, FooterTable]  # by group
FRUITLESS_WAVES = 5  # waves one after another that lose what they made, after which a job gives up


@dataclass(frozen=True)
class Labeling:
    """What a labeling run works on: labelers and their declarations by group, each group after those that it reads.

    part: the shards asked for, [first, end), None for all.
    """

    dataset: Dataset
    labelers: Mapping[str, Labeler]
    declarations: Mapping[str, Mapping[str, Any]]
    part: Range | None

    @property
    def shards(self) -> list[str]:
        """Names of the shards to work on, in order."""
        return self.dataset.shard_names[slice(*(self.part or (None,)))]

    @classmethod
    def of(
        cls,
        dataset_uri: str,
        names: Sequence[str],
        parameters: Mapping[str, Mapping[str, Any]] | None,
        shards: tuple[int, int] | None,
        where: str | None = None,
    ) -> Labeling:
        """Raises InputError for unknown names, parameters and shards, and for shards of what depends on all rows."""
        dataset = Dataset.open(dataset_uri)
        requested = _requested_groups(dataset, names, (parameters or {}).get(TEXT, {}).get("tasks"))
        labelers = choose_labelers(dataset, requested, parameters or {}, where)
        if shards and not 0 <= shards[0] < shards[1] <= len(dataset.shards):
            raise InputError(f"{dataset_uri}: no shards {shards[0]} to {shards[1]}; it has {len(dataset.shards)}")
        if shards and (whole := [group for group, one in labelers.items() if isinstance(one, WholeLabeler)]):
            raise InputError(f"{whole[0]}: depends on all rows of {dataset.uri}; label it without --shards")
        return cls(dataset, labelers, {group: declare(one) for group, one in labelers.items()}, shards)

    def segments(self) -> list[list[str]]:
        """The groups in order, those together that one pass over the rows labels."""
        segments: list[list[str]] = []
        alone = True
        for group, labeler in self.labelers.items():
            was_alone, alone = alone, isinstance(labeler, WholeLabeler) or labeler.language_model is not None
            if alone or was_alone:
                segments.append([])
            segments[-1].append(group)
        return segments

    def only(self, groups: Sequence[str]) -> Labeling:
        """Restrict it to some of its groups."""
        labelers = {group: self.labelers[group] for group in groups}
        return replace(self, labelers=labelers, declarations={group: self.declarations[group] for group in groups})

    def footers(self, save: bool = True) -> FooterTables:
        """Footers of the groups to label and of those that they read, as they are now. save: keep them in the index."""
        read = [column for labeler in self.labelers.values() for column in labeler.needs]
        groups = sorted({IMAGES, *groups_of(read), *self.labelers})
        return self.dataset.all_footers(groups, save=save, shards=self.part)

    def fresh(self, group: str, shards: Sequence[str], footers: Footers) -> set[str]:
        """Pick the shards that are there and made as declared."""
        mask = fresh_shards(self.declarations[group], shards, footers, group)
        return {shard for shard, is_fresh in zip(shards, mask, strict=True) if is_fresh}


def label(
    dataset_uri: str,
    names: Sequence[str],
    parameters: Mapping[str, Mapping[str, Any]] | None = None,
    shards: tuple[int, int] | None = None,
    most_cpus: float = 0.0,
    resources: ResourcesByLabeler | None = None,
    only_errors: bool = False,
    most_gpus: float = 0.0,
    where: str | None = None,
) -> LabelResult:
    """Add or refresh column groups: compute the shards that are missing or stale, on the Ray of `cluster.session`.

    names: labelers or groups; empty for every group that is declared. parameters, resources: by labeler or group name.
    shards: [first, end) of the dataset's, in order; all by default. most_cpus, most_gpus: what the cluster may grow to.
    only_errors: try again the rows in error, and nothing else but what reads them.
    where: SQL that is true of the rows to label, "true" for all; by default as the group was labeled before. Rows that
    are labeled already keep their labels.
    Raises InputError for unknown names, parameters and resources, when another job works on one of the groups, and with
    only_errors for a group that was declared otherwise than it would be now.
    Raises WorkFailed for a labeler that fails too often (`Resources.max_errors`), and for a device that fails wherever
    it is tried.
    """
    started = time.monotonic()
    work = Labeling.of(dataset_uri, names, parameters, shards, where)
    by_group = resources_by_group(work.labelers, resources)
    check_engines(work.labelers, by_group)
    result = LabelResult()
    with (
        lease(work.dataset.store, list(work.labelers), work.part),
        _declared_unless_refused(work.dataset) as declare_group,
        _ray_when_needed() as start_ray,
    ):
        if only_errors:
            _refuse_changed(work)
        footers: FooterTables = {}
        result.footers = footers
        for groups in work.segments():
            part = work.only(groups)
            if isinstance(labeler := part.labelers[groups[0]], WholeLabeler):
                footers |= _label_whole(part, labeler, result)
                continue
            for group, declaration in part.declarations.items():
                declare_group(group, declaration)
            run = WaveRun(work.dataset, part.labelers, part.declarations, by_group, (most_cpus, most_gpus), start_ray)
            current = part.footers()
            if only_errors:
                current = _label_errors(part, run, current, result)
            else:
                selected = _label_selected(part, run, current, result)
                current = _label_stale(part, run, selected, result)
            footers |= current
            first_labels = [at for at in (result.first_label, run.first_label) if at is not None]
            result.first_label = min(first_labels, default=None)
            for group in part.labelers:
                if result.written[group]:
                    work.dataset.save_index(group, current[group], work.part)
                # Without `only_errors` there is nothing left that is not fresh.
                fresh = len(part.fresh(group, work.shards, current)) if only_errors else len(work.shards)
                result.fresh[group] = fresh - result.written[group]
    result.seconds = time.monotonic() - started
    if result.first_label is not None:
        result.first_label -= time.time() - result.seconds
    return result


def plan(
    dataset_uri: str,
    names: Sequence[str],
    parameters: Mapping[str, Mapping[str, Any]] | None = None,
    shards: tuple[int, int] | None = None,
    only_errors: bool = False,
    where: str | None = None,
) -> dict[str, GroupPlan]:
    """What `label` would do with each group, and why, without doing it. Raises InputError as `label` does."""
    work = Labeling.of(dataset_uri, names, parameters, shards, where)
    if only_errors:
        _refuse_changed(work)
    footers = work.footers(save=False)
    if only_errors:
        return plan_errors(list(work.labelers), work.shards, footers)
    declared = {group: work.dataset.declaration(group) for group in work.labelers}
    declarations = {**work.declarations}
    for group, labeler in work.labelers.items():
        upstream = [read for read in groups_of(labeler.reads) if read in work.labelers]
        is_read = all(len(work.fresh(read, work.shards, footers)) == len(work.shards) for read in upstream)
        if isinstance(labeler, WholeLabeler) and is_read:
            declarations[group] = declare_whole(work.dataset, labeler, footers)
    return plan_groups(declared, declarations, work.shards, footers)


def _declare(dataset: Dataset, group: str, declaration: Mapping[str, Any]) -> None:
    """Declare a group as it is to be labeled. Raises InputError while another job labels it in another way.

    Jobs on other shards of a new group may come here at the same time.
    """
    if dataset.declaration(group) is None and dataset.declare_new(group, declaration):
        return
    if not is_same(dataset.declaration(group), declaration):
        refuse_others(dataset.store, group, " with other parameters")
        dataset.declare(group, declaration)


@contextmanager
def _declared_unless_refused(dataset: Dataset) -> Iterator[Callable[[str, Mapping[str, Any]], None]]:
    """`_declare` for a job; where it is refused, groups that it has labeled nothing of are declared as before."""
    before: dict[str, tuple[Mapping[str, Any] | None, Mapping[str, Entry]]] = {}

    def declare_group(group: str, declaration: Mapping[str, Any]) -> None:
        declared = dataset.declaration(group)
        if not is_same(declared, declaration):
            before[group] = declared, dataset.shard_entries(group)
        _declare(dataset, group, declaration)

    try:
        yield declare_group
    except InputError:
        for group, (declared, shards) in before.items():
            if shards == dataset.shard_entries(group) and not live_ranges(dataset.store, group):
                dataset.restore_declaration(group, declared)
        raise


def _label_whole(work: Labeling, labeler: WholeLabeler, result: LabelResult) -> FooterTables:
    """Make the labels of a labeler that needs all rows. The footers afterwards."""
    group, dataset = labeler.group, work.dataset
    footers = work.footers()
    declaration = declare_whole(dataset, labeler, footers)
    _declare(dataset, group, declaration)
    written = label_whole(dataset, labeler, declaration, footers)
    result.fresh[group] = len(work.shards) - written
    if written:
        result.written[group] = written
        footers = work.footers()
        result.rows[group] = footers[group].total("rows", footers[group].positions(work.shards))
    return footers


def _refuse_changed(work: Labeling) -> None:
    """Raises InputError for a group that would be labeled in another way than its labels are: they are all stale."""
    for group, declaration in work.declarations.items():
        declared = work.dataset.declaration(group)
        if isinstance(work.labelers[group], WholeLabeler):
            continue
        if not is_same(declared, declaration):
            reason = "its parameters or version have changed" if declared else "it is not labeled yet"
            raise InputError(f"{group}: {reason}; label it without --only-errors first")


def _requested_groups(dataset: Dataset, names: Sequence[str], tasks: Sequence[str] | None) -> list[str]:
    """The groups that names stand for; without names, the declared ones that a labeler makes. tasks: of `text`."""
    groups = dataset.groups()
    if not names:
        labeled = [group for group in groups if (dataset.declaration(group) or {}).get("reads")]
        return [group for group in labeled if base_name(group) != SELECTION]  # those come with the groups they are for
    present, sets = [*groups, *names], dataset.has_sets
    return [group for name in names for group in default_groups(name, present, groups, tasks, sets)]


@contextmanager
def _ray_when_needed() -> Iterator[Any]:
    """A function that connects to Ray, or starts it, at its first call."""
    with ExitStack() as session:
        connected: list[bool] = []

        def start() -> None:
            if not connected:
                session.enter_context(ray_session())
                connected.append(True)

        yield start


def _label_selected(work: Labeling, run: WaveRun, footers: FooterTables, result: LabelResult) -> FooterTables:
    """Label rows that are selected now and were not before, where nothing else has changed. The footers afterwards."""
    for group, labeler in work.labelers.items():
        if not reselected_shards(work.dataset, group, work.declarations[group], work.shards, footers):
            continue
        upstream = _upstream(work, labeler)
        footers = _label_stale(work.only(upstream), run, footers, result)
        shards = reselected_shards(work.dataset, group, work.declarations[group], work.shards, footers)
        footers = _run_all(work, run, group, shards, footers, result, only_errors=True)
    return footers


def _upstream(work: Labeling, labeler: Labeler) -> list[str]:
    """The groups of this job that a labeler needs."""
    groups = [group for group in groups_of(labeler.needs) if group in work.labelers]
    return list(dict.fromkeys([*(one for group in groups for one in _upstream(work, work.labelers[group])), *groups]))


def _label_stale(work: Labeling, run: WaveRun, footers: FooterTables, result: LabelResult) -> FooterTables:
    """Compute what is missing or stale, wave by wave; the footers afterwards."""
    fruitless = 0
    before: Mapping[str, Sequence[str]] = {}  # shard → groups that the wave before computed
    shards: Sequence[str] = work.shards
    while (wave := next_wave(work.declarations, footers, shards)).work:
        again = [shard for shard, groups in wave.work.items() if set(groups) & set(before.get(shard, ()))]
        assert not again, f"computed and still stale: {again[:3]}"
        footers, before, _ = _run_wave(work, run, wave, footers, result, only_errors=False)
        fruitless = _count_fruitless(work, fruitless, before)
        # All others are fresh: what was fresh, and what this wave wrote. To look takes seconds for 10⁵ shards.
        unsettled = {
            *wave.later,
            *(shard for shard, groups in wave.work.items() if len(before.get(shard, ())) < len(groups)),
        }
        shards = [shard for shard in shards if shard in unsettled]
    return footers


def _count_fruitless(work: Labeling, fruitless: int, written: Mapping[str, Sequence[str]]) -> int:
    """How many waves one after another, with this one, have written nothing. Raises WorkFailed where it is enough."""
    fruitless = 0 if written else fruitless + 1
    if fruitless == FRUITLESS_WAVES:
        raise WorkFailed(f"{work.dataset.uri}: writers were lost in each of {fruitless} tries, with all they had")
    return fruitless


def _label_errors(work: Labeling, run: WaveRun, footers: FooterTables, result: LabelResult) -> FooterTables:
    """Try rows in error again, group by group; what reads changed labels is computed anew. The footers afterwards."""
    fresh = {group: work.fresh(group, work.shards, footers) for group in work.labelers}
    for group in work.labelers:
        stale = fresh[group] - work.fresh(group, work.shards, footers)
        footers = _run_all(work, run, group, stale, footers, result, only_errors=False)
        errors = (fresh[group] - stale) & footers[group].errors().keys()
        footers = _run_all(work, run, group, errors, footers, result, only_errors=True)
    return footers


def _run_all(
    work: Labeling,
    run: WaveRun,
    group: str,
    shards: Set[str],
    footers: FooterTables,
    result: LabelResult,
    only_errors: bool,
) -> FooterTables:
    """Compute shards of one group, and once more those that are not written while writers are lost."""
    fruitless = 0
    while shards:
        wave = Wave({shard: [group] for shard in sorted(shards)})
        footers, written, losses = _run_wave(work, run, wave, footers, result, only_errors)
        if not losses:
            break
        shards = shards - written.keys()
        fruitless = _count_fruitless(work, fruitless, written)
    return footers


def _run_wave(
    work: Labeling, run: WaveRun, wave: Wave, footers: FooterTables, result: LabelResult, only_errors: bool
) -> tuple[FooterTables, dict[str, list[str]], int]:
    """Compute the shards of a wave, and count what was done.

    The footers afterwards, shard → groups that are written, and how many writers were lost. Shards of those are not
    written: they come with the next wave.
    """
    write_empty_shards(work.dataset, wave, work.labelers, work.declarations, footers)
    losses = run(wave, footers, result, only_errors)
    after = work.dataset.refreshed(footers, ((group, shard) for shard, groups in wave.work.items() for group in groups))
    written: dict[str, list[str]] = {}
    for group in wave.groups:
        shards = [shard for shard, groups in wave.work.items() if group in groups]
        fresh = work.fresh(group, shards, after)
        assert losses or len(fresh) == len(shards), f"computed and still stale: {group}/{min(set(shards) - fresh)}"
        if only_errors:  # where every row in error is so still, the file is as it was
            tables = (footers[group], after[group])
            contents = (table.kept("content", table.positions(shards)) for table in tables)
            fresh &= {shard for shard, one, other in zip(shards, *contents, strict=True) if one != other}
        for shard in fresh:
            result.written[group] += 1
            written.setdefault(shard, []).append(group)
    return after, written, losses
