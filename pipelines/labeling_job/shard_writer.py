"""The last stage: the finished columns of a shard come together on one node, which writes the shard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from labeling.dataset import IMAGES, Dataset, Footer, Footers, expected_recipe, write_shard
from labeling.labeler import Labeler
from labeling.plan import Wave
from labeling.results import group_schema
from pipelines.labeling_job.tables import from_bytes

Declarations = Mapping[str, Mapping[str, Any]]  # group → what it declares, each group after those that it reads


class ShardWriter:
    """An actor that collects the row groups of shards and writes each shard when its last one has come."""

    def __init__(self, dataset: Dataset, declarations: Declarations, footers: Footers) -> None:
        self.dataset = dataset
        self.declarations = declarations
        self.footers: dict[str, dict[str, Footer]] = {group: dict(shards) for group, shards in footers.items()}
        self.parts: dict[str, dict[int, Mapping[str, bytes]]] = {}
        self.count: Counter[str] = Counter()

    def add(self, shard: str, row_group: int, tables: Mapping[str, bytes]) -> None:
        """Take the columns of one row group, by group; those of a whole shard are written."""
        parts = self.parts.setdefault(shard, {})
        parts[row_group] = tables
        if len(parts) < len(self.footers[IMAGES][shard].row_groups):
            return
        del self.parts[shard]
        for group in self.declarations:
            if group in tables:
                self.write(group, shard, pa.concat_tables([from_bytes(parts[key][group]) for key in sorted(parts)]))

    def write(self, group: str, shard: str, table: pa.Table) -> None:
        """Write one shard. Its recipe names the content of what was read, so that has to be written before."""
        shard_recipe = expected_recipe(self.declarations[group], shard, self.footers)
        assert shard_recipe is not None, f"{group}/{shard} was labeled before what it reads"
        row_groups = self.footers[IMAGES][shard].row_groups
        footer = write_shard(self.dataset.store, group, shard, table, row_groups, shard_recipe)
        self.footers.setdefault(group, {})[shard] = footer
        self.count[group] += 1

    def written(self) -> tuple[Counter[str], bool]:
        """Shards by group; and whether this process replaces one that was lost, with the row groups that it had."""
        import ray

        return self.count, ray.get_runtime_context().was_current_actor_reconstructed


class SendToWriter:
    """Last stage: a row group's small columns go to the writer that its shard belongs to."""

    def __init__(self, writers: Sequence[Any], groups: Sequence[str]) -> None:
        self.writers = writers
        self.groups = groups

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        import ray

        writer = self.writers[int(row["shard"]) % len(self.writers)]
        tables = {group: row[f"{group}:table"] for group in self.groups if row[f"{group}:table"]}
        ray.get(writer.add.remote(row["shard"], row["row_group"], tables))
        seconds = {f"{group}:seconds": row[f"{group}:seconds"] for group in self.groups}
        return {"rows": row["rows"], "groups": ",".join(tables), **seconds}


def start_writers(dataset: Dataset, declarations: Declarations, footers: Footers) -> list[Any]:
    """One writer on each node, which Ray starts again elsewhere when it is lost."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return [
        ray.remote(ShardWriter)
        .options(
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=-1,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=True),
        )
        .remote(dataset, declarations, footers)
        for node in ray.nodes()
        if node["Alive"]
    ]


def stop_writers(writers: Sequence[Any]) -> tuple[Counter[str], bool]:
    """End the writers; how many shards of each group they wrote, and whether none of them was lost on the way."""
    import ray

    count: Counter[str] = Counter()
    all_there = True
    for writer in writers:
        written, is_replacement = ray.get(writer.written.remote())
        count.update(written)
        all_there &= not is_replacement
        ray.kill(writer)
    return count, all_there


def write_empty_shards(
    dataset: Dataset, wave: Wave, labelers: Mapping[str, Labeler], declarations: Declarations, footers: Footers
) -> Counter[str]:
    """Write the shards of a wave that have no row, every file of theirs being rejected; how many of each group."""
    writer = ShardWriter(dataset, declarations, footers)
    for shard, groups in wave.work.items():
        if not footers[IMAGES][shard].row_groups:
            for group in (group for group in declarations if group in groups):
                writer.write(group, shard, group_schema(labelers[group], dataset.has_sets).empty_table())
    return writer.count
