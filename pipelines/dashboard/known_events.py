"""What Dagster knows of an asset: few queries for all of its partitions, where one for each would take minutes."""

from __future__ import annotations

from collections.abc import Mapping

import dagster as dg

from pipelines.dashboard.versions import Key

Tags = Mapping[str, str]


class LatestTags:
    """Tags of the newest materializations of an asset and its partitions, asked for when they are first needed.

    is_known: whether Dagster has any event of the asset.
    """

    def __init__(self, instance: dg.DagsterInstance, key: Key, is_known: bool) -> None:
        self._instance, self._key, self._is_known = instance, dg.AssetKey(key), is_known
        self._by_partition: dict[str | None, Tags] | None = None

    def of(self, partition: str | None) -> Tags | None:
        """Those of a partition, or of the asset; None where it was never materialized."""
        if not self._is_known:
            return None
        if partition is None:
            records = self._instance.fetch_materializations(self._key, limit=1).records
            return (records[0].event_log_entry.tags or {}) if records else None
        if self._by_partition is None:
            ids = self._instance.get_latest_storage_id_by_partition(
                self._key, dg.DagsterEventType.ASSET_MATERIALIZATION
            )
            newest = dg.AssetRecordsFilter(self._key, storage_ids=list(ids.values()))
            records = self._instance.fetch_materializations(newest, limit=len(ids)).records if ids else ()
            self._by_partition = {record.partition_key: record.event_log_entry.tags or {} for record in records}
        return self._by_partition.get(partition)
