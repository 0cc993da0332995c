"""The views job: sets of views with cameras → the groups images and cameras, one task per scene."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from labeling.dataset import (
    CAMERAS,
    DATASET_FILE,
    GROUP_FILE,
    IMAGES,
    REJECTED,
    Dataset,
    ShardInfo,
    in_parallel,
    lease,
    shard_file,
)
from labeling.sources.cutting import SHARD_BYTES, cut_shards
from labeling.sources.scenes.discovery import SceneSource, find_scenes
from labeling.sources.scenes.meshes import MESHES
from labeling.sources.source import Source
from labeling.sources.view_sets import (
    SCENES,
    SHARD_SETS,
    SetTask,
    ViewOptions,
    declaration_of,
    delete_parts,
    is_fresh,
    listed_fresh,
    make_part,
    reject_part,
    write_set_shard,
)
from model.inputs import InputError, WorkFailed, require
from pipelines.ingest_job.workers import Workers
from pipelines.progress import progress


@dataclass(frozen=True)
class ViewsResult:
    """Sets written by this run, sets in the dataset, scenes that make none, which are in rejected/, and pictures of the
    sets' scenes that are no views, which cameras.left_out names."""

    added: int
    sets: int
    rejected: int = 0
    left_out: int = 0


def views(
    source_uri: str,
    dataset_uri: str,
    options: ViewOptions | None = None,
    photographs: bool | None = None,
    gpus: float = 0,
    pile: bool = False,
) -> ViewsResult:
    """Make a dataset of view sets: one set for each mesh, file of cameras or folder of photographs below the source.

    photographs: whether folders of pictures without cameras are scenes; None: if the source has nothing else. gpus:
    that the task of a scene holds; pile: photographs are grouped by what they show, not by folder. Sets written before
    are kept. Raises InputError when the source has no scene, or the dataset holds pictures.
    """
    options = options or ViewOptions()
    source = Source(source_uri)
    scenes = find_scenes(source, pile or photographs is True, pile)
    if not scenes and photographs is None:
        scenes = find_scenes(source, photographs=True)
    if not scenes:
        raise InputError(f"{source_uri}: no mesh ({', '.join(MESHES)}), file of cameras or photographs there")
    kinds = {scene.kind for scene in scenes}
    if "mesh" in kinds:
        require("trimesh", "embreex")  # here, and not in the middle of a job
    if "photographs" in kinds:
        require("pycolmap")
    target = Dataset(dataset_uri)
    if target.store.exists(DATASET_FILE) and not Dataset.open(dataset_uri).has_sets:
        raise InputError(f"{dataset_uri}: a dataset of pictures; view sets go into a dataset of their own")
    with target.store.without_empty_folders([REJECTED, SCENES]), lease(target.store, [IMAGES, CAMERAS]):
        for group in (IMAGES, CAMERAS):
            target.declare(group, declaration_of(options))
        tasks = _plan_shards(scenes)
        listed = in_parallel(lambda task: listed_fresh(target, task, options), tasks, target.store.parallel)
        stale = [
            task
            for task, fresh in zip(tasks, listed, strict=True)
            if not (is_fresh(source, target, task, options) if fresh is None else fresh)
        ]
        _run(stale, source, target, options, gpus)
        delete_parts(target)  # which a job that was ended may have left
        footers = in_parallel(lambda task: target.footer(IMAGES, task.shard), tasks, target.store.parallel)
        shards = [ShardInfo(task.shard, footer.rows) for task, footer in zip(tasks, footers, strict=True)]
        sets = sum(shard.rows for shard in shards)
        if not sets:
            raise _nothing_made(source_uri, target, shards, len(scenes))
        target.describe("sets", shards, [{"uri": source.address}])
    made = {task.shard for task in stale}
    added = sum(shard.rows for shard in shards if shard.name in made)
    return ViewsResult(added, sets, len(scenes) - sets, _left_out(target, sorted(made)))


def _left_out(target: Dataset, shards: Sequence[str]) -> int:
    read = in_parallel(lambda shard: target.read(CAMERAS, shard, ["left_out"]), shards, target.store.parallel)
    said = (text for table in read for text in table["left_out"].to_pylist())
    return sum(len(json.loads(text)) for text in said if text)


def _nothing_made(source_uri: str, target: Dataset, shards: Sequence[ShardInfo], scenes: int) -> InputError:
    """Remove what scenes without a single set have left, and say why there is none."""
    first = target.read(REJECTED, shards[0].name).to_pylist()[0]
    for group in (IMAGES, CAMERAS, REJECTED):
        for shard in shards:
            target.store.delete(shard_file(group, shard.name))
        target.store.delete(f"{group}/{GROUP_FILE}")
    target.store.delete_tree(SCENES)
    what = first["source"] if scenes == 1 else f"none of {scenes} scenes makes a set; {first['source']}"
    return InputError(f"{source_uri}: {what}: {first['reason']}")


def _plan_shards(scenes: Sequence[SceneSource]) -> list[SetTask]:
    """The scenes of each shard."""
    sizes = np.array([scene.size for scene in scenes], np.int64)
    cuts = cut_shards(sizes, SHARD_SETS, SHARD_BYTES)
    return [SetTask(f"{number:06d}", list(scenes[first:end])) for number, (first, end) in enumerate(cuts)]


def _run(tasks: Sequence[SetTask], source: Source, target: Dataset, options: ViewOptions, gpus: float) -> None:
    """Make the sets, a task for each scene, and write each shard once all of its sets are made, in a task as well."""
    if not tasks:
        return
    left = Counter({task.shard: len(task.scenes) for task in tasks})
    calls = ((source, target, task, index, options) for task in tasks for index in range(len(task.scenes)))
    total = sum(left.values())

    def write_next(made: _Made) -> list[tuple[Any, ...]]:
        if made.index is None:
            return []
        left[made.task.shard] -= 1
        return [] if left[made.task.shard] else [(source, target, made.task, None, options)]

    with Workers() as workers, progress("views", total, "scenes") as advance:
        # A single scene is made by one process wherever it is.
        for made in workers.map(_make, calls, on_cluster=total > 1, gpus=gpus, lost=_lost, then=write_next):
            if made.index is not None:
                advance(1)
            else:
                delete_parts(target, made.task.shard)


@dataclass(frozen=True)
class _Made:
    """What a task has made: the set of the scene of that index, or the shard where it is None."""

    task: SetTask
    index: int | None


def _make(source: Source, target: Dataset, task: SetTask, index: int | None, options: ViewOptions) -> _Made:
    if index is None:
        write_set_shard(target, task, options)
    else:
        make_part(source, target, task, index, options)
    return _Made(task, index)


def _lost(arguments: Sequence[object], reason: str) -> _Made:
    """A scene whose process died is a rejected one. Raises WorkFailed where it was to write a shard."""
    _, target, task, index, options = arguments
    assert isinstance(target, Dataset) and isinstance(task, SetTask) and isinstance(options, ViewOptions)
    if index is None:
        raise WorkFailed(
            f"{target.uri}: the process that was to write shard {task.shard} ended ({reason}); "
            "started again, it goes on with what is made"
        )
    assert isinstance(index, int)
    reject_part(target, task, index, options, f"makes no views, its process ended ({reason})")
    return _Made(task, index)
