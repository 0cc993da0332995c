"""What is present of a dataset's groups: fresh, stale and missing shards, by the shards' own footers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from labeling.dataset import Dataset, FooterTable, GroupStatus, digest_json, group_status
from labeling.dataset.footers import unpacked
from pipelines.dashboard.labeling_history import Labeling, labeling_history
from pipelines.dashboard.snapshots import Snapshot

NO_CONTENT = "missing"  # the digest of a range without any shard


@dataclass(frozen=True)
class RangeState(GroupStatus):
    """The status of a range of shards, with the digest of their content."""

    content: str = NO_CONTENT

    @property
    def is_fresh(self) -> bool:
        """Whether all shards are present and as declared."""
        return not (self.stale or self.missing)


@dataclass(frozen=True)
class DatasetState:
    """What was present of a dataset when its shards were listed.

    ranges: group → key of a range → its state; contents: group → digest of all its shards; listed: group → digest of
    their files. footers: of all groups; none in a state that is only kept to be compared, since a lab has 10⁷.
    """

    snapshot: Snapshot
    shards: Sequence[str]
    ranges: dict[str, dict[str, RangeState]]
    footers: Mapping[str, FooterTable]
    contents: dict[str, str]
    listed: dict[str, str]
    labelings: Sequence[Labeling]

    def totals(self, group: str) -> RangeState:
        """All ranges of a group together."""
        states = self.ranges[group].values()
        totals = {field.name: sum(getattr(state, field.name) for state in states) for field in fields(GroupStatus)}
        return RangeState(**totals, content=self.contents[group])

    def is_as(self, before: DatasetState | None) -> bool:
        """Whether nothing had changed since another state was read."""
        return before is not None and self.ranges is before.ranges and self.labelings is before.labelings

    def without_footers(self) -> DatasetState:
        """What a later state is compared with."""
        return replace(self, footers={})


def dataset_state(snapshot: Snapshot, before: DatasetState | None = None) -> DatasetState:
    """List the shards of a dataset and read the footers that are not known yet. Costs one listing for each group.

    before: the last state, from which everything is taken that has not changed.
    """
    dataset = Dataset.open(snapshot.tracked.address)
    shards = [shard.name for shard in dataset.shards]
    known = before.footers if before and before.footers else None
    footers = dataset.all_footers(list(snapshot.groups), save=True, known=known)
    labelings = labeling_history(dataset.store)
    listed = {group: table.files_digest() for group, table in footers.items()}
    listed_as_before = {group for group, digest in listed.items() if before and before.listed.get(group) == digest}
    now = (snapshot, shards, listed, labelings)
    if before and now == (before.snapshot, before.shards, before.listed, before.labelings):
        return replace(before, footers=footers)
    ranges: dict[str, dict[str, RangeState]] = {}
    contents: dict[str, str] = {}
    for group in snapshot.groups:
        if before and _is_unchanged(group, snapshot, shards, listed_as_before, before):
            ranges[group], contents[group] = before.ranges[group], before.contents[group]
            continue
        declared = snapshot.groups[group]
        ranges[group] = {
            part.key: _range_state(declared, group, shards[part.first : part.end], footers) for part in snapshot.ranges
        }
        contents[group] = _content(shards, footers[group])
    return DatasetState(snapshot, shards, ranges, footers, contents, listed, labelings)


def _is_unchanged(
    group: str, snapshot: Snapshot, shards: Sequence[str], listed_as_before: Collection[str], before: DatasetState
) -> bool:
    """Whether a group, and all that it is made from, are declared and listed as before."""
    if (snapshot.shards, shards) != (before.snapshot.shards, before.shards):
        return False
    return all(
        snapshot.groups[name] == before.snapshot.groups.get(name) and name in listed_as_before
        for name in (group, *snapshot.upstream(group))
    )


def _range_state(
    declared: Mapping[str, Any], group: str, shards: Sequence[str], footers: Mapping[str, FooterTable]
) -> RangeState:
    status = group_status(group, declared, shards, footers)
    return RangeState(**asdict(status), content=_content(shards, footers[group]))


def _content(shards: Sequence[str], footers: FooterTable) -> str:
    digests = footers.kept("content", footers.positions(shards))
    contents = [
        (shard, unpacked(content)) for shard, content in zip(shards, digests, strict=True) if content is not None
    ]
    return digest_json(contents) if contents else NO_CONTENT
