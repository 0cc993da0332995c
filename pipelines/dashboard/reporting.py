"""Telling Dagster what is there: shards and checkpoints that were made anywhere, with the versions they have.

Dagster then draws the same line between fresh and stale as `status`. Where what it concludes from the versions it knows
differs from what the footers say, the asset is reported once more with versions that say so.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from model.inputs import one_line
from pipelines.dashboard.fingerprints import MISSING, Key, Version
from pipelines.dashboard.sheets import PICTURES

CODE, DATA, OWN = "dagster/code_version", "dagster/data_version", "dagster/data_version_is_user_provided"
INPUT, POINTER = "dagster/input_data_version", "dagster/input_event_pointer"
UNLIKE = "other than declared"  # the code version of what is stale, where no version tells why
MEMORY_SECONDS = 300.0
# Dagster keeps every event for good, and a range that a job works on changes with every shard: it is told of less and
# less often until it is whole.
LEAST_WAIT, MOST_WAIT = 60.0, 3600.0
_PICTURE = re.compile(rf"/{PICTURES}/([\w.]+)")
Part = tuple[Key, str | None]  # an asset and its partition
Metadata = Callable[[Version], Mapping[str, Any]]


@dataclass
class Reporter:
    """Reports to an instance, remembering for a while what it knows already."""

    instance: dg.DagsterInstance
    _known: dict[Part, tuple[float, Version]] = field(default_factory=dict)
    is_done: bool = True  # whether the last report told all there was
    _waits: dict[Part, tuple[float, float]] = field(default_factory=dict)  # of what is not whole: since when, how long

    def report(self, versions: Iterable[Version], metadata: Metadata, deadline: float = float("inf")) -> int:
        """Report what Dagster does not know yet, until `deadline` (of time.monotonic); how much that was.

        metadata: of an event, asked for only where there is one. Versions come after what they are made from.
        """
        count = 0
        self.is_done = True
        for event in self.events(versions, metadata):
            self.instance.report_runless_asset_event(event)
            count += 1
            if time.monotonic() > deadline:
                self.is_done = False
                break
        return count

    def events(
        self, versions: Iterable[Version], metadata: Metadata, again: bool = False
    ) -> Iterator[dg.AssetMaterialization]:
        """The events that Dagster lacks (all of them with `again`). Each must be reported before the next is taken."""
        held: set[Part] = set()
        for version in versions:
            place = (version.key, version.partition)
            since, known = self._known.get(place, (0.0, None))
            if not again and known == version and time.monotonic() - since < MEMORY_SECONDS:
                continue
            tags = None if again else self._latest_tags(version)
            if again or not _agrees(version, tags):
                # What is made from something held back would be compared with what Dagster still knows of that.
                inputs = {(key, version.partition) for key in version.inputs}
                if not again and (self._is_early(version) or held & inputs):
                    held.add(place)
                    self.is_done = False
                    continue
                self._told(version)
                yield dg.AssetMaterialization(
                    dg.AssetKey(version.key),
                    partition=version.partition,
                    metadata=_shown(metadata, version),
                    tags=self._tags(version),
                )
            self._known[place] = (time.monotonic(), version)

    def _is_early(self, version: Version) -> bool:
        """Whether it changes again and again, and was told of not long ago."""
        if version.fresh or version.content == MISSING:
            return False
        told, wait = self._waits.get((version.key, version.partition), (0.0, 0.0))
        return time.monotonic() - told < wait

    def _told(self, version: Version) -> None:
        place = (version.key, version.partition)
        before = self._waits.pop(place, (0.0, LEAST_WAIT / 2))[1]
        if not version.fresh:
            self._waits[place] = time.monotonic(), min(2 * before, MOST_WAIT)

    def _latest_tags(self, version: Version) -> Mapping[str, str] | None:
        records = self.instance.fetch_materializations(
            dg.AssetRecordsFilter(
                dg.AssetKey(version.key), asset_partitions=[version.partition] if version.partition else None
            ),
            limit=1,
        ).records
        return (records[0].event_log_entry.tags or {}) if records else None

    def _tags(self, version: Version) -> dict[str, str]:
        tags = {DATA: version.content, OWN: "true"}
        if version.code:
            tags[CODE] = version.code if version.fresh or _told_by_inputs(version) else UNLIKE
        for key, content in version.inputs.items():
            name = "/".join(key)
            tags[f"{INPUT}/{name}"] = content
            tags[f"{POINTER}/{name}"] = self._pointer(key) if content == version.current.get(key) else "1"
        return tags

    def _pointer(self, key: Key) -> str:
        """The event up to which Dagster is to take what is upstream for known, which it asks for in partitions."""
        records = self.instance.fetch_materializations(dg.AssetKey(key), limit=1).records
        return str(records[0].storage_id) if records else "NULL"


def _shown(metadata: Metadata, version: Version) -> dict[str, Any]:
    try:
        return dict(metadata(version))
    except Exception as error:  # a picture that cannot be drawn must not hide what is fresh
        return {"not shown": one_line(f"{type(error).__name__}: {error}")[:500]}


def _agrees(version: Version, tags: Mapping[str, str] | None) -> bool:
    """Whether what Dagster knows makes it say the same of the asset."""
    if tags is None:
        return version.content == MISSING
    if tags.get(DATA) != version.content:
        return False
    if version.code is None:
        return True
    known = {name.removeprefix(f"{INPUT}/"): value for name, value in tags.items() if name.startswith(INPUT)}
    current = {"/".join(key): content for key, content in version.current.items()}
    if version.fresh:
        return tags.get(CODE) == version.code and known == current
    return tags.get(CODE) != version.code or (known != current and version.partition is None)


def _told_by_inputs(version: Version) -> bool:
    """Whether Dagster sees by the inputs' versions that it is stale.

    Of a range it may not: it looks for observations alone of what is upstream and not made by a step of Dagster's.
    """
    return version.partition is None and any(
        content != version.current.get(key) for key, content in version.inputs.items()
    )


def shown_pictures(instance: dg.DagsterInstance) -> set[str]:
    """Names of the pictures that the newest event of each asset and each partition shows."""
    found: set[str] = set()
    for key in instance.all_asset_keys():
        newest = instance.get_latest_storage_id_by_partition(key, dg.DagsterEventType.ASSET_MATERIALIZATION)
        wanted = dg.AssetRecordsFilter(key, storage_ids=list(newest.values()))
        records = [
            *(instance.fetch_materializations(wanted, limit=len(newest)).records if newest else ()),
            *instance.fetch_materializations(key, limit=1).records,
            *instance.fetch_observations(key, limit=1).records,
        ]
        for record in records:
            event = record.asset_materialization or record.event_log_entry.asset_observation
            for value in event.metadata.values() if event else ():
                found.update(_PICTURE.findall(str(value.value)))
    return found
