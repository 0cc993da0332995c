"""Following what happens without Dagster: shards of the command line, runs that go on, new datasets and runs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from cluster.user_data import one_at_a_time
from labeling.dataset import digest_json
from model.inputs import one_line
from pipelines.dashboard.changes import fingerprint
from pipelines.dashboard.check_outcomes import DATASET_CHECKS, dataset_outcomes, report_outcomes, run_outcomes
from pipelines.dashboard.dataset_state import DatasetState, dataset_state
from pipelines.dashboard.metadata import (
    checkpoint_metadata,
    evaluation_metadata,
    group_metadata,
    labeling_metadata,
)
from pipelines.dashboard.picture_files import drop_old_pictures
from pipelines.dashboard.reporting import MEMORY_SECONDS, MIN_WAIT, Reporter, shown_pictures
from pipelines.dashboard.run_assets import versions_of
from pipelines.dashboard.snapshots import NOT_READ, Snapshot, refresh, snapshots
from pipelines.dashboard.tracked_assets import TrackedAsset, assets_of_jobs, track, tracked_assets
from pipelines.dashboard.versions import AssetVersion, dataset_versions

READ_TOGETHER = 8  # datasets and runs, whose answers are waited for together
REMOTE_SECONDS = 60.0  # between readings of datasets and runs that are not on this machine
CLEANUP_SECONDS = 3600.0  # between cleanups of the stored pictures


@dataclass(frozen=True)
class _Unfinished:
    """A dataset whose changes did not fit into a tick: with its footers, which the next tick need not read again.

    now: its fingerprint; since: when it was read.
    """

    now: str | None
    state: DatasetState
    since: float

    def is_of(self, snapshot: Snapshot, now: str | None) -> bool:
        """Whether it is what would be read now; of what has no fingerprint, for a while."""
        is_recent = time.monotonic() - self.since < REMOTE_SECONDS
        return self.state.snapshot == snapshot and self.now == now and (now is not None or is_recent)


@dataclass
class Follower:
    """Reads the datasets and runs and reports to Dagster what has changed."""

    instance: dg.DagsterInstance
    reporter: Reporter = field(init=False)
    _states: dict[str, DatasetState] = field(default_factory=dict)  # address → state when it was read
    # Times are those of time.monotonic.
    _read_times: dict[str, float] = field(default_factory=dict)  # name → when it was read
    _report_times: dict[str, float] = field(default_factory=dict)  # address → when its whole state had been reported
    _check_times: dict[str, float] = field(default_factory=dict)  # address → when all of its checks were evaluated
    _fingerprints: dict[str, str] = field(default_factory=dict)  # name → see `changes`, before it was read and reported
    _again_times: dict[str, float] = field(default_factory=dict)  # name → when to report what has to wait
    _costs: dict[str, float] = field(default_factory=dict)  # name → seconds that its last reading and reporting took
    _unfinished: _Unfinished | None = None
    _cleanup_time: float = float("-inf")

    def __post_init__(self) -> None:
        self.reporter = Reporter(self.instance)

    def follow(self, seconds: float = 40.0) -> list[str]:
        """Read everything once, for about so long. Returns a line for each dataset or run with changes or trouble.

        What does not fit into the time is reported the next time, before what was read since.
        """
        with one_at_a_time("dashboard-follow"):  # the server does the same once when it starts
            return self._follow(seconds)

    def _follow(self, seconds: float) -> list[str]:
        track(assets_of_jobs())
        reads = {snapshot.tracked.name: snapshot.reads for snapshot in snapshots()}
        now = {asset.name: self._fingerprint(asset, reads.get(asset.name, ())) for asset in tracked_assets()}
        assets = sorted(tracked_assets(), key=self._turn)
        due = [asset.name for asset in assets if self._is_due(asset.name, asset.address, now[asset.name])]
        deadline = time.monotonic() + seconds
        lines: list[str] = []
        # Some at a time: reading hundreds takes longer than a tick has, and those that do not answer are waited for.
        for first in range(0, len(due), READ_TOGETHER):
            if first and time.monotonic() > deadline:
                break
            names = due[first : first + READ_TOGETHER]
            refresh(names)
            track(("dataset", address) for snapshot in snapshots() for address, _ in snapshot.reads)
            lines += self._report_read(names, now, deadline, is_first=first == 0)
        if time.monotonic() - self._cleanup_time > CLEANUP_SECONDS:
            self._cleanup_time = time.monotonic()
            drop_old_pictures(shown_pictures(self.instance))
        return lines

    def _report_read(
        self, names: Sequence[str], now: Mapping[str, str | None], deadline: float, is_first: bool
    ) -> list[str]:
        """Report what was just read; a line for each dataset or run with changes or trouble.

        now: fingerprints; is_first: whether nothing was reported in this tick, so that something must be.
        """
        lines = []
        all_snapshots = snapshots()
        by_name = {snapshot.tracked.name: snapshot for snapshot in all_snapshots}
        for name in names:
            snapshot = by_name.get(name)
            if snapshot is None:  # taken out meanwhile
                continue
            if snapshot.trouble:
                lines.append(f"{name}: {snapshot.trouble}")
                self._read_times[name] = time.monotonic()
                continue
            began = time.monotonic()
            does_not_fit = not is_first and began + self._expected_cost(name) > deadline
            if does_not_fit or self._must_wait(snapshot, all_snapshots):
                continue
            is_first = False
            try:
                count = self._report(snapshot, all_snapshots, deadline, now[name])
            except Exception as error:  # the others are followed all the same
                lines.append(f"{name}: {one_line(error)}")
                continue
            self._costs[name] = time.monotonic() - began
            if not self.reporter.was_cut:  # otherwise it comes first the next time
                self._read_times[name] = time.monotonic()
            self._note(name, now[name])
            if count:
                lines.append(f"{name}: {count} changes")
        return lines

    def _expected_cost(self, name: str) -> float:
        """Seconds; of what was never read as much as the largest took."""
        return self._costs.get(name, max(self._costs.values(), default=0.0))

    def _must_wait(self, snapshot: Snapshot, all_snapshots: Sequence[Snapshot]) -> bool:
        """Whether a run reads a dataset whose state is not known yet: its freshness is not known either."""
        unknown = {address for address, _ in snapshot.reads} - self._states.keys()
        return any(one.tracked.address in unknown and one.trouble in ("", NOT_READ) for one in all_snapshots)

    def _turn(self, asset: TrackedAsset) -> tuple[float, bool, str]:
        """What was read longest ago comes first. Of what never was, datasets do: runs are compared with them."""
        return self._read_times.get(asset.name, float("-inf")), asset.kind == "run", asset.name

    def _fingerprint(self, asset: TrackedAsset, reads: Iterable[tuple[str, str]]) -> str | None:
        """Of a dataset or run on this machine, and of the content that a run is compared with."""
        own = fingerprint(asset.address, asset.kind == "run")
        states = [self._states[address].contents for address, _ in reads if address in self._states]
        return None if own is None else digest_json([own, states])

    def _is_due(self, name: str, address: str, now: str | None) -> bool:
        since = time.monotonic() - self._read_times.get(name, float("-inf"))
        if address.startswith("s3://"):
            return since > REMOTE_SECONDS
        if now is None or now != self._fingerprints.get(name) or since > MEMORY_SECONDS:
            return True
        return time.monotonic() > self._again_times.get(name, float("inf"))

    def _note(self, name: str, now: str | None) -> None:
        """Remember what was reported of a dataset or run, as far as it was."""
        self._fingerprints.pop(name, None)
        self._again_times.pop(name, None)
        if now is None or self.reporter.was_cut:
            return
        self._fingerprints[name] = now
        if not self.reporter.is_complete:
            self._again_times[name] = time.monotonic() + MIN_WAIT

    def _report(self, snapshot: Snapshot, all_snapshots: Sequence[Snapshot], deadline: float, now: str | None) -> int:
        address = snapshot.tracked.address
        self.reporter.is_complete, self.reporter.was_cut = True, False
        if snapshot.tracked.kind == "run":
            versions = versions_of(snapshot, self._states, all_snapshots)

            def metadata(version: AssetVersion) -> dict[str, Any]:
                return checkpoint_metadata(address) if version.key[1] == "checkpoints" else evaluation_metadata(address)

            count = self.reporter.report(versions, metadata, deadline)
            return count + report_outcomes(self.instance, run_outcomes(snapshot))
        return self._report_dataset(snapshot, deadline, now)

    def _report_dataset(self, snapshot: Snapshot, deadline: float, fingerprint_now: str | None) -> int:
        address = snapshot.tracked.address
        before, now = self._states.get(address), time.monotonic()
        unfinished, self._unfinished = self._unfinished, None
        if unfinished is None or not unfinished.is_of(snapshot, fingerprint_now):
            unfinished = _Unfinished(fingerprint_now, dataset_state(snapshot, before), now)
        state = unfinished.state
        self._states[address] = state.without_footers()
        now = time.monotonic()
        if state.is_as(before) and now - self._report_times.get(address, float("-inf")) < MEMORY_SECONDS:
            return 0
        self._report_times.pop(address, None)
        count = self.reporter.report(dataset_versions(state), lambda version: group_metadata(state, version), deadline)
        is_complete = self.reporter.is_complete
        if self.reporter.was_cut:
            self._unfinished = unfinished
        new = [labeling for labeling in state.labelings if before and labeling not in before.labelings]
        for labeling in new:  # a job states its speed some moments after its last shard
            key = dg.AssetKey([snapshot.tracked.name, labeling.group])
            self.instance.report_runless_asset_event(dg.AssetObservation(key, metadata=labeling_metadata(labeling)))
        # The speed changes only when a job ends, and comparing it reads many events.
        checks = DATASET_CHECKS
        if new or now - self._check_times.get(address, float("-inf")) > MEMORY_SECONDS:
            self._check_times[address] = now
        else:
            checks = DATASET_CHECKS - {"speed"}
        count += report_outcomes(self.instance, dataset_outcomes(state, self.instance, checks))
        if is_complete:
            self._report_times[address] = time.monotonic()
        return count
