"""transforms.json of Blender's scenes, instant-ngp, nerfstudio and DL3DV: OpenGL camera-to-world of each frame.

Numbers of a frame take the place of those of its scene. A transform that was applied to all poses (applied_transform)
is left in them: it turns the world alone. Documented at https://docs.nerf.studio/quickstart/data_conventions.html.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from labeling.sources.lenses import lens_of
from labeling.sources.scenes.files import SceneFiles, folder_of
from labeling.sources.scenes.scene import Camera, Scene, View, camera_to_world
from model.inputs import InputError

_NAME = re.compile(r"transforms(_[A-Za-z0-9]+)?\.json")  # transforms_train.json and its fellows
_FOCAL_X, _FOCAL_Y = ("fl_x", "fx", "focal_x"), ("fl_y", "fy", "focal_y")
_WIDTH, _HEIGHT = ("w", "width", "image_width"), ("h", "height", "image_height")
_MATRICES = ("intrinsic_matrix", "camera_intrinsics", "K")
_POSES = ("transform_matrix", "transform", "c2w", "camera_to_world")
_PATHS = ("file_path", "file_name", "image_path", "path")


def is_transforms(name: str) -> bool:
    """Whether a file is a transforms.json, by its name."""
    return _NAME.fullmatch(PurePosixPath(name).name) is not None


def read_transforms(files: SceneFiles, name: str) -> Scene:
    """The scene of a transforms.json. Raises InputError, without its name, for what is none."""
    try:
        scene = json.loads(files.read(name))
        frames = scene["frames"]
    except (ValueError, KeyError, TypeError, RecursionError):
        frames = None
    if not isinstance(frames, list):
        raise InputError("not a transforms.json (no list of frames)")
    if not frames:
        raise InputError("its list of frames is empty")
    if not all(isinstance(frame, dict) for frame in frames):
        raise InputError("not a transforms.json (a frame is no object)")
    return Scene([_view(files, name, scene, frame) for frame in frames])


def bends(raw: bytes) -> bool:
    """Whether a transforms.json has a lens that is to be undistorted, or a camera that is none to store."""
    try:
        scene = json.loads(raw)
        return any(lens_of({**scene, **frame}) for frame in scene["frames"])
    except InputError:
        return True
    except (ValueError, KeyError, TypeError):  # which making the set tells
        return False


def _view(files: SceneFiles, name: str, scene: Mapping[str, Any], frame: Mapping[str, Any]) -> View:
    shown = _first(frame, _PATHS)
    if not isinstance(shown, str) or not shown:
        raise InputError("a frame names no picture (file_path)")
    folder = folder_of(name)
    try:
        path = files.find_picture([folder], shown)
        camera = _camera({**scene, **frame})
        mask = frame.get("mask_path")
        mask_path = files.find_picture([folder], mask) if isinstance(mask, str) and mask else None
        return View(path, camera, camera_to_world(_first(frame, _POSES)), mask_path)
    except InputError as error:
        prefix = "" if repr(shown) in str(error) else f"{shown!r}: "
        raise InputError(f"frame {prefix}{error}") from None


def _camera(values: Mapping[str, Any]) -> Camera:
    lens = lens_of(values)
    width, height = _number(values, _WIDTH), _number(values, _HEIGHT)
    focal = _number(values, _FOCAL_X)
    focal_y = _number(values, _FOCAL_Y)
    cx, cy = _number(values, ("cx",)), _number(values, ("cy",))
    matrix = _first(values, _MATRICES)
    if focal is None and matrix is not None:
        try:
            focal, focal_y, cx, cy = (float(matrix[row][column]) for row, column in ((0, 0), (1, 1), (0, 2), (1, 2)))
        except (TypeError, ValueError, IndexError, KeyError):
            raise InputError("its matrix of intrinsics is not 3 × 3 numbers") from None
    angles = [_angle(values, axis) for axis in ("x", "y")]
    if focal is None and focal_y is not None:
        focal = focal_y
    if focal is None and angles[0] is None:
        raise InputError("no focal length (fl_x or camera_angle_x)")
    return Camera(focal, focal_y, cx, cy, width, height, lens, *(angles if focal is None else ()))


def _angle(values: Mapping[str, Any], axis: str) -> float | None:
    angle = _number(values, (f"camera_angle_{axis}",))
    degrees = _number(values, (f"{axis}_fov",))
    return angle if angle is not None else None if degrees is None else math.radians(degrees)


def _first(values: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((values[name] for name in names if values.get(name) is not None), None)


def _number(values: Mapping[str, Any], names: tuple[str, ...]) -> float | None:
    value = _first(values, names)
    if value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InputError(f"{names[0]} is no number") from None
