"""Telling Dagster what is there: shards and checkpoints that were made anywhere, with the versions they have.

Dagster then draws the same line between fresh and stale as `status`. Where what it concludes from the versions it knows
differs from what the footers say, the asset is reported once more with versions that say so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from pipelines.dashboard.fingerprints import MISSING, Key, Version

CODE, DATA, OWN = "dagster/code_version", "dagster/data_version", "dagster/data_version_is_user_provided"
INPUT, POINTER = "dagster/input_data_version", "dagster/input_event_pointer"
UNLIKE = "other than declared"  # the code version of what is stale, where no version tells why
MEMORY_SECONDS = 300.0
Metadata = Callable[[Version], Mapping[str, Any]]


@dataclass
class Reporter:
    """Reports to an instance, remembering for a while what it knows already."""

    instance: dg.DagsterInstance
    _known: dict[tuple[Key, str | None], tuple[float, Version]] = field(default_factory=dict)

    def report(self, versions: Iterable[Version], metadata: Metadata, deadline: float = float("inf")) -> int:
        """Report what Dagster does not know yet, until `deadline` (of time.monotonic); how much that was.

        metadata: of an event, asked for only where there is one.
        """
        count = 0
        for event in self.events(versions, metadata):
            self.instance.report_runless_asset_event(event)
            count += 1
            if time.monotonic() > deadline:
                break
        return count

    def events(
        self, versions: Iterable[Version], metadata: Metadata, again: bool = False
    ) -> Iterator[dg.AssetMaterialization]:
        """The events that Dagster lacks (all of them with `again`). Each must be reported before the next is taken."""
        for version in versions:
            place = (version.key, version.partition)
            since, known = self._known.get(place, (0.0, None))
            if not again and known == version and time.monotonic() - since < MEMORY_SECONDS:
                continue
            tags = None if again else self._latest_tags(version)
            if again or not _agrees(version, tags):
                yield dg.AssetMaterialization(
                    dg.AssetKey(version.key),
                    partition=version.partition,
                    metadata=_shown(metadata, version),
                    tags=self._tags(version),
                )
            self._known[place] = (time.monotonic(), version)

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
        return {"not shown": " ".join(f"{type(error).__name__}: {error}".split())[:500]}


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
