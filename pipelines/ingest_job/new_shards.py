"""Writing the shards of new items: those that are not there yet, then settling which of equal pictures stay."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from labeling.dataset import IMAGES, REJECTED, IndexLog, digest_column, digest_json, recipe
from labeling.sources.cutting import cut_shards, join_shards
from labeling.sources.duplicates import Losers, drop_duplicates, find_duplicates
from labeling.sources.ingest import Ingestion, ShardResult, ShardTask
from labeling.sources.seen import ITEMS
from labeling.sources.survey import Findings, Survey
from pipelines.ingest_job.workers import Workers
from pipelines.progress import progress

_MOST_TOGETHER = 32  # shards of one row group or compressed archive that are made by one task


@dataclass(frozen=True)
class NewShards:
    """The shards that the new items of a source are cut into."""

    ingestion: Ingestion
    survey: Survey
    findings: Findings
    shard_rows: int
    shard_bytes: int

    def write(self, workers: Workers, on_cluster: bool) -> list[ShardResult]:
        """Write the shards that are not there yet; what became of all of them, in order."""
        items = self.findings.new
        bounds = cut_shards(pc.fill_null(items["size"], 0).to_numpy(), self.shard_rows, self.shard_bytes) or [(0, 0)]
        names = [f"{number:06d}" for number in range(len(self.survey.shards), len(self.survey.shards) + len(bounds))]
        runs = join_shards(bounds, _units(items), _MOST_TOGETHER)
        results: dict[str, ShardResult] = {}
        plan = self._plan()
        log = IndexLog(self.ingestion.dataset.store)

        def calls() -> Iterator[tuple[list[ShardTask]]]:
            there = self.ingestion.dataset.store.files(IMAGES)
            for run in runs:
                tasks = [self._task(names[number], *bounds[number], first=number == 0) for number in run]
                for task in [task for task in tasks if f"{task.shard}.parquet" in there]:
                    if done := self._finished(task, plan):
                        results[task.shard] = done
                        advance(task.items.num_rows)
                if left := [task for task in tasks if task.shard not in results]:
                    yield (left,)

        with progress("ingest", self.findings.count, "files") as advance:
            for made in workers.map(self.ingestion.ingest, calls(), on_cluster):
                for result in made:
                    if result.footer:
                        log.add(IMAGES, result.shard, result.footer)
                    results[result.shard] = replace(result, footer=None)  # which would add up
                    advance(result.rows + result.rejected)
        log.flush()
        self._settle(workers, on_cluster, names, results, plan)
        return [results[name] for name in names]

    def _task(self, shard: str, first_item: int, end: int, first: bool) -> ShardTask:
        # A copy: a slice would take the whole table along to another process.
        items = self.findings.new.take(pa.array(range(first_item, end), pa.int64()))
        return ShardTask(shard, items, self.findings.troubles if first else ())

    def _plan(self) -> str:
        """Digest of all that decides which of equal pictures stay."""
        columns = [digest_column(self.findings.new[name]) for name in ("name", "size", "tag")]
        return digest_json([columns, self.shard_rows, self.shard_bytes, repr(self.survey.description)])

    def _settled_recipe(self, task_recipe: str, plan: str) -> str:
        return recipe(self.ingestion.declaration, {"source": digest_json([task_recipe, plan])})

    def _finished(self, task: ShardTask, plan: str) -> ShardResult | None:
        """What became of a shard that an interrupted run has written, None if it must be written (again)."""
        dataset = self.ingestion.dataset
        raw = task.recipe(self.ingestion.declaration, self.ingestion.source.naming)
        try:
            footers = [dataset.footer(group, task.shard) for group in (ITEMS, REJECTED, IMAGES)]
        except FileNotFoundError:
            return None
        recipes = {footer.recipe for footer in footers}
        if len(recipes) > 1 or not recipes <= {raw, self._settled_recipe(raw, plan)}:
            return None
        return ShardResult(task.shard, footers[2].rows, footers[1].rows)

    def _settle(
        self, workers: Workers, on_cluster: bool, names: Sequence[str], results: dict[str, ShardResult], plan: str
    ) -> None:
        """Move pictures that equal one of an earlier shard to the rejected ones."""
        earlier = [shard.name for shard in self.survey.shards]
        shards = [*earlier, *names]
        if len(shards) == 1:
            return
        dataset = self.ingestion.dataset

        def calls() -> Iterator[tuple[list[str], Losers, int, str]]:
            for losers in find_duplicates(dataset, shards, len(earlier)):
                written = dataset.footer(IMAGES, shards[losers.shard]).recipe
                yield shards, losers, len(earlier), self._settled_recipe(written, plan)

        drop = _Drop(self.ingestion)
        for shard, rows in workers.map(drop, calls(), on_cluster):
            result = results[shard]
            results[shard] = replace(result, rows=rows, rejected=result.rejected + result.rows - rows)


@dataclass(frozen=True)
class _Drop:
    """`drop_duplicates` as a call that says which shard it was."""

    ingestion: Ingestion

    def __call__(self, shards: list[str], losers: Losers, new: int, settled: str) -> tuple[str, int]:
        return shards[losers.shard], drop_duplicates(self.ingestion.dataset, shards, losers, new, settled)


def _units(items: pa.Table) -> list[tuple[bytes, int] | None]:
    """Which items are read together, at the price of one; None for an item that is read alone."""
    if items["together"].null_count == items.num_rows:
        return [None] * items.num_rows
    pairs = zip(items["file"].to_pylist(), items["together"].to_pylist(), strict=True)
    return [None if together is None else (file, together) for file, together in pairs]
