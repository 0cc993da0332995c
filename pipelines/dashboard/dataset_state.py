"""What is present of a dataset's groups: fresh, stale and missing shards, by the shards' own footers.

A state is read group by group, so that a reading may stop after any of them and go on later. Of a group that cannot
have changed since the state before, nothing is read.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from labeling.dataset import Dataset, FooterTable, GroupStatus, digest_json, group_status
from labeling.dataset.footers import unpacked
from pipelines.dashboard.changes import group_markers
from pipelines.dashboard.labeling_history import Labeling, labeling_history
from pipelines.dashboard.snapshots import Snapshot

NO_CONTENT = "missing"  # the digest of a range without any shard
# Between two listings of a group that shows no change: others may overwrite files in place, or without an index.
DISK_SECONDS, REMOTE_SECONDS = 3600.0, 900.0


@dataclass(frozen=True)
class RangeState(GroupStatus):
    """The status of a range of shards, with the digest of their content."""

    content: str = NO_CONTENT

    @property
    def is_fresh(self) -> bool:
        """Whether all shards are present and as declared."""
        return not (self.stale or self.missing)


@dataclass(frozen=True)
class Look:
    """When a group was listed (time.monotonic), and its marker just before (see `changes.group_markers`)."""

    marker: str | None
    time: float


class GroupFooters(Mapping[str, FooterTable]):
    """Footers of the groups of a dataset, each read when it is first asked for: a lab's would fill gigabytes."""

    def __init__(self, dataset: Dataset, groups: Sequence[str], known: Mapping[str, FooterTable] | None = None) -> None:
        self.dataset, self.groups = dataset, list(groups)
        self._read: dict[str, FooterTable] = {}
        self._known: dict[str, FooterTable]
        # Of groups not read yet: as they were before, and those of some of their shards.
        if isinstance(known, GroupFooters):  # `dict` of which would read all that it has not read yet
            self._known = {**known._known, **known._read}
        else:
            self._known = dict(known or {})

    def read(self, groups: Sequence[str], deadline: float = float("inf")) -> bool:
        """Read several at once, which a distant store answers in the time of one; whether all were before `deadline`.

        deadline: of time.monotonic. What was read until then is not read again.
        """
        wanted = [group for group in groups if group not in self._read]
        if not wanted:
            return True
        known = {group: self._known[group] for group in wanted if group in self._known}
        footers, is_complete = self.dataset.footers_until(deadline, wanted, known)
        if is_complete:
            self._read |= footers
            for group in wanted:
                self._known.pop(group, None)
        else:
            self._known |= footers
        return is_complete

    def __getitem__(self, group: str) -> FooterTable:
        if group not in self.groups:
            raise KeyError(group)
        self.read([group])
        return self._read[group]

    def __contains__(self, group: object) -> bool:
        return group in self.groups

    def __iter__(self) -> Iterator[str]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)


@dataclass(frozen=True)
class DatasetState:
    """What was present of a dataset when its shards were listed.

    ranges: group → key of a range → its state; contents: group → digest of all its shards; listed: group → digest of
    their files; looks: when that was. footers: of all groups; none in a state that is only kept to be compared, since a
    lab has 10⁷. dataset: as it was opened for this state.
    """

    snapshot: Snapshot
    shards: Sequence[str]
    ranges: dict[str, dict[str, RangeState]]
    footers: Mapping[str, FooterTable]
    contents: dict[str, str]
    listed: dict[str, str]
    looks: dict[str, Look]
    labelings: Sequence[Labeling]
    dataset: Dataset = field(compare=False)

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
        return replace(self, footers={}, dataset=Dataset(self.dataset.uri))


def dataset_state(snapshot: Snapshot, before: DatasetState | None = None) -> DatasetState:
    """What is present of a dataset. Costs a listing and the footers not known yet, of each group that may have changed.

    before: the last state, from which everything is taken that has not changed.
    """
    state = StateReading(snapshot, before).go_on()
    assert state is not None
    return state


class StateReading:
    """A reading of a dataset's state that may be interrupted: `partial` is what it knows by then."""

    def __init__(self, snapshot: Snapshot, before: DatasetState | None = None) -> None:
        self.snapshot, self.before = snapshot, before
        self.dataset = Dataset.open(snapshot.tracked.address)
        self.shards = self.dataset.shard_names
        groups = list(snapshot.groups)
        self._markers = dict(zip(groups, group_markers(self.dataset.store, groups), strict=True))
        self.labelings = labeling_history(self.dataset.store)
        self.footers = GroupFooters(self.dataset, groups, before.footers if before else None)
        self._listed: dict[str, str] = {}
        self._looks: dict[str, Look] = {}
        self._ranges: dict[str, dict[str, RangeState]] = {}
        self._contents: dict[str, str] = {}

    def go_on(self, deadline: float = float("inf")) -> DatasetState | None:
        """The state, or None where `deadline` (of time.monotonic) came first, or would come while the next is read.

        Some footers are read each time, and those of one more group where at least half of its time is left.
        """
        store = self.dataset.store
        to_list = [group for group in self.snapshot.groups if group not in self._listed and not self._take_over(group)]
        # A disk answers at once; a distant store is asked about several groups together.
        at_once = max(1, store.parallel // 8)
        longest = 0.0
        for first in range(0, len(to_list), at_once):
            if first and time.monotonic() + longest / 2 > deadline:
                return None
            groups, now = to_list[first : first + at_once], time.monotonic()
            if not self.footers.read(groups, deadline):
                return None
            for group in groups:
                self._listed[group] = self.footers[group].files_digest()
                self._looks[group] = Look(self._markers[group], now)
            longest = max(longest, time.monotonic() - now)
        to_count = [group for group in self.snapshot.groups if group not in self._ranges]
        for index, group in enumerate(to_count):
            if (index or to_list) and time.monotonic() > deadline:
                return None
            self._count(group)
        state = self.partial()
        before = self.before
        same = before is not None and (state.snapshot, state.shards, state.listed, state.labelings) == (
            before.snapshot,
            before.shards,
            before.listed,
            before.labelings,
        )
        if before is not None and same and before.ranges.keys() == state.ranges.keys():
            return replace(before, footers=self.footers, looks=state.looks, dataset=self.dataset)
        return state

    def partial(self) -> DatasetState:
        """What is known by now: a later reading takes it for the state before, and repeats nothing."""
        return DatasetState(
            self.snapshot,
            self.shards,
            self._ranges,
            self.footers,
            self._contents,
            self._listed,
            self._looks,
            self.labelings,
            self.dataset,
        )

    def _take_over(self, group: str) -> bool:
        """Take a group's listing from the state before, where it cannot have changed; whether it was taken."""
        look = self.before.looks.get(group) if self.before else None
        if self.before is None or look is None or look.marker is None or look.marker != self._markers[group]:
            return False
        is_remote = self.dataset.uri.startswith("s3://")
        if time.monotonic() - look.time > (REMOTE_SECONDS if is_remote else DISK_SECONDS):
            return False
        if self.shards != self.before.shards:  # the digest is of the dataset's shards among the files
            return False
        self._listed[group], self._looks[group] = self.before.listed[group], look
        return True

    def _count(self, group: str) -> None:
        if self.before and self._is_unchanged(group, self.before):
            self._ranges[group], self._contents[group] = self.before.ranges[group], self.before.contents[group]
            return
        declared = self.snapshot.groups[group]
        self._ranges[group] = {
            part.key: _range_state(declared, group, self.shards[part.first : part.end], self.footers)
            for part in self.snapshot.ranges
        }
        self._contents[group] = _content(self.shards, self.footers[group])

    def _is_unchanged(self, group: str, before: DatasetState) -> bool:
        """Whether a group, and all that it is made from, are declared and listed as before."""
        if group not in before.ranges or (self.snapshot.shards, self.shards) != (before.snapshot.shards, before.shards):
            return False
        return all(
            self.snapshot.groups[name] == before.snapshot.groups.get(name)
            and self._listed[name] == before.listed.get(name)
            for name in (group, *self.snapshot.upstream(group))
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
