"""The jobs that make datasets of sets: shards are planned, and each is written by one task, whole or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from labeling.dataset import (
    DATASET_FILE,
    GROUP_FILE,
    IMAGES,
    REJECTED,
    Dataset,
    ShardInfo,
    lease,
    open_store,
    recipe,
    shard_file,
)
from labeling.sets.grouping import PLAN, make_plan, read_plan
from labeling.sets.options import EMBEDDING, EditingOptions, GroupingOptions, IdentityOptions, SubjectOptions
from labeling.sets.rows import CAPTION, LABELER, ORIGIN, VERSION, SetShard
from model.inputs import InputError, require
from model.inputs.schema import validate
from pipelines.ingest_job.workers import Workers
from pipelines.progress import progress

MANY = 50_000  # pictures, from which they are grouped in a process of their own
FEW = 4  # shards that are written by this process, sooner than a Ray starts
Write = Callable[..., tuple[int, int]]  # of a shard and its arguments: sets, and what was rejected


@dataclass(frozen=True)
class SetsResult:
    """Sets written by this run, sets in the dataset, and what makes none: rows that were rejected, and pictures that
    were left out, by reason."""

    added: int
    sets: int
    rejected: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)

    def summary(self, dataset: str) -> list[str]:
        """Lines for a person."""
        refused = f"; {self.rejected} rows rejected (rejected/ says why)" if self.rejected else ""
        lines = [f"{self.added} sets written; {self.sets} sets in {dataset}{refused}"]
        return lines + [f"{count} pictures left out: {reason}" for reason, count in self.left_out.items() if count]


@dataclass(frozen=True)
class SetsPlan:
    """What is to be written.

    sources: for dataset.json; groups: that every shard has; pieces: what each shard is made from, in order, and a
    digest of it; write: makes a shard, called with it, `arguments` and the groups.
    """

    declaration: Mapping[str, Any]
    sources: Sequence[Mapping[str, Any]]
    groups: Sequence[str]
    pieces: Iterator[tuple[Any, str]]
    write: Write
    arguments: Sequence[Any]
    left_out: Mapping[str, int] = field(default_factory=dict)


def declare(kind: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What the groups of sets declare."""
    return {
        "labeler": LABELER,
        "version": VERSION,
        "parameters": {"kind": kind, **parameters},
        "weights": "",
        "reads": [],
    }


def open_target(uri: str, kind: str) -> Dataset:
    """The dataset that sets go to. Raises InputError where it holds something else."""
    target = Dataset(uri)
    if target.store.exists(DATASET_FILE):
        declared = (target.declaration(ORIGIN) or {}).get("parameters", {}).get("kind")
        if declared != kind:
            holds = f"{declared} sets" if declared else f"a dataset of {Dataset.open(uri).kind}"
            raise InputError(f"{uri}: holds {holds}; {kind} sets go into a dataset of their own")
    return target


def write_planned(target: Dataset, plan: SetsPlan) -> SetsResult:
    """Write the shards of a plan that are not there yet, and then dataset.json. The caller holds the lease.

    Raises InputError where the plan makes not a single set.
    """
    groups = [group for group in plan.groups if group != CAPTION or _writes_captions(target)]
    shards = [
        SetShard(f"{number:06d}", recipe(plan.declaration, {"source": digest}), work)
        for number, (work, digest) in enumerate(plan.pieces)
    ]
    for group in groups:
        target.declare(group, plan.declaration)
    present = set.intersection(*(set(target.store.files(group)) for group in groups))
    missing = [one for one in shards if not _is_done(target, one, present)]
    added = 0
    with Workers() as workers, progress("sets", len(missing), "shards") as advance:
        calls = ((one, *plan.arguments, target, groups) for one in missing)
        for sets, _ in workers.map(plan.write, calls, on_cluster=len(missing) > FEW):
            added += sets
            advance(1)
    infos = [ShardInfo(one.name, target.footer(IMAGES, one.name).rows) for one in shards]
    rejected = sum(target.footer(REJECTED, one.name).rows for one in shards)
    sets = sum(info.rows for info in infos)
    if not sets:
        raise _nothing_made(target, infos, groups, rejected, plan.left_out)
    target.describe("sets", infos, plan.sources)
    return SetsResult(added, sets, rejected, plan.left_out)


def _writes_captions(target: Dataset) -> bool:
    """Whether captions are the source's: those that a labeler wrote since are left alone."""
    return (target.declaration(CAPTION) or {}).get("labeler", LABELER) == LABELER


def _is_done(target: Dataset, shard: SetShard, present: set[str]) -> bool:
    return f"{shard.name}.parquet" in present and target.footer(IMAGES, shard.name).recipe == shard.recipe


def _nothing_made(
    target: Dataset, shards: Sequence[ShardInfo], groups: Sequence[str], rejected: int, left_out: Mapping[str, int]
) -> InputError:
    """Remove what a plan without a single set has left, and say why there is none."""
    reason = "no pictures belong together"
    for shard in shards:
        rows = target.read(REJECTED, shard.name).slice(0, 1).to_pylist()
        if rows:
            reason = f"none of {rejected} rows makes a set; {rows[0]['source']}: {rows[0]['reason']}"
            break
    else:
        told = [f"{count} left out: {why}" for why, count in left_out.items() if count]
        reason = "; ".join([reason, *told])
    for group in (*groups, REJECTED):
        for shard in shards:
            target.store.delete(shard_file(group, shard.name))
        target.store.delete(f"{group}/{GROUP_FILE}")
    return InputError(f"{target.uri}: {reason}")


def sets(kind: str, sources: Sequence[str], dataset: str, options: Mapping[str, Any]) -> SetsResult:
    """Make a dataset of sets. kind: "identity", "subject" or "editing"; options: of `labeling.sets.options`.

    Raises InputError for unknown options, and as the functions of each kind below.
    """
    if not sources:
        raise InputError("sets: name what they are made of, and then the dataset")
    if kind == "identity":
        return identity(sources, dataset, validate(IdentityOptions, options, "sets identity"))
    if kind == "subject":
        return subject(sources, dataset, validate(SubjectOptions, options, "sets subject"))
    return editing(sources, dataset, validate(EditingOptions, options, "sets editing"))


def editing(sources: Sequence[str], dataset: str, options: EditingOptions) -> SetsResult:
    """Sets of a picture and edits of it: as files have them, or made by the labels of datasets.

    Raises InputError for sources that hold neither, or some of which are datasets and others are not.
    """
    labeled = [open_store(uri).exists(DATASET_FILE) for uri in sources]
    if any(labeled) != all(labeled):
        other = sources[labeled.index(False)]
        raise InputError(f"{other}: no dataset, as the other sources are; make a dataset of each kind of source")
    options.check(all(labeled))
    return _made_edits(sources, dataset, options) if all(labeled) else _given_edits(sources, dataset, options)


def _given_edits(sources: Sequence[str], dataset: str, options: EditingOptions) -> SetsResult:
    from labeling.sets.edit_files import GROUPS, write_given
    from labeling.sets.edit_rows import EditColumns, EditSource

    columns = EditColumns(options.source, options.target, options.instruction)
    opened = [EditSource(uri, columns) for uri in sources]
    target = open_target(dataset, "editing")

    def pieces() -> Iterator[tuple[Any, str]]:
        for number, source in enumerate(opened):
            yield from (((number, piece), digest) for piece, digest in source.pieces())

    plan = SetsPlan(
        declaration=declare("editing", options.recipe(made=False)),
        sources=[{"uri": source.address} for source in opened],
        groups=GROUPS,
        pieces=pieces(),
        write=write_given,
        arguments=(opened,),
    )
    with target.store.without_empty_folders([REJECTED]), lease(target.store, GROUPS):
        return write_planned(target, plan)


def _made_edits(sources: Sequence[str], dataset: str, options: EditingOptions) -> SetsResult:
    from labeling.sets.edit_labels import GROUPS, labeled_pieces, write_made

    opened = [Dataset.open(uri) for uri in sources]
    _check_pictures(opened)
    parameters = options.recipe(made=True)
    target = open_target(dataset, "editing")

    def pieces() -> Iterator[tuple[Any, str]]:
        for number, source in enumerate(opened):
            yield from labeled_pieces(number, source, options.make, options.where)

    plan = SetsPlan(
        declaration=declare("editing", parameters),
        sources=[{"uri": source.uri} for source in opened],
        groups=GROUPS,
        pieces=pieces(),
        write=write_made,
        arguments=(opened, parameters),
    )
    with target.store.without_empty_folders([REJECTED]), lease(target.store, GROUPS):
        return write_planned(target, plan)


def content_digest(data: bytes) -> str:
    """Digest of a file."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _check_pictures(sources: Sequence[Dataset]) -> None:
    """Raise InputError for a dataset whose rows are no pictures."""
    for source in sources:
        if source.has_sets:
            raise InputError(f"{source.uri}: a dataset of sets; sets are made of a dataset of pictures")


def identity(sources: Sequence[str], dataset: str, options: IdentityOptions) -> SetsResult:
    """Sets of pictures of one person each, by the face embeddings of labeled datasets.

    Raises InputError for datasets without faces, and where no two pictures belong together.
    """
    from labeling.sets.copies import IDENTITY_GROUPS

    return _grouped_sets("identity", sources, dataset, options, IDENTITY_GROUPS)


def subject(sources: Sequence[str], dataset: str, options: SubjectOptions) -> SetsResult:
    """Sets of pictures of one item each, which folders, captions, what sources say, or embeddings tell. Raises as
    `identity`."""
    from labeling.sets.copies import SUBJECT_GROUPS

    return _grouped_sets("subject", sources, dataset, options, SUBJECT_GROUPS)


def _grouped_sets(
    kind: str, sources: Sequence[str], dataset: str, options: GroupingOptions, groups: Sequence[str]
) -> SetsResult:
    from labeling.sets.candidates import sources_digest
    from labeling.sets.copies import write_copies

    opened = [Dataset.open(uri) for uri in sources]
    _check_pictures(opened)
    if isinstance(options, IdentityOptions) or getattr(options, "by", "") == EMBEDDING:
        require("faiss")  # here, and not in the middle of a job
    target = open_target(dataset, kind)
    digest = sources_digest(opened, options)
    parameters = options.model_dump(mode="json")
    with target.store.without_empty_folders([REJECTED, PLAN]), lease(target.store, groups):
        planned = read_plan(target.store)
        if planned is None or planned["digest"] != digest:
            planned = _planned(opened, options, target, digest)
        names = [f"{number:06d}" for number in range(planned["shards"])]
        plan = SetsPlan(
            declaration=declare(kind, parameters),
            sources=[{"uri": source.uri} for source in opened],
            groups=groups,
            pieces=((None, content_digest(target.store.read(f"{PLAN}/{name}.parquet"))) for name in names),
            write=write_copies,
            arguments=(opened, parameters),
            left_out=planned["left_out"],
        )
        return write_planned(target, plan)


def _planned(sources: Sequence[Dataset], options: GroupingOptions, target: Dataset, digest: str) -> dict[str, Any]:
    """Make the plan: of many pictures in a process of the cluster, so that this one does not hold them."""
    rows = sum(shard.rows for source in sources for shard in source.shards)
    with Workers() as workers:
        calls = [(sources, options, target.store, digest)]
        for _ in workers.map(make_plan, calls, on_cluster=rows > MANY):
            pass
    planned = read_plan(target.store)
    assert planned is not None
    return planned
