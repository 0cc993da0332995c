"""The views job: sets of views with cameras → the groups images and cameras, one task per shard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from labeling.dataset import (
    CAMERAS,
    DATASET_FILE,
    GROUP_FILE,
    IMAGES,
    REJECTED,
    Dataset,
    ShardInfo,
    digest_json,
    lease,
    recipe,
    shard_file,
)
from labeling.sources.source import Source
from labeling.sources.view_sets import (
    MESHES,
    SHARD_SETS,
    VERSION,
    SetTask,
    digest_set,
    is_mesh,
    is_view_set,
    write_sets,
)
from model.inputs import InputError, require
from pipelines.ingest_job.workers import Workers
from pipelines.progress import progress


@dataclass(frozen=True)
class ViewsResult:
    """Sets written by this run, sets in the dataset, and files that make none, which are in rejected/."""

    added: int
    sets: int
    rejected: int = 0


def views(source_uri: str, dataset_uri: str, count: int = 8, size: int = 256, seed: int = 0) -> ViewsResult:
    """Make a dataset of view sets: one set for each mesh or transforms.json below the source.

    count, size: views of a mesh and their side in pixels; seed: of the cameras drawn around it. Sets written before
    are kept. Raises InputError when the source has neither, or the dataset holds pictures.
    """
    source = Source(source_uri)
    names = [item.name for item in source.items() if is_view_set(item.name)]
    if not names:
        raise InputError(f"{source_uri}: no mesh ({', '.join(MESHES)}) and no transforms.json there")
    if any(is_mesh(name) for name in names):
        require("trimesh", "embreex")  # here, and not in the middle of a job
    target = Dataset(dataset_uri)
    if target.store.exists(DATASET_FILE) and not Dataset.open(dataset_uri).has_sets:
        raise InputError(f"{dataset_uri}: a dataset of pictures; view sets go into a dataset of their own")
    parameters = {"count": count, "size": size, "seed": seed}
    declaration = {"labeler": "views", "version": VERSION, "parameters": parameters, "weights": "", "reads": []}
    with target.store.without_empty_folders([REJECTED]), lease(target.store, [IMAGES, CAMERAS]):
        for group in (IMAGES, CAMERAS):
            target.declare(group, declaration)
        tasks = _plan_shards(source, names, declaration)
        added = _run([task for task in tasks if not _is_done(target, task)], source, target, parameters)
        shards = [ShardInfo(task.shard, target.footer(IMAGES, task.shard).rows) for task in tasks]
        sets = sum(shard.rows for shard in shards)
        if not sets:
            raise _nothing_made(source_uri, target, shards, len(names))
        target.describe("sets", shards, [{"uri": source.address}])
    return ViewsResult(added, sets, len(names) - sets)


def _nothing_made(source_uri: str, target: Dataset, shards: Sequence[ShardInfo], files: int) -> InputError:
    """Remove what files without a single set have left, and say why there is none."""
    first = target.read(REJECTED, shards[0].name).to_pylist()[0]
    for group in (IMAGES, CAMERAS, REJECTED):
        for shard in shards:
            target.store.delete(shard_file(group, shard.name))
        target.store.delete(f"{group}/{GROUP_FILE}")
    what = first["source"] if files == 1 else f"none of {files} files makes a set; {first['source']}"
    return InputError(f"{source_uri}: {what}: {first['reason']}")


def _plan_shards(source: Source, names: Sequence[str], declaration: Mapping[str, Any]) -> list[SetTask]:
    """The task of each shard, its recipe from the bytes of its files and what metadata.csv says of them."""
    tasks = []
    metadata = source.metadata()
    for number, start in enumerate(range(0, len(names), SHARD_SETS)):
        files = list(names[start : start + SHARD_SETS])
        digests = {name: digest_set(source, name, metadata.get(name, {})) for name in files}
        tasks.append(SetTask(f"{number:06d}", files, recipe(declaration, {"source": digest_json(digests)})))
    return tasks


def _is_done(target: Dataset, task: SetTask) -> bool:
    present = target.has_shard(IMAGES, task.shard) and target.has_shard(CAMERAS, task.shard)
    return present and target.footer(IMAGES, task.shard).recipe == task.recipe


def _run(tasks: Sequence[SetTask], source: Source, target: Dataset, parameters: dict[str, int]) -> int:
    """Write the shards; how many sets were written."""
    if not tasks:
        return 0

    calls = ((task, source, target, parameters) for task in tasks)
    added = 0
    with Workers() as workers, progress("views", sum(len(task.files) for task in tasks), "files") as advance:
        # A single shard is made by one process wherever it is.
        for task, sets in workers.map(_write, calls, on_cluster=len(tasks) > 1):
            added += sets
            advance(len(task.files))
    return added


def _write(task: SetTask, source: Source, target: Dataset, parameters: dict[str, int]) -> tuple[SetTask, int]:
    return task, write_sets(task, source, target, parameters)
