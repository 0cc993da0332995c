"""What has changed or gone at a source since it was ingested: found, said, and taken over where that is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from labeling.dataset import Dataset
from labeling.sources.changes import Changes, find_changes, replace_rows
from labeling.sources.ingest import Ingestion
from labeling.sources.seen import read_seen
from labeling.sources.survey import Findings, Survey
from pipelines.ingest_job.workers import Workers


@dataclass(frozen=True)
class Changed:
    """changed: items that differ from what was ingested; replaced: of them, the rows that were replaced.

    twins: names of items that were rejected since they equaled what has been replaced; shards: of what has changed.
    """

    changed: int = 0
    replaced: int = 0
    shards: Sequence[Changes] = ()
    twins: pa.Array = field(default_factory=lambda: pa.array([], pa.string()))


def take_over_changes(
    ingestion: Ingestion,
    survey: Survey,
    findings: Findings,
    new_shards: Sequence[str],
    workers: Workers,
    on_cluster: bool,
    update: bool,
) -> Changed:
    """Find which items have changed, by reading those whose size or date has; with `update` replace their rows.

    new_shards: that this run has written; what a new file has become is no other row's picture too.
    """
    candidates = findings.candidates(survey.seen)
    outcomes = list(workers.map(find_changes, ((ingestion, *pair) for pair in candidates.items()), on_cluster))
    changes = {one.shard: one.changed for one in outcomes if one.changed}
    count = sum(len(names) for names in changes.values())
    if not update or not count:
        return Changed(count, shards=outcomes)
    identities = {identity for names in changes.values() for identity in names.values()}
    taken = _ids_there(ingestion.dataset, [*(shard.name for shard in survey.shards), *new_shards], identities)

    def calls() -> Iterator[tuple[Ingestion, str, pa.Table, set[str]]]:
        for shard in sorted(changes):
            names = pa.array(list(changes[shard]), pa.string())
            items = candidates[shard].filter(pc.is_in(candidates[shard]["name"], value_set=names))
            yield ingestion, shard, items, set(taken)
            taken.update(changes[shard].values())  # of two items that became equal the first one does

    replaced = sum(workers.map(replace_rows, calls(), on_cluster))
    seen = survey.seen.table
    now = {name: identity for some in changes.values() for name, identity in some.items()}
    before = seen.filter(pc.and_(seen["taken"], pc.is_in(seen["name"], value_set=pa.array(list(now), pa.string()))))
    pairs = zip(before["name"].to_pylist(), before["id"].to_pylist(), strict=True)
    ids = pa.array([identity for name, identity in pairs if identity != now[name]], pa.string())
    twins = pc.and_(pc.and_(findings.comparison.there, pc.invert(seen["taken"])), pc.is_in(seen["id"], value_set=ids))
    return Changed(
        count, replaced, outcomes, seen["name"].filter(pc.and_(twins, pc.is_valid(seen["id"]))).combine_chunks()
    )


def drop_others(findings: Findings, dataset: Dataset, changed: Changed) -> None:
    """Take out of what is back the rows of which another picture has the name now, unless it has replaced theirs."""
    for one in changed.shards:
        if one.changed and one.shard in findings.back:
            seen = read_seen(dataset, one.shard)
            rows = seen.select(["name", "id"]).filter(seen["taken"]).to_pylist()
            others = {at for at, row in enumerate(rows) if one.changed.get(row["name"], row["id"]) != row["id"]}
            left = [row for row in findings.back.pop(one.shard) if row not in others]
            findings.back.update({one.shard: left} if left else {})


def drop_moved(findings: Findings, dataset: Dataset, new_shards: Sequence[str]) -> None:
    """Take out of what is gone the pictures that have only got another name: what is new equals them."""
    if findings.gone:
        for identity in _ids_there(dataset, new_shards, set(findings.gone), taken_alone=False):
            findings.gone.pop(identity, None)


def _ids_there(dataset: Dataset, shards: Sequence[str], identities: set[str], taken_alone: bool = True) -> set[str]:
    """Which of some ids items of shards have. taken_alone: rows of images, not what was rejected."""
    present: set[str] = set()
    values = pa.array(sorted(identities), pa.string())
    for shard in shards:
        seen = read_seen(dataset, shard)
        mask = pc.is_in(seen["id"], value_set=values)
        mask = pc.and_(mask, seen["taken"]) if taken_alone else mask
        present.update(seen["id"].filter(mask).drop_null().to_pylist())
    return present
