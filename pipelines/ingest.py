"""The ingest job: raw images → the images group and rejected/, one Ray Data row per shard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cluster.session import ray_session
from labeling.dataset import GROUP_FILE, IMAGES, REJECTED, Dataset, ShardInfo, lease, shard_file
from labeling.sources.container import Item
from labeling.sources.cutting import SHARD_BYTES, SHARD_ROWS, cut_shards
from labeling.sources.folder import Metadata
from labeling.sources.ingest import (
    VERSION,
    Limits,
    ShardTask,
    Survey,
    forget_rejected,
    ingest_shard,
    plan_shard,
    read_description,
    survey_dataset,
)
from labeling.sources.normalize import image_id
from labeling.sources.source import Source
from model.constants import MAX_PIXELS, MIN_SIDE
from model.inputs import InputError
from pipelines.progress import progress


@dataclass(frozen=True)
class IngestResult:
    """Images added by this run, files rejected by it, and how many images the dataset has now."""

    added: int
    rejected: int
    images: int


def ingest(
    source_uri: str,
    dataset_uri: str,
    shard_rows: int = SHARD_ROWS,
    shard_bytes: int = SHARD_BYTES,
    max_pixels: int = MAX_PIXELS,
    min_side: int = MIN_SIDE,
) -> IngestResult:
    """Add the images of a source that the dataset does not have yet, on the Ray of `cluster.session`.

    Shards are cut from the sorted listing; of equal files the first one stays, the others go to rejected/ with what
    they equal. An interrupted run continues with the shards it had not written. Raises InputError for an empty source,
    a target that cannot be written, a dataset of sets, or a source with no image at all.
    """
    source = Source(source_uri)
    items = source.items()
    survey = survey_dataset(source, items, dataset_uri)
    if not survey.new:
        return IngestResult(0, 0, _rows(survey.shards))
    target = Dataset(dataset_uri)
    with lease(target.store, [IMAGES]), ray_session():
        if read_description(dataset_uri) != survey.description:  # another ingest has ended since
            survey = survey_dataset(source, items, dataset_uri)
            if not survey.new:
                return IngestResult(0, 0, _rows(survey.shards))
        limits = Limits(max_pixels, min_side)
        declaration = {
            "labeler": "ingest",
            "version": VERSION,
            "parameters": asdict(limits),
            "weights": "",
            "reads": [],
        }
        target.declare(IMAGES, declaration)
        metadata = source.metadata()
        twins = _find_twins(source, survey.new)
        tasks = [
            plan_shard(f"{number:06d}", part, twins, declaration, survey.image_ids, metadata)
            for number, part in enumerate(cut_shards(survey.new, shard_rows, shard_bytes), start=len(survey.shards))
        ]
        rows = _run(tasks, source, metadata, target, survey.image_ids, limits)
        shards = [ShardInfo(task.shard, rows[task.shard], survey.source_number) for task in tasks]
        added = _rows(shards)
        if not added and not survey.shards:
            raise _nothing_to_keep(source_uri, target, shards, len(survey.new))
        target.describe("pictures", [*survey.shards, *shards], survey.sources)
        _forget_new_files(Dataset(dataset_uri), survey)
    return IngestResult(added, len(survey.new) - added, _rows(survey.shards) + added)


def _rows(shards: Sequence[ShardInfo]) -> int:
    return sum(shard.rows for shard in shards)


def _find_twins(source: Source, items: Sequence[Item]) -> dict[str, str]:
    """Items equal to an earlier one → that one's name. Only files of equal size can be equal, so only they are read."""
    import ray

    sizes = Counter(item.size for item in items)
    suspects = [asdict(item) for item in items if sizes[item.size] > 1]
    if not suspects:
        return {}

    def hash_item(row: dict[str, Any]) -> dict[str, Any]:
        return {"name": row["name"], "id": image_id(source.read(Item(**row))[0])}

    first: dict[str, str] = {}
    twins: dict[str, str] = {}
    rows = ray.data.from_items(suspects).map(hash_item, num_cpus=0.5).take_all()
    for row in sorted(rows, key=lambda row: str(row["name"])):
        if first.setdefault(row["id"], row["name"]) != row["name"]:
            twins[row["name"]] = first[row["id"]]
    return twins


def _run(
    tasks: Sequence[ShardTask], source: Source, metadata: Metadata, target: Dataset, known_ids: set[str], limits: Limits
) -> Mapping[str, int]:
    """Write the shards that are not there yet; shard → its rows, of all tasks."""
    import ray

    rows: dict[str, int] = {}
    waiting: list[ShardTask] = []
    for task in tasks:
        footer = target.footer(IMAGES, task.shard) if target.has_shard(IMAGES, task.shard) else None
        if footer and footer.recipe == task.recipe:
            rows[task.shard] = footer.rows
        else:
            waiting.append(task)
    ids = ray.put(known_ids)

    def write(row: dict[str, Any]) -> dict[str, Any]:
        task = waiting[row["id"]]
        return {"shard": task.shard, "rows": ingest_shard(task, source, metadata, target, ray.get(ids), limits)}

    files = {task.shard: len(task.items) for task in waiting}
    with progress("ingest", sum(files.values()), "files") as advance:
        if waiting:
            dataset = ray.data.range(len(waiting), override_num_blocks=len(waiting)).map(write, num_cpus=1)
            for row in dataset.iter_rows():
                rows[row["shard"]] = row["rows"]
                advance(files[row["shard"]])
    return rows


def _nothing_to_keep(source_uri: str, target: Dataset, shards: Sequence[ShardInfo], files: int) -> InputError:
    """Remove what a source without any image has left, and say why there is none."""
    reasons = Counter(row["reason"] for row in target.read(REJECTED, shards[0].name).to_pylist())
    for shard in shards:
        for group in (IMAGES, REJECTED):
            target.store.delete(shard_file(group, shard.name))
    target.store.delete(f"{IMAGES}/{GROUP_FILE}")
    return InputError(f"{source_uri}: none of {files} files is a picture ({reasons.most_common(1)[0][0]})")


def _forget_new_files(dataset: Dataset, survey: Survey) -> None:
    """Drop what earlier shards say of files that were rejected then and looked at again now."""
    names = {item.name for item in survey.new if item.name in survey.seen.rejected}
    forget_rejected(dataset, [shard for shard in survey.shards if shard.source == survey.source_number], names)
