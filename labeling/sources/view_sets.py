"""Sets of views with cameras: rendered from a mesh, or photographs with a NeRF-style transforms.json.

A row is a set: each column is a list with one entry per view. Cameras go to the group `cameras`, true inverse depth to
images.disparity, from which the depth labeler makes labels as from any other disparity.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

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
    set_schema,
    write_shard,
)
from labeling.sources.cutting import cut_row_groups
from labeling.sources.facts import BESIDE, describe
from labeling.sources.lenses import camera_to_world, lens_of
from labeling.sources.metadata import FILE_NAME, is_metadata
from labeling.sources.normalize import EncodedImage, Rejected, image_id, normalize
from labeling.sources.source import Source
from model.constants import MAX_PIXELS, MIN_SIDE
from model.inputs import InputError, one_line

VERSION = 1
SHARD_SETS = 64  # also the most rows of a row group
MESHES = (".glb", ".gltf", ".obj", ".ply", ".stl", ".off")
_WHOLE = (".glb", ".stl", ".off")  # these have all in one file
TRANSFORMS = "transforms.json"
_LEFT_OUT = (".png", ".jpg", ".jpeg")
_OTHER_SHAPE = 0.02  # by which width ÷ height of a picture and its camera may differ
SET_SCHEMA = set_schema(IMAGE_SCHEMA)


@dataclass(frozen=True)
class SetTask:
    """A shard of view sets to write: the files that they are made from."""

    shard: str
    files: list[str]
    recipe: str


def is_view_set(name: str) -> bool:
    """Whether a file of a source makes a view set."""
    return is_mesh(name) or PurePosixPath(name).name == TRANSFORMS


def is_mesh(name: str) -> bool:
    """Whether a file of a source is a mesh, by its name."""
    return PurePosixPath(name).suffix.lower() in MESHES


def digest_set(source: Source, name: str, facts: Mapping[str, Any]) -> str:
    """Digest of a view set's file and of what metadata.csv says of it."""
    raw = source.store.read(name)
    # Sets of such lenses were once stored as they were, and are to be made again.
    bends = digest_json("undistorted") if name.endswith(TRANSFORMS) and _bends(raw) else ""
    return hashlib.blake2b(raw, digest_size=16).hexdigest() + digest_json(dict(facts)) + bends


def write_sets(task: SetTask, source: Source, dataset: Dataset, parameters: Mapping[str, int]) -> int:
    """Make and write the sets of one shard; how many there are. A file that makes none goes to rejected/.

    parameters: count and size of rendered views, and the seed of their cameras.
    """
    metadata = source.metadata()
    sets, rejected = [], []
    with tempfile.TemporaryDirectory() as scratch:
        folders = _FolderCopies(source, Path(scratch))
        for name in task.files:
            try:
                sets.append(_read_set(source, folders, name, metadata.get(name, {}), **parameters))
            except InputError as error:
                reason = str(error).replace(f"{source.uri}/", "").removeprefix(f"{name}: ")
                rejected.append({"source": name, "reason": reason.removeprefix(f"{PurePosixPath(name).name}: ")})
            except Exception as error:  # nothing that a source holds may end the job
                rejected.append(
                    {"source": name, "reason": f"makes no views ({type(error).__name__}: {one_line(error)})"}
                )
    images = [
        [EncodedImage(*view) for view in zip(one["image"], one["width"], one["height"], strict=True)] for one in sets
    ]
    row_groups = cut_row_groups(images, SHARD_SETS)
    # The images shard is written last: it says that all are there.
    refused = pa.Table.from_pylist(rejected, REJECTED_SCHEMA)
    write_shard(dataset.store, REJECTED, task.shard, refused, [refused.num_rows], task.recipe)
    for group, schema in ((CAMERAS, CAMERA_SCHEMA), (IMAGES, SET_SCHEMA)):
        table = pa.Table.from_pylist([{key: one.get(key) for key in schema.names} for one in sets], schema)
        write_shard(dataset.store, group, task.shard, table, row_groups, task.recipe)
    return len(sets)


def _read_set(
    source: Source, folders: _FolderCopies, name: str, facts: Mapping[str, Any], count: int, size: int, seed: int
) -> dict[str, Any]:
    """The columns of a set: its id, and lists with an entry per view."""
    views = _photographed(source, name) if name.endswith(TRANSFORMS) else _rendered(folders, name, count, size, seed)
    said = describe({key: facts[key] for key in facts if key not in (FILE_NAME, *BESIDE)}, source.naming).columns
    columns: dict[str, Any] = {
        key: [view.get(key) for view in views] for key in (*SET_SCHEMA.names, "c2w", "intrinsics")
    }
    columns |= {key: [value] * len(views) for key, value in said.items()}
    columns["source"] = [f"{name}/{index}" for index in range(len(views))]
    columns["id"] = digest_json([digest_set(source, name, facts), count, size, seed])
    return columns


def _rendered(folders: _FolderCopies, name: str, count: int, size: int, seed: int) -> list[dict[str, Any]]:
    """Views of a mesh, with exact depth."""
    from labeling.sources.rendering import render_views
    from model.pictures import encode_png

    rendered = render_views(folders.mesh(name), count, size, seed)
    if not any(view.inverse_depth.any() for view in rendered):
        raise InputError(f"{name}: nothing of it is seen")
    views = []
    for view in rendered:
        scale = float(view.inverse_depth.max()) / 65535 or 1.0
        levels = np.rint(view.inverse_depth / scale).astype(np.uint16)
        views.append(
            {
                "image": encode_png(view.image),
                "width": size,
                "height": size,
                "disparity": encode_png(levels),
                "disparity_scale": scale,
                "c2w": _flat(view.c2w),
                "intrinsics": _flat(view.intrinsics),
            }
        )
    return views


class _FolderCopies:
    """Local copies of the folders that meshes lie in, since a mesh may name textures and materials beside it.

    What is no mesh comes once for all meshes of a folder, and each mesh when it is asked for.
    """

    def __init__(self, source: Source, scratch: Path) -> None:
        self._source, self._scratch = source, scratch
        self._folders: dict[tuple[str, bool], Path] = {}

    def mesh(self, name: str) -> Path:
        """Where the copy of a mesh is, with what lies beside it."""
        path = PurePosixPath(name)
        folder = str(path.parent)
        key = (folder, path.suffix.lower() in _WHOLE)
        if key not in self._folders:
            self._folders[key] = self._scratch / str(len(self._folders))
            self._folders[key].mkdir()
            if not key[1]:
                self._copy_beside("" if folder == "." else f"{folder}/", self._folders[key])
        copy = self._folders[key] / path.name
        copy.write_bytes(self._source.store.read(name))
        return copy

    def _copy_beside(self, prefix: str, target: Path) -> None:
        for name in self._source.store.walk(prefix.rstrip("/")):
            path = target / name
            if not (is_metadata(name) or is_mesh(name)) and path.resolve().is_relative_to(target.resolve()):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self._source.store.read(f"{prefix}{name}"))


def _photographed(source: Source, name: str) -> list[dict[str, Any]]:
    """Views of a transforms.json: OpenGL camera-to-world matrices and a pinhole focal length. Raises InputError."""
    place = f"{source.uri}/{name}"
    try:
        scene = json.loads(source.store.read(name))
        frames = scene["frames"]
    except (ValueError, KeyError, TypeError):
        frames = None
    if not isinstance(frames, list):
        raise InputError(f"{place}: not a transforms.json (no list of frames)")
    if not frames:
        raise InputError(f"{place}: its list of frames is empty")
    views = []
    for frame in frames:
        raw, image = _read_frame(source, name, frame["file_path"])
        camera = {**scene, **frame}
        try:
            lens = lens_of(camera)
            intrinsics = _intrinsics(camera, image.width, image.height)
            if lens:
                image, intrinsics = lens.undistort(image, intrinsics)
            c2w = camera_to_world(camera.get("transform_matrix"))
        except InputError as error:
            raise InputError(f"{place}: frame {frame['file_path']!r}: {error}") from None
        views.append(
            {
                "id": image_id(raw),
                "image": image.encoded,
                "width": image.width,
                "height": image.height,
                "c2w": _flat(c2w),
                "intrinsics": _flat(intrinsics),
            }
        )
    return views


def _bends(raw: bytes) -> bool:
    """Whether a transforms.json has a lens that is to be undistorted, or a camera that is none to store."""
    try:
        scene = json.loads(raw)
        return any(lens_of({**scene, **frame}) for frame in scene["frames"])
    except InputError:
        return True
    except (ValueError, KeyError, TypeError):  # which making the set tells
        return False


def _read_frame(source: Source, name: str, file_path: str) -> tuple[bytes, EncodedImage]:
    frame = f"{source.uri}/{name}: frame {file_path!r}"
    path = str(PurePosixPath(name).parent / file_path.replace("\\", "/")).removeprefix("./")
    if not PurePosixPath(path).suffix and not source.store.exists(path):  # Blender's scenes leave it out
        path = next((path + suffix for suffix in _LEFT_OUT if source.store.exists(path + suffix)), path)
    if ".." in PurePosixPath(path).parts:
        raise InputError(f"{frame} lies outside the source folder")
    try:
        raw = source.store.read(path)
        return raw, normalize(raw, MAX_PIXELS, MIN_SIDE)
    except FileNotFoundError:
        raise InputError(f"{frame} is not there") from None
    except Rejected as error:
        raise InputError(f"{frame} is {error}") from None


def _intrinsics(camera: Mapping[str, Any], width: int, height: int) -> Any:
    """(3, 3) for an image width of 1, from what a frame or its scene says; width and height are those of the image.

    Raises InputError for a camera without a focal length, and for one of a picture of another shape.
    """
    if "fl_x" not in camera and "camera_angle_x" not in camera:
        raise InputError("no focal length (fl_x or camera_angle_x)")
    size = camera.get("w", width), camera.get("h", height)
    if "w" in camera and "h" in camera and abs(size[0] * height - size[1] * width) > _OTHER_SHAPE * size[0] * height:
        raise InputError(f"the picture is {width} × {height}, and its camera is of {size[0]:g} × {size[1]:g}")
    focal = camera["fl_x"] if "fl_x" in camera else 0.5 * width / math.tan(0.5 * camera["camera_angle_x"])
    scale = width / camera.get("w", width)  # focal lengths are in pixels of the size at which they were measured
    focal_y = camera.get("fl_y", focal)
    if not (focal > 0 and focal_y > 0 and math.isfinite(focal) and math.isfinite(focal_y)):
        raise InputError(f"a focal length of {focal:g}")
    center = (camera.get("cx", 0.5 * width / scale), camera.get("cy", 0.5 * height / scale))
    return np.array([[focal, 0, center[0]], [0, focal_y, center[1]], [0, 0, width / scale]]) * (scale / width)


def _flat(matrix: Any) -> Sequence[float]:
    values: list[float] = np.asarray(matrix, np.float32).reshape(-1).tolist()
    return values
