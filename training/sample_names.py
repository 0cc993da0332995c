"""What a sample of a run was made from: its row, for a person who looks for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from labeling.dataset import Dataset, entry_columns
from training.config import TrainingConfig
from training.plan.manifest import Manifest
from training.plan.planned_sample import PlannedSample
from training.plan.step_plan import load_plan


class SampleNames:
    """Names samples by their numbers in a run; reads the ids of their rows."""

    def __init__(self, manifest: Manifest, config: TrainingConfig) -> None:
        """manifest: of the rows that are trained on."""
        self.manifest = manifest
        self.plan = load_plan(manifest, config.seed, config.batch, config.objective, config.reader.window)

    def named(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Of each sample its "index", "task", "id", "dataset", "shard" and "row" there."""
        return [self.name(self.plan.sample(index)) for index in indices]

    def name(self, planned: PlannedSample) -> dict[str, Any]:
        """As `named`, of one sample; a shard that cannot be read any more leaves its id empty."""
        stream = self.manifest.streams[planned.stream]
        source = self.manifest.sources[stream.source]
        shard = source.shards.name(planned.shard)
        row = source.shards.row_in_shard(planned.shard, planned.row_group, planned.row)
        try:
            ids = Dataset(source.dataset).read(stream.latents, shard, ["id"], [planned.row_group])["id"]
            identity = str(ids[planned.row].as_py())
        except Exception:  # it is named all the same
            identity = ""
        facts = {"index": planned.index, "task": planned.task, "id": identity, "dataset": source.dataset}
        return {**facts, "shard": shard, "row": row, "views": list(planned.views)}

    def prompt(self, planned: PlannedSample) -> str:
        """The prompt that is stored with a sample's embedding, "" where none is."""
        stream = self.manifest.streams[planned.stream]
        source = self.manifest.sources[stream.source]
        if stream.text != "stored" or planned.drop_caption:
            return ""
        dataset = Dataset(source.dataset)
        columns = entry_columns(dataset.has_sets, "task", "prompt")
        table = dataset.read(stream.text_group, source.shards.name(planned.shard), columns, [planned.row_group])
        entries = table["entries"][planned.row].as_py() or []
        if planned.views:
            entries = entries[planned.views[0]] or []
        return next((str(entry["prompt"]) for entry in entries if entry["task"] == planned.task), "")
