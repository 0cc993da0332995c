"""The ingest of a list of addresses: ranges of its rows become shards. Nothing here grows with the rows of the list."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from cluster.ray_environment import starts_own_ray
from labeling.dataset import GROUP_FILE, IMAGES, REJECTED, Dataset, ShardInfo, in_parallel, lease, shard_file
from labeling.sources.addresses.lists import AddressList, open_list
from labeling.sources.addresses.lots import (
    ListWork,
    Lot,
    RetryLot,
    ShardOutcome,
    cut_lots,
    failed_rows,
    kind,
)
from labeling.sources.addresses.policy import FetchPolicy
from labeling.sources.addresses.rows import Cut, ListFile, RowRange
from labeling.sources.addresses.shards import Columns, Making, forget_failed, reject_rows
from labeling.sources.addresses.sharing import HostShares
from labeling.sources.cutting import SHARD_ROWS
from labeling.sources.duplicates import Losers, find_duplicates
from labeling.sources.ingest import Limits, same_bytes
from labeling.sources.patterns import matcher
from labeling.sources.seen import ITEMS, read_seen
from labeling.sources.source import Source
from labeling.sources.survey import read_description
from model.inputs import InputError
from pipelines.ingest_job.host_shares import shares_on_ray
from pipelines.ingest_job.workers import Workers
from pipelines.progress import progress

_HERE_ROWS = 4096  # up to which an ingest ends before a Ray of its own would have started and done it
_FEW_ROWS = 256  # likewise, where a cluster runs already
_HERE_LOTS = 2  # at a time, in this process: one is written while another is fetched
_FILES_AT_A_TIME = 8  # that are cut into ranges


@dataclass(frozen=True)
class ListOptions:
    """How a list of addresses is ingested.

    url: column of the addresses, "" for the usual ones; retry_failed: try again what failed for a reason that may have
    passed.
    """

    url: str = ""
    policy: FetchPolicy = field(default_factory=FetchPolicy)
    retry_failed: bool = False


def open_addresses(
    source: Source, target: Dataset, options: ListOptions | None = None, leave_out: str = ""
) -> AddressList | None:
    """The list of addresses that a source is, None where it is something else.

    Columns that are not named are those of an earlier ingest, or the usual ones. leave_out: a folder in the source that
    does not belong to it. Raises InputError where a column that is named is not there.
    """
    known = _known(source.address, target).get("columns", {})
    url, text = (options.url if options else "") or known.get("url"), source.naming.text or known.get("text")
    return open_list(source.store, _names(source, leave_out), url, text)


def new_ranges(address: str, addresses: AddressList, target: Dataset) -> dict[str, int]:
    """What of a list a dataset has not looked at: "FILE, rows from N" → how many. address: of the list."""
    files = _known(address, target).get("files", {})
    new: dict[str, int] = {}
    for file in addresses.files:
        first = int(files.get(file.name, {}).get("rows", 0))
        if (rows := file.cut(first, SHARD_ROWS).rows) > first:
            new[f"{file.name}, rows from {first + 1}"] = rows - first
    return new


def _known(address: str, target: Dataset) -> dict[str, Any]:
    """What a dataset says of a source, {} where there is no dataset or it has not that source."""
    try:
        sources = target.description["sources"]
    except InputError:
        return {}
    return next((source for source in sources if source.get("uri") == address), {})


def _names(source: Source, leave_out: str) -> Iterator[str]:
    if source.parts.file:
        yield source.parts.file
        return
    matches = matcher(source.parts.pattern) if source.parts.pattern else None
    for name, _ in source.store.scan():
        if not (leave_out and name.startswith(f"{leave_out}/")) and (matches is None or matches(name)):
            yield name


@dataclass(frozen=True)
class ListResult:
    """Rows added and rejected by this run, all rows of the dataset, and lines for the user."""

    added: int
    rejected: int
    images: int
    remarks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _State:
    """A dataset before the ingest. number: of the list among its sources."""

    description: bytes | None
    shards: list[ShardInfo]
    sources: list[dict[str, Any]]
    number: int
    removed: dict[str, list[int]] = field(default_factory=dict)

    @property
    def files(self) -> dict[str, dict[str, Any]]:
        """File of the list → rows that the dataset has looked at, and their digest."""
        return dict(self.sources[self.number].get("files", {}))


@dataclass(frozen=True)
class ListIngest:
    """An ingest of a list. address: by which the dataset remembers it; declaration: of the group of images."""

    address: str
    addresses: AddressList
    target: Dataset
    limits: Limits
    declaration: Mapping[str, Any]
    shard_rows: int
    options: ListOptions

    def run(self) -> ListResult:
        """Add the rows that the dataset does not have yet. An interrupted run goes on with the shards not yet written.

        Raises InputError for a dataset of sets, and for a new list without rows or of which no address gives a picture.
        """
        state = self._state()
        cuts = self._cuts(state)
        remarks = list(self._remarks(state, cuts))
        if not self._has_work(state, cuts):
            if state.description is None:
                raise InputError(f"{self.address}: a list without rows")
            return ListResult(0, 0, _rows(state.shards), remarks)
        folders = self.target.store.without_empty_folders([REJECTED, ITEMS])
        with Workers() as workers, folders, lease(self.target.store, [IMAGES]):
            if read_description(self.target.uri) != state.description:  # another ingest has ended since
                state = self._state()
                cuts = self._cuts(state)
            self.target.declare(IMAGES, self.declaration)
            return self._ingest(state, cuts, workers, remarks)

    def _state(self) -> _State:
        description = read_description(self.target.uri)
        if description is None:
            return _State(None, [], [{"uri": self.address}], 0)
        dataset = Dataset.open(self.target.uri)
        if dataset.has_sets:
            raise InputError(f"{dataset.uri}: a dataset of {dataset.kind}; pictures are ingested into one of pictures")
        sources = [dict(source) for source in dataset.description["sources"]]
        uris = [source.get("uri") for source in sources]
        if self.address not in uris:
            sources.append({"uri": self.address})
            uris.append(self.address)
        removed = dataset.description.get("removed", {})
        return _State(description, dataset.shards, sources, uris.index(self.address), removed)

    def _cuts(self, state: _State) -> dict[str, Cut]:
        """The ranges of rows of each file that the dataset does not have yet."""

        def cut(file: ListFile) -> Cut:
            return file.cut(int(state.files.get(file.name, {}).get("rows", 0)), self.shard_rows)

        files = self.addresses.files
        cuts = in_parallel(cut, files, _FILES_AT_A_TIME)
        return {file.name: cut for file, cut in zip(files, cuts, strict=True)}

    def _remarks(self, state: _State, cuts: Mapping[str, Cut]) -> Iterator[str]:
        """What of the list is another than when it was ingested."""
        for name, known in state.files.items():
            cut = cuts.get(name)
            if cut is None:
                yield f"{name} is not in the list any more; its rows stay in the dataset"
            elif cut.rows < known["rows"]:
                yield f"{name} has {cut.rows} rows and had {known['rows']}; the rows taken from it stay in the dataset"
            elif cut.earlier and cut.earlier != known["digest"]:
                yield f"{name} has changed in rows that were ingested before; those stay in the dataset as they are"

    def _has_work(self, state: _State, cuts: Mapping[str, Cut]) -> bool:
        return any(cut.ranges for cut in cuts.values()) or (self.options.retry_failed and any(self._failed(state)))

    def _failed(self, state: _State) -> Iterator[tuple[str, list[tuple[str, int]]]]:
        """Shards of this list that rejected rows for a reason that may have passed, with those rows."""
        own = [shard.name for shard in state.shards if shard.source == state.number]
        rows = in_parallel(lambda shard: failed_rows(self.target, shard), own, self.target.store.parallel)
        for shard, failed in zip(own, rows, strict=True):
            if failed:
                yield shard, failed

    def _ingest(self, state: _State, cuts: Mapping[str, Cut], workers: Workers, remarks: list[str]) -> ListResult:
        rows = sum(one.rows for cut in cuts.values() for one in cut.ranges)
        on_cluster = rows > (_HERE_ROWS if starts_own_ray() else _FEW_ROWS)
        at_once = workers.processes() if on_cluster else _HERE_LOTS
        new = self._lots(cuts, len(state.shards), at_once)
        first_retry = len(state.shards) + sum(len(lot.shards) for lot in new)
        again = list(self._retry_lots(state, first_retry)) if self.options.retry_failed else []
        columns = Columns(self.addresses.url, self.addresses.text)
        threads = 1 if on_cluster else max(1, (os.cpu_count() or 1) // _HERE_LOTS)
        policy = self.options.policy
        shares = (shares_on_ray if on_cluster else HostShares)(policy.host_connections)
        making = Making(columns, self.limits, policy, threads, shares)
        work = ListWork(self.target, {file.name: file for file in self.addresses.files}, making, self.declaration)
        outcomes = self._write(work, [*new, *again], workers, on_cluster)
        if again and not any(outcomes[lot.shard].taken for lot in again) and not new:
            self._delete(lot.shard for lot in again)
            return ListResult(0, 0, _rows(state.shards), [*remarks, "what had failed has failed again"])
        self._settle(state, outcomes, workers, on_cluster)
        shards = [ShardInfo(name, outcome.taken, state.number) for name, outcome in outcomes.items()]
        reasons = sum((outcome.reasons for outcome in outcomes.values()), Counter[str]())
        added, rejected = _rows(shards), reasons.total()
        if not added and not state.shards:
            self._delete(outcomes)
            self.target.store.delete(f"{IMAGES}/{GROUP_FILE}")
            raise InputError(f"{self.address}: none of {rejected} addresses gave a picture ({_counted(reasons)})")
        files = state.files | {
            name: {"rows": cut.rows, "digest": cut.digest}
            for name, cut in cuts.items()
            if cut.ranges or name not in state.files
        }
        sources = [
            {**source, "columns": asdict(columns), "files": files} if number == state.number else source
            for number, source in enumerate(state.sources)
        ]
        self.target.describe("pictures", [*state.shards, *shards], sources, state.removed)
        for shard in dict.fromkeys(shard for lot in again for shard, _ in lot.earlier):
            forget_failed(self.target, shard)
        if reasons:
            remarks.append(f"rejected: {_counted(reasons)}")
        return ListResult(added, rejected, _rows(state.shards) + added, remarks)

    def _lots(self, cuts: Mapping[str, Cut], first_shard: int, at_once: int) -> list[Lot]:
        lots: list[Lot] = []
        for cut in cuts.values():
            lots += cut_lots(cut.ranges, first_shard, at_once)
            first_shard += len(cut.ranges)
        return lots

    def _retry_lots(self, state: _State, first_shard: int) -> Iterator[RetryLot]:
        """Shards of the rows that failed, in the order in which they failed."""
        ranges = {
            file.name: cut.ranges
            for file, cut in zip(
                self.addresses.files,
                in_parallel(lambda file: file.cut(0, self.shard_rows), self.addresses.files, _FILES_AT_A_TIME),
                strict=True,
            )
        }
        earlier: list[tuple[str, tuple[RowRange, ...]]] = []
        rows = 0
        for shard, failed in self._failed(state):
            numbers = sorted({(file, place // self.shard_rows) for file, place in failed})
            some = tuple(ranges[file][at] for file, at in numbers if at < len(ranges.get(file, ())))
            if some:
                earlier.append((shard, some))
                rows += len(failed)
            if rows >= self.shard_rows:
                yield RetryLot(f"{first_shard:06d}", tuple(earlier), rows)
                earlier, rows, first_shard = [], 0, first_shard + 1
        if earlier:
            yield RetryLot(f"{first_shard:06d}", tuple(earlier), rows)

    def _write(
        self, work: ListWork, lots: Sequence[Lot | RetryLot], workers: Workers, on_cluster: bool
    ) -> dict[str, ShardOutcome]:
        """Make the shards of all lots; what became of each, in their order."""
        outcomes: dict[str, ShardOutcome] = {}
        with progress("ingest", sum(lot.rows for lot in lots), "addresses") as advance:
            made = (
                workers.map(_Write(work), ((lot,) for lot in lots), on_cluster)
                if on_cluster
                else in_parallel(_Write(work), lots, _HERE_LOTS)
            )
            for some in made:
                outcomes |= {outcome.shard: outcome for outcome in some}
                advance(sum(outcome.taken + outcome.reasons.total() for outcome in some))
        return dict(sorted(outcomes.items()))

    def _settle(self, state: _State, outcomes: dict[str, ShardOutcome], workers: Workers, on_cluster: bool) -> None:
        """Reject pictures that equal one of an earlier shard."""
        shards = [*(shard.name for shard in state.shards), *outcomes]
        losers = find_duplicates(self.target, shards, len(state.shards)) if len(shards) > 1 else []
        reject = _Reject(self.target, shards, len(state.shards))
        for shard, reasons, left in workers.map(reject, ((one,) for one in losers), on_cluster):
            known = outcomes[shard]
            outcomes[shard] = ShardOutcome(shard, left, known.reasons + reasons)

    def _delete(self, shards: Iterable[str]) -> None:
        for shard in shards:
            for group in (IMAGES, REJECTED, ITEMS):
                self.target.store.delete(shard_file(group, shard))


@dataclass(frozen=True)
class _Write:
    work: ListWork

    def __call__(self, lot: Lot | RetryLot) -> list[ShardOutcome]:
        return lot.write(self.work)


@dataclass(frozen=True)
class _Reject:
    """Rejects what of a shard equals earlier pictures; new: number of the first shard of this run."""

    target: Dataset
    shards: Sequence[str]
    new: int

    def __call__(self, losers: Losers) -> tuple[str, Counter[str], int]:
        ids = self._seen(losers.shard, "id")
        names = {number: self._seen(number, "name") for number in set(losers.first_shards.tolist())}
        reasons: dict[str, str] = {}
        for item, number, first_item in zip(losers.items, losers.first_shards, losers.first_items, strict=True):
            known = f"in the dataset already, as {ids[item]}"
            reasons[ids[item]] = same_bytes(names[number][first_item]) if number >= self.new else known
        shard = self.shards[losers.shard]
        return shard, Counter(map(kind, reasons.values())), reject_rows(self.target, shard, reasons)

    def _seen(self, shard: int, column: str) -> list[str]:
        return list(read_seen(self.target, self.shards[shard])[column].to_pylist())


def _rows(shards: Sequence[ShardInfo]) -> int:
    return sum(shard.rows for shard in shards)


def _counted(reasons: Counter[str], most: int = 6) -> str:
    """The commonest reasons with their numbers, in one line."""
    shown = [f"{count} {reason}" for reason, count in reasons.most_common(most)]
    others = reasons.total() - sum(count for _, count in reasons.most_common(most))
    return ", ".join([*shown, *([f"{others} others"] if others else [])])
