"""Reporting what is present to Dagster: shards and checkpoints made by anyone, with their versions.

With these versions Dagster draws the same line between fresh and stale as `status`. Where its conclusion from the
versions that it knows differs from the footers, the asset is reported again with versions that correct it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from model.inputs import one_line
from pipelines.dashboard.dagster_internals import (
    CODE_VERSION,
    DATA_VERSION,
    DATA_VERSION_IS_OURS,
    INPUT_DATA_VERSION,
    INPUT_EVENT_POINTER,
    NO_EVENT,
)
from pipelines.dashboard.dataset_state import NO_CONTENT
from pipelines.dashboard.picture_files import PICTURES
from pipelines.dashboard.versions import AssetVersion, Key

STALE_CODE = "other than declared"  # the code version of what is stale, where the versions of its inputs do not say so
MEMORY_SECONDS = 300.0  # that a reported version is remembered, before Dagster is asked again what it knows
# Dagster keeps every event forever, and a range that a job works on changes with every shard. Until such a range is
# complete, it is reported after a wait that doubles each time.
MIN_WAIT, MAX_WAIT = 60.0, 3600.0
_PICTURE = re.compile(rf"/{PICTURES}/([\w.]+)")
Part = tuple[Key, str | None]  # an asset and its partition
Metadata = Callable[[AssetVersion], Mapping[str, Any]]


@dataclass
class Reporter:
    """Reports versions to an instance, and remembers for a while what the instance knows.

    is_complete: whether the last report included all that was to be reported; was_cut: whether its deadline ended it.
    """

    instance: dg.DagsterInstance
    is_complete: bool = True
    was_cut: bool = False
    _known: dict[Part, tuple[float, AssetVersion]] = field(default_factory=dict)  # when it was confirmed, and what
    _waits: dict[Part, tuple[float, float]] = field(default_factory=dict)  # of the incomplete: since when, how long

    def report(self, versions: Iterable[AssetVersion], metadata: Metadata, deadline: float = float("inf")) -> int:
        """Report what Dagster does not know yet, until `deadline` (of time.monotonic); the number of events.

        metadata: makes that of an event, called only where there is one. versions: each after those of its inputs.
        """
        count = 0
        self.is_complete, self.was_cut = True, False
        for event in self.events(versions, metadata):
            self.instance.report_runless_asset_event(event)
            count += 1
            if time.monotonic() > deadline:
                self.is_complete, self.was_cut = False, True
                break
        return count

    def events(
        self, versions: Iterable[AssetVersion], metadata: Metadata, repeat: bool = False
    ) -> Iterator[dg.AssetMaterialization]:
        """The events that Dagster lacks (with `repeat`, of all versions). Report each before taking the next."""
        delayed: set[Part] = set()
        for version in versions:
            part = (version.key, version.partition)
            since, known = self._known.get(part, (0.0, None))
            if not repeat and known == version and time.monotonic() - since < MEMORY_SECONDS:
                continue
            tags = None if repeat else self._latest_tags(version)
            if repeat or not _agrees(version, tags):
                # Dagster would compare what is made from something delayed with an old version of that.
                inputs = {(key, version.partition) for key in version.inputs}
                if not repeat and (self._must_wait(version) or delayed & inputs):
                    delayed.add(part)
                    self.is_complete = False
                    continue
                self._extend_wait(version)
                yield dg.AssetMaterialization(
                    dg.AssetKey(version.key),
                    partition=version.partition,
                    metadata=_safe_metadata(metadata, version),
                    tags=self._tags(version),
                )
            self._known[part] = (time.monotonic(), version)

    def _must_wait(self, version: AssetVersion) -> bool:
        """Whether it is incomplete, and was reported not long ago."""
        if version.fresh or version.content == NO_CONTENT:
            return False
        reported, wait = self._waits.get((version.key, version.partition), (0.0, 0.0))
        return time.monotonic() - reported < wait

    def _extend_wait(self, version: AssetVersion) -> None:
        part = (version.key, version.partition)
        before = self._waits.pop(part, (0.0, MIN_WAIT / 2))[1]
        if not version.fresh:
            self._waits[part] = time.monotonic(), min(2 * before, MAX_WAIT)

    def _latest_tags(self, version: AssetVersion) -> Mapping[str, str] | None:
        records = self.instance.fetch_materializations(
            dg.AssetRecordsFilter(
                dg.AssetKey(version.key), asset_partitions=[version.partition] if version.partition else None
            ),
            limit=1,
        ).records
        return (records[0].event_log_entry.tags or {}) if records else None

    def _tags(self, version: AssetVersion) -> dict[str, str]:
        tags = {DATA_VERSION: version.content, DATA_VERSION_IS_OURS: "true"}
        if version.code:
            tags[CODE_VERSION] = version.code if version.fresh or _is_stale_by_inputs(version) else STALE_CODE
        for key, content in version.inputs.items():
            name = "/".join(key)
            tags[f"{INPUT_DATA_VERSION}/{name}"] = content
            tags[f"{INPUT_EVENT_POINTER}/{name}"] = (
                self._event_pointer(key) if content == version.current.get(key) else "1"
            )
        return tags

    def _event_pointer(self, key: Key) -> str:
        """The newest event of an input. Of partitioned assets, Dagster takes what came until then for known."""
        records = self.instance.fetch_materializations(dg.AssetKey(key), limit=1).records
        return str(records[0].storage_id) if records else NO_EVENT


def _safe_metadata(metadata: Metadata, version: AssetVersion) -> dict[str, Any]:
    try:
        return dict(metadata(version))
    except Exception as error:  # a picture that cannot be drawn must not hide what is fresh
        return {"not shown": one_line(f"{type(error).__name__}: {error}")[:500]}


def _agrees(version: AssetVersion, tags: Mapping[str, str] | None) -> bool:
    """Whether Dagster, by the tags of its newest event, says of the asset what the footers say."""
    if tags is None:
        return version.content == NO_CONTENT
    if tags.get(DATA_VERSION) != version.content:
        return False
    if version.code is None:
        return True
    prefix = f"{INPUT_DATA_VERSION}/"
    known = {name.removeprefix(prefix): value for name, value in tags.items() if name.startswith(prefix)}
    current = {"/".join(key): content for key, content in version.current.items()}
    if version.fresh:
        return tags.get(CODE_VERSION) == version.code and known == current
    return tags.get(CODE_VERSION) != version.code or (known != current and version.partition is None)


def _is_stale_by_inputs(version: AssetVersion) -> bool:
    """Whether Dagster itself sees by the inputs' versions that it is stale.

    Of a partition it may not: there it considers only observations of inputs that no step of Dagster's makes.
    """
    return version.partition is None and any(
        content != version.current.get(key) for key, content in version.inputs.items()
    )


def shown_pictures(instance: dg.DagsterInstance) -> set[str]:
    """Names of the pictures in the newest event of each asset and each partition."""
    names: set[str] = set()
    for key in instance.all_asset_keys():
        newest = instance.get_latest_storage_id_by_partition(key, dg.DagsterEventType.ASSET_MATERIALIZATION)
        of_partitions = dg.AssetRecordsFilter(key, storage_ids=list(newest.values()))
        records = [
            *(instance.fetch_materializations(of_partitions, limit=len(newest)).records if newest else ()),
            *instance.fetch_materializations(key, limit=1).records,
            *instance.fetch_observations(key, limit=1).records,
        ]
        for record in records:
            event = record.asset_materialization or record.event_log_entry.asset_observation
            for value in event.metadata.values() if event else ():
                names.update(_PICTURE.findall(str(value.value)))
    return names
