"""Following what happens without Dagster: shards written by the command line, runs that go on, places that are new."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from cluster.user_data import one_at_a_time
from model.inputs import one_line
from pipelines.dashboard.checks import DATASET_CHECKS, dataset_verdicts, report_verdicts, run_verdicts
from pipelines.dashboard.details import checkpoint_details, evaluation_details, group_details, labeling_details
from pipelines.dashboard.fingerprints import DatasetState, Version, dataset_state, dataset_versions
from pipelines.dashboard.reporting import MEMORY_SECONDS, Reporter, shown_pictures
from pipelines.dashboard.runs import versions_of
from pipelines.dashboard.sheets import drop_old_pictures
from pipelines.dashboard.snapshots import NOT_YET, Snapshot, refresh, snapshots
from pipelines.dashboard.tracked_assets import places, remember, worked_on

FAR_SECONDS = 60.0  # between looks at places that are not on this machine
TIDY_SECONDS = 3600.0  # between looks at the pictures that are kept


@dataclass
class Follower:
    """Looks at the places and tells Dagster what changed."""

    instance: dg.DagsterInstance
    reporter: Reporter = field(init=False)
    _looked: dict[str, float] = field(default_factory=dict)
    _states: dict[str, DatasetState] = field(default_factory=dict)
    _told: dict[str, float] = field(default_factory=dict)  # address → when all that was there had been told
    _checked: dict[str, float] = field(default_factory=dict)  # address → when all of its checks were looked at
    _tidied: float = float("-inf")

    def __post_init__(self) -> None:
        self.reporter = Reporter(self.instance)

    def follow(self, seconds: float = 40.0) -> list[str]:
        """Look once, for about so long; what there was to tell, and which places gave trouble, a line each.

        What does not fit is told the next time.
        """
        with one_at_a_time("dashboard-follow"):  # the server looks once itself
            return self._follow(seconds)

    def _follow(self, seconds: float) -> list[str]:
        remember(worked_on())
        due = [place.name for place in places() if self._is_due(place.name, place.address)]
        refresh(due)
        deadline = time.monotonic() + seconds
        remember(("dataset", address) for one in snapshots() for address, _ in one.reads)
        told = []
        # Datasets first: what is made from them is compared with what they hold now.
        seen = snapshots()
        for snapshot in sorted(seen, key=lambda one: (one.place.kind == "run", one.place.name)):
            name = snapshot.place.name
            if snapshot.trouble:
                told.append(f"{name}: {snapshot.trouble}")
                self._looked[name] = time.monotonic()
                continue
            if name not in due or time.monotonic() > deadline or self._waits(snapshot, seen):
                continue
            try:
                count = self._tell(snapshot, seen, deadline)
            except Exception as error:  # the others are followed all the same
                told.append(f"{name}: {one_line(error)}")
                continue
            self._looked[name] = time.monotonic()
            if count:
                told.append(f"{name}: {count} changes")
        if time.monotonic() - self._tidied > TIDY_SECONDS:
            self._tidied = time.monotonic()
            drop_old_pictures(shown_pictures(self.instance))
        return told

    def _waits(self, snapshot: Snapshot, seen: Sequence[Snapshot]) -> bool:
        """Whether a run reads a dataset that was not looked at yet: then it is not known whether it is fresh."""
        read = {address for address, _ in snapshot.reads} - self._states.keys()
        return any(one.place.address in read and one.trouble in ("", NOT_YET) for one in seen)

    def _is_due(self, name: str, address: str) -> bool:
        if not address.startswith("s3://"):
            return True
        return time.monotonic() - self._looked.get(name, float("-inf")) > FAR_SECONDS

    def _tell(self, snapshot: Snapshot, seen: Sequence[Snapshot], deadline: float) -> int:
        address = snapshot.place.address
        if snapshot.place.kind == "run":
            versions = versions_of(snapshot, self._states, seen)

            def details(one: Version) -> dict[str, Any]:
                return checkpoint_details(address) if one.key[1] == "checkpoints" else evaluation_details(address)

            count = self.reporter.report(versions, details, deadline)
            return count + report_verdicts(self.instance, run_verdicts(snapshot))
        return self._tell_of_dataset(snapshot, deadline)

    def _tell_of_dataset(self, snapshot: Snapshot, deadline: float) -> int:
        address = snapshot.place.address
        before = self._states.get(address)
        state = self._states[address] = dataset_state(snapshot, before)
        now = time.monotonic()
        if state is before and now - self._told.get(address, float("-inf")) < MEMORY_SECONDS:
            return 0
        self._told.pop(address, None)
        count = self.reporter.report(dataset_versions(state), lambda one: group_details(state, one), deadline)
        is_done = self.reporter.is_done
        new = [one for one in state.labelings if before and one not in before.labelings]
        for one in new:  # a job says how fast it was some moments after its last shard
            key = dg.AssetKey([snapshot.place.name, one.group])
            self.instance.report_runless_asset_event(dg.AssetObservation(key, metadata=labeling_details(one)))
        # How fast it was says nothing new until a job ends, and costs looking at many events.
        checks = DATASET_CHECKS
        if new or now - self._checked.get(address, float("-inf")) > MEMORY_SECONDS:
            self._checked[address] = now
        else:
            checks -= {"speed"}
        count += report_verdicts(self.instance, dataset_verdicts(state, self.instance, checks))
        if is_done:
            self._told[address] = time.monotonic()
        return count
