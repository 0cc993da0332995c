"""Sets of views with cameras: scenes of a source → shards of the groups images and cameras.

A row is a set: each column of images is a list with one entry per view. Cameras go to the group `cameras`, true inverse
depth to images.disparity, from which the depth labeler makes labels as from any other disparity.

A scene is made by itself and kept as a part, a row of its own in scenes/parts/SHARD; the shard is written of its parts,
by one task, once all are there. So scenes are made once, wherever a job was ended, and wait for no other.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast, get_args

import numpy as np
import pyarrow as pa

from labeling.dataset import (
    CAMERA_SCHEMA,
    CAMERAS,
    IMAGE_SCHEMA,
    IMAGES,
    REJECTED,
    REJECTED_SCHEMA,
    Dataset,
    digest_json,
    in_parallel,
    recipe,
    set_schema,
    shard_file,
    write_shard,
)
from labeling.sources.cutting import cut_row_groups
from labeling.sources.facts import BESIDE, describe
from labeling.sources.metadata import FILE_NAME
from labeling.sources.normalize import EncodedImage
from labeling.sources.rendering import CameraPath
from labeling.sources.scenes import co3d, colmap_model, realestate, transforms
from labeling.sources.scenes.discovery import SceneSource
from labeling.sources.scenes.files import SceneFiles
from labeling.sources.scenes.meshes import copy_mesh
from labeling.sources.scenes.photographs import LENS_MODEL, LensModel, find_cameras
from labeling.sources.scenes.scene import Scene, baseline
from labeling.sources.scenes.stored_views import columns_of, flat, quality_of, store_views
from labeling.sources.source import Source
from model.inputs import InputError, WorkFailed, nearest, one_line

VERSION = 1
SHARD_SETS = 64  # also the most rows of a row group
_PARTS_AT_ONCE = 8  # that are read: each is in memory twice meanwhile
SCENES = "scenes"  # no column group: parts of shards that are not written yet, and what shards were made from
SET_SCHEMA = set_schema(IMAGE_SCHEMA)
_MACHINE_FAILS = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE)  # whatever the scene is
PART_SCHEMA = pa.schema(
    [
        *SET_SCHEMA,
        *(field for field in CAMERA_SCHEMA if field.name not in SET_SCHEMA.names),
        ("scene", pa.string()),
        ("digest", pa.string()),
        ("reason", pa.string()),
    ]
)


@dataclass(frozen=True)
class ViewOptions:
    """How sets are made. count, size, seed, path: views rendered of a mesh, their side in pixels, and of their cameras
    the seed and where they are; lens_model: COLMAP's, of the cameras that photographs are taken to have."""

    count: int = 8
    size: int = 256
    seed: int = 0
    path: CameraPath = "orbit"
    lens_model: LensModel = LENS_MODEL

    def parameters(self) -> dict[str, Any]:
        """What a group declares. What was added later is left out where it is as it always was."""
        values = dataclasses.asdict(self)
        return {
            name: value
            for name, value in values.items()
            if name in ("count", "size", "seed") or value != getattr(ViewOptions(), name)
        }


def view_options(count: int, size: int, seed: int, path: str, lens_model: str) -> ViewOptions:
    """The options of these values. Raises InputError for a path or a model that is not known."""
    for option, value, known in (("path", path, get_args(CameraPath)), ("lens", lens_model, get_args(LensModel))):
        if value not in known:
            raise InputError(f"--{option} {value}: there are {', '.join(known)}{nearest(value, list(known))}")
    return ViewOptions(count, size, seed, cast(CameraPath, path), cast(LensModel, lens_model))


@dataclass(frozen=True)
class SetTask:
    """A shard of view sets to write: the scenes that they are made of."""

    shard: str
    scenes: list[SceneSource]

    def tag(self, options: ViewOptions) -> str:
        """Changes with the files of the scenes, as far as a listing tells, and with what is made of them."""
        return digest_json([part_name(scene, options) for scene in self.scenes])


def part_name(scene: SceneSource, options: ViewOptions) -> str:
    """Name of the part that a scene makes: of another state of its files it has another one."""
    said = {name: dict(facts) for name, facts in scene.facts.items()}
    return digest_json([VERSION, scene.kind, scene.title, scene.tag, said, options.parameters()])


def content_digest(source: Source, scene: SceneSource) -> str:
    """Digest of the bytes of a scene's file, and of what metadata.csv says of it; of photographs, of all of them."""
    files = SceneFiles(source.store)
    return _digest(scene, _raw(files, scene) if scene.kind != "photographs" else b"", files)


def make_part(source: Source, dataset: Dataset, task: SetTask, index: int, options: ViewOptions) -> None:
    """Make the set of one scene of a shard and keep it as a part, unless it is there; a scene that makes none keeps the
    reason."""
    scene = task.scenes[index]
    folder = f"{SCENES}/parts/{task.shard}"
    name = part_name(scene, options)
    if not dataset.store.exists(shard_file(folder, name)):
        row = make_row(source, scene, options)
        table = pa.Table.from_pylist([{key: row.get(key) for key in PART_SCHEMA.names}], PART_SCHEMA)
        write_shard(dataset.store, folder, name, table, [1], "part")


def reject_part(dataset: Dataset, task: SetTask, index: int, options: ViewOptions, reason: str) -> None:
    """Keep the reason for which a scene could not even be tried to the end, as `make_part` does."""
    scene = task.scenes[index]
    row = {"scene": scene.title, "reason": reason, "digest": "", "id": None}
    table = pa.Table.from_pylist([{key: row.get(key) for key in PART_SCHEMA.names}], PART_SCHEMA)
    write_shard(dataset.store, f"{SCENES}/parts/{task.shard}", part_name(scene, options), table, [1], "part")


def write_set_shard(dataset: Dataset, task: SetTask, options: ViewOptions) -> None:
    """Write a shard of its parts, which are all there. It has one writer at a time, as all shards do."""
    folder = f"{SCENES}/parts/{task.shard}"
    names = [part_name(scene, options) for scene in task.scenes]
    rows = list(in_parallel(lambda name: dataset.read(folder, name).to_pylist()[0], names, _PARTS_AT_ONCE))
    shard_recipe = recipe(declaration_of(options), {"source": _scenes_digest(task, [row["digest"] for row in rows])})
    write_rows(dataset, task.shard, rows, shard_recipe)
    said = {"recipe": shard_recipe, "tag": task.tag(options)}
    dataset.store.put(_seen_file(task.shard), json.dumps(said).encode())


def delete_parts(dataset: Dataset, shard: str = "") -> None:
    """Remove the parts of a shard that is written, of all by default."""
    dataset.store.delete_tree(f"{SCENES}/parts/{shard}".rstrip("/"))


def listed_fresh(dataset: Dataset, task: SetTask, options: ViewOptions) -> bool | None:
    """Whether a shard is there, made of the scenes as they are listed now; None where listings do not tell."""
    if not (dataset.has_shard(IMAGES, task.shard) and dataset.has_shard(CAMERAS, task.shard)):
        return False
    try:
        seen = json.loads(dataset.store.read(_seen_file(task.shard)))
        has = dataset.footer(IMAGES, task.shard).recipe
    except (FileNotFoundError, ValueError):
        return None
    return True if seen == {"recipe": has, "tag": task.tag(options)} else None


def is_fresh(source: Source, dataset: Dataset, task: SetTask, options: ViewOptions) -> bool:
    """Whether a shard that is there is made of the scenes as they are now, by reading their files."""
    has = dataset.footer(IMAGES, task.shard).recipe
    digests = [content_digest(source, scene) for scene in task.scenes]
    wanted = recipe(declaration_of(options), {"source": _scenes_digest(task, digests)})
    if wanted == has:
        dataset.store.put(_seen_file(task.shard), json.dumps({"recipe": has, "tag": task.tag(options)}).encode())
    return wanted == has


def declaration_of(options: ViewOptions) -> dict[str, Any]:
    """group.json of images and cameras."""
    return {"labeler": "views", "version": VERSION, "parameters": options.parameters(), "weights": "", "reads": []}


def write_rows(dataset: Dataset, shard: str, rows: Sequence[Mapping[str, Any]], shard_recipe: str) -> None:
    """Write the shard of rows that `make_row` gave; those with a reason go to rejected/."""
    sets = [row for row in rows if row["reason"] is None]
    rejected = [{"source": row["scene"], "reason": row["reason"]} for row in rows if row["reason"] is not None]
    images = [
        [EncodedImage(*view) for view in zip(row["image"], row["width"], row["height"], strict=True)] for row in sets
    ]
    row_groups = cut_row_groups(images, SHARD_SETS)
    # The images shard is written last: it says that all are there.
    refused = pa.Table.from_pylist(rejected, REJECTED_SCHEMA)
    write_shard(dataset.store, REJECTED, shard, refused, [refused.num_rows], shard_recipe)
    for group, schema in ((CAMERAS, CAMERA_SCHEMA), (IMAGES, SET_SCHEMA)):
        table = pa.Table.from_pylist([{key: row.get(key) for key in schema.names} for row in sets], schema)
        write_shard(dataset.store, group, shard, table, row_groups, shard_recipe)


def make_row(source: Source, scene: SceneSource, options: ViewOptions) -> dict[str, Any]:
    """The set of a scene, or the reason why there is none: what a source holds never ends a job."""
    files = SceneFiles(source.store)
    digest, found = "", None
    try:
        raw = b"" if scene.kind == "photographs" else _raw(files, scene)
        digest = _digest(scene, raw, files)
        if scene.kind == "mesh":
            columns, paths = _rendered(files, scene, raw, options), [scene.name] * options.count
        else:
            found = _scene_of(files, scene, options)
            columns, paths = _photographed(files, found)
        columns |= _said(source, scene, paths, found.facts if found else {})
        numbered = scene.kind in ("mesh", "transforms")
        columns["source"] = [f"{scene.name}/{at}" for at in range(len(paths))] if numbered else paths
        columns["id"] = digest_json([digest, options.count, options.size, options.seed])
        return {**columns, "scene": scene.title, "digest": digest, "kind": scene.kind, "reason": None}
    except InputError as error:
        reason = str(error).replace(f"{source.uri}/", "").removeprefix(f"{scene.name}: ")
        reason = reason.removeprefix(f"{PurePosixPath(scene.name).name}: ")
    except WorkFailed:  # the source does not answer, which says nothing of the scene
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _MACHINE_FAILS:
            raise
        reason = f"makes no views ({type(error).__name__}: {one_line(error)})"
    return {"scene": scene.title, "digest": digest, "reason": reason}


def _raw(files: SceneFiles, scene: SceneSource) -> bytes:
    return files.read(scene.name)


def _digest(scene: SceneSource, raw: bytes, files: SceneFiles) -> str:
    said = digest_json(dict(scene.facts.get(scene.name, {})))
    if scene.kind == "photographs":
        each = [hashlib.blake2b(files.read(path), digest_size=16).hexdigest() for path in scene.pictures]
        return digest_json([[path, one] for path, one in zip(scene.pictures, each, strict=True)]) + said
    # Sets of such lenses were once stored as they were, and are to be made again.
    bends = digest_json("undistorted") if scene.kind == "transforms" and transforms.bends(raw) else ""
    inside = digest_json(scene.inside) if scene.inside else ""
    return hashlib.blake2b(raw, digest_size=16).hexdigest() + said + bends + inside


def _scenes_digest(task: SetTask, digests: Sequence[str]) -> str:
    return digest_json({scene.title: digest for scene, digest in zip(task.scenes, digests, strict=True)})


def _seen_file(shard: str) -> str:
    return f"{SCENES}/{shard}.json"


def _said(
    source: Source, scene: SceneSource, paths: Sequence[str], facts_of_scene: Mapping[str, Any]
) -> dict[str, Any]:
    """The columns that metadata.csv gives, of a scene or of a picture of it, and what the scene says of itself."""
    rows = []
    for path in paths:
        facts = {**facts_of_scene, **scene.facts.get(scene.name, {}), **scene.facts.get(path, {})}
        said = {key: value for key, value in facts.items() if key not in (FILE_NAME, *BESIDE)}
        rows.append(describe(said, source.naming).columns)
    return {key: [row[key] for row in rows] for key in rows[0]}


def _photographed(files: SceneFiles, found: Scene) -> tuple[dict[str, Any], list[str]]:
    """The columns of a set of photographs, and the path of each."""
    views, left_out = store_views(files, found)
    rows = [columns_of(view) for view in views]
    columns: dict[str, Any] = {key: [row[key] for row in rows] for key in rows[0]}
    for key in ("mask", "points"):
        if all(value is None for value in columns[key]):
            columns[key] = None
    columns |= {key: [None] * len(views) for key in ("right", "disparity", "disparity_scale")}
    columns |= quality_of(views, found)
    columns["left_out"] = json.dumps(left_out, sort_keys=True, ensure_ascii=False) if left_out else None
    return columns, [view.path for view in views]


def _scene_of(files: SceneFiles, scene: SceneSource, options: ViewOptions) -> Scene:
    if scene.kind == "transforms":
        return transforms.read_transforms(files, scene.name)
    if scene.kind == "colmap":
        return colmap_model.read_model(files, scene.name)
    if scene.kind == "co3d":
        return co3d.read_sequence(files, scene.name, scene.inside)
    if scene.kind == "realestate":
        return realestate.read_lines(files, scene.name)
    return find_cameras(files, scene.pictures, options.lens_model)


def _rendered(files: SceneFiles, scene: SceneSource, raw: bytes, options: ViewOptions) -> dict[str, Any]:
    """The columns of views of a mesh, with exact depth and masks."""
    from labeling.sources.rendering import overlap, render_views
    from model.pictures import encode_png

    with tempfile.TemporaryDirectory(prefix="mesh-") as scratch:
        path = copy_mesh(files, scene.name, raw, Path(scratch))
        rendered = render_views(path, options.count, options.size, options.seed, options.path)
    if not any(view.inverse_depth.any() for view in rendered):
        raise InputError("nothing of it is seen")
    scales = [float(view.inverse_depth.max()) / 65535 or 1.0 for view in rendered]
    levels = [
        np.rint(view.inverse_depth / scale).astype(np.uint16) for view, scale in zip(rendered, scales, strict=True)
    ]
    return {
        "image": [encode_png(view.image) for view in rendered],
        "width": [options.size] * len(rendered),
        "height": [options.size] * len(rendered),
        "right": [None] * len(rendered),
        "disparity": [encode_png(level) for level in levels],
        "disparity_scale": scales,
        "mask": [encode_png((view.inverse_depth > 0).astype(np.uint8) * 255) for view in rendered],
        "c2w": [flat(view.c2w) for view in rendered],
        "intrinsics": [flat(view.intrinsics) for view in rendered],
        "baseline": baseline(np.stack([view.c2w for view in rendered])),
        "overlap": overlap(rendered),
    }
