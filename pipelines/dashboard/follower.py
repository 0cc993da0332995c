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
from pipelines.dashboard.dataset_state import DatasetState, StateReading
from pipelines.dashboard.metadata import (
    checkpoint_metadata,
    evaluation_metadata,
    group_metadata,
    labeling_metadata,
)
from pipelines.dashboard.picture_files import drop_old_pictures, takes_too_much
from pipelines.dashboard.reporting import MEMORY_SECONDS, MIN_WAIT, Reporter, shown_pictures
from pipelines.dashboard.run_assets import versions_of
from pipelines.dashboard.snapshots import NOT_READ, Snapshot, refresh, snapshots
from pipelines.dashboard.tracked_assets import TrackedAsset, assets_of_jobs, track, tracked_assets
from pipelines.dashboard.versions import AssetVersion, dataset_versions

READ_TOGETHER = 8  # datasets and runs, whose answers are waited for together
REMOTE_SECONDS = 60.0  # between readings of datasets and runs that are not on this machine
CLEANUP_SECONDS = 3600.0  # between cleanups of the stored pictures


@dataclass
class _Unfinished:
    """A dataset whose state or changes did not fit into a tick: with its footers, which the next need not read again.

    now: its fingerprint; reading: of its state, which begun at `since`; state: None while it is being read; checked:
    the groups whose checks were reported.
    """

    now: str | None
    reading: StateReading
    since: float
    state: DatasetState | None = None
    checked: set[str] = field(default_factory=set)

    def is_of(self, snapshot: Snapshot, now: str | None) -> bool:
        """Whether it is what would be read now; of what has no fingerprint, for a while."""
        is_recent = time.monotonic() - self.since < REMOTE_SECONDS
        return self.reading.snapshot == snapshot and self.now == now and (now is not None or is_recent)

    def is_for(self, address: str) -> bool:
        """Whether it is of the dataset at an address, as it may have been before."""
        return self.reading.snapshot.tracked.address == address


@dataclass
class Follower:
    """Reads the datasets and runs and reports to Dagster what has changed."""

    instance: dg.DagsterInstance
    reporter: Reporter = field(init=False)
    _states: dict[str, DatasetState] = field(default_factory=dict)  # address → state when it was read
    # Times are those of time.monotonic.
    _read_times: dict[str, float] = field(default_factory=dict)  # name → when it was read
    _report_times: dict[str, float] = field(default_factory=dict)  # address → when its whole state had been reported
    _compared: set[tuple[str, str]] = field(default_factory=set)  # (address, group) whose speed was compared
    _fingerprints: dict[str, str] = field(default_factory=dict)  # name → see `changes`, before it was read and reported
    _again_times: dict[str, float] = field(default_factory=dict)  # name → when to report what has to wait
    _unfinished: _Unfinished | None = None
    _cleanup_time: float = float("-inf")
    _unseen: list[dg.AssetKey] = field(default_factory=list)  # assets whose pictures a cleanup has still to look for
    _shown: set[str] = field(default_factory=set)  # pictures that it has found

    def __post_init__(self) -> None:
        self.reporter = Reporter(self.instance)

    def follow(self, seconds: float = 40.0) -> list[str]:
        """Read everything once, for about so long. Returns a line for each dataset or run with changes or trouble.

        What does not fit into the time is reported the next time, before what was read since.
        """
        with one_at_a_time("dashboard-follow"):  # the server does the same once when it starts
            return self._follow(seconds)

    def _follow(self, seconds: float) -> list[str]:
        deadline = time.monotonic() + seconds
        track(assets_of_jobs())
        reads = {snapshot.tracked.name: snapshot.reads for snapshot in snapshots()}
        now = {asset.name: self._fingerprint(asset, reads.get(asset.name, ())) for asset in tracked_assets()}
        assets = sorted(tracked_assets(), key=self._turn)
        due = [asset.name for asset in assets if self._is_due(asset.name, asset.address, now[asset.name])]
        lines: list[str] = []
        # Some at a time: reading hundreds takes longer than a tick has, and those that do not answer are waited for.
        # What the last tick left unfinished may fill this one too.
        while due:
            size = 1 if self._unfinished else READ_TOGETHER
            names, due = due[:size], due[size:]
            refresh(names)
            track(("dataset", address) for snapshot in snapshots() for address, _ in snapshot.reads)
            lines += self._report_read(names, now, deadline)
            if time.monotonic() > deadline:
                break
        self._clean_up(deadline)
        return lines

    def _clean_up(self, deadline: float) -> None:
        """Drop pictures that no page shows, where they take too much; which those are takes thousands of queries."""
        if not self._unseen and time.monotonic() - self._cleanup_time > CLEANUP_SECONDS:
            self._cleanup_time = time.monotonic()
            if takes_too_much():
                self._unseen, self._shown = list(self.instance.all_asset_keys()), set()
        while self._unseen:
            self._shown |= shown_pictures(self.instance, [self._unseen.pop()])
            if not self._unseen:
                drop_old_pictures(self._shown)
                self._shown = set()
            if time.monotonic() > deadline:
                break

    def _report_read(self, names: Sequence[str], now: Mapping[str, str | None], deadline: float) -> list[str]:
        """Report what was just read, the first of it in any case; a line for each with changes or trouble.

        now: fingerprints.
        """
        lines, has_reported = [], False
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
            if (has_reported and time.monotonic() > deadline) or self._must_wait(snapshot, all_snapshots):
                continue
            has_reported = True
            try:
                count = self._report(snapshot, all_snapshots, deadline, now[name])
            except Exception as error:  # the others are followed all the same
                lines.append(f"{name}: {one_line(error)}")
                self._read_times[name] = time.monotonic()
                continue
            if not self.reporter.was_cut:  # otherwise it comes first the next time
                self._read_times[name] = time.monotonic()
            self._note(name, now[name])
            if count:
                lines.append(f"{name}: {count} changes")
        return lines

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
        before, unfinished = self._states.get(address), self._unfinished
        self._unfinished = None
        if unfinished is None or not unfinished.is_of(snapshot, fingerprint_now):
            known = unfinished.reading.partial() if unfinished and unfinished.is_for(address) else before
            unfinished = _Unfinished(fingerprint_now, StateReading(snapshot, known), time.monotonic())
        if unfinished.state is None:
            unfinished.state = unfinished.reading.go_on(deadline)
            if unfinished.state is None:
                return self._cut(unfinished)
            self._states[address] = unfinished.state.without_footers()
            self._report_labelings(unfinished.state, before)
        state, now = unfinished.state, time.monotonic()
        if state.is_as(before) and now - self._report_times.get(address, float("-inf")) < MEMORY_SECONDS:
            return 0
        self._report_times.pop(address, None)
        count = self.reporter.report(dataset_versions(state), lambda version: group_metadata(state, version), deadline)
        if self.reporter.was_cut:
            return self._cut(unfinished, count)
        is_complete = self.reporter.is_complete
        unchecked = [group for group in snapshot.labels if group not in unfinished.checked]
        for index, group in enumerate(unchecked):
            if index and time.monotonic() > deadline:
                return self._cut(unfinished, count)
            # The speed changes only when a job ends, and comparing it reads many events.
            checks = DATASET_CHECKS - {"speed"} if (address, group) in self._compared else DATASET_CHECKS
            count += report_outcomes(self.instance, dataset_outcomes(state, self.instance, checks, [group]))
            self._compared.add((address, group))
            unfinished.checked.add(group)
        if is_complete:
            self._report_times[address] = time.monotonic()
        return count

    def _report_labelings(self, state: DatasetState, before: DatasetState | None) -> None:
        """Report what jobs state of their speed, some moments after their last shard."""
        tracked = state.snapshot.tracked
        for labeling in state.labelings:
            if before and labeling not in before.labelings:
                key = dg.AssetKey([tracked.name, labeling.group])
                self.instance.report_runless_asset_event(dg.AssetObservation(key, metadata=labeling_metadata(labeling)))
                self._compared.discard((tracked.address, labeling.group))

    def _cut(self, unfinished: _Unfinished, count: int = 0) -> int:
        """Go on with a dataset in the next tick; the number of changes reported by now."""
        self._unfinished = unfinished
        self.reporter.is_complete, self.reporter.was_cut = False, True
        return count
