"""A scene as all readers give it: views with the camera that each picture was taken by, in one convention.

World coordinates are those of the source. Cameras are OpenGL camera-to-world: x right, y up, z backward.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labeling.sources.lenses import Lens
from model.inputs import InputError

Floats = NDArray[np.float64]
_OTHER_SHAPE = 0.02  # by which width ÷ height of a picture and its camera may differ
_ROTATION = 1e-3  # by which a rotation may differ from one by rounding
_FLIP = np.diag([1.0, -1.0, -1.0, 1.0])  # between OpenCV's camera axes and OpenGL's
MIN_VIEWS = 2


@dataclass(frozen=True)
class Camera:
    """A pinhole behind a lens, in pixels of the size at which it was measured, counted from the picture's corner.

    width, height: that size, None where a source does not say it. cx, cy: None for the middle. fx, fy: None where
    angle_x, angle_y, the field of view in radians, says them.
    """

    fx: float | None
    fy: float | None = None  # as fx by default
    cx: float | None = None
    cy: float | None = None
    width: float | None = None
    height: float | None = None
    lens: Lens | None = None
    angle_x: float | None = None
    angle_y: float | None = None

    def at(self, width: int, height: int) -> Camera:
        """The camera of a picture of that size, as it lies in its file.

        Raises InputError for a picture of another shape, and for numbers that no camera has.
        """
        own_width, own_height = self.width or width, self.height or height
        given = self.width is not None and self.height is not None
        if not self.is_of(width, height):
            raise InputError(f"the picture is {width} × {height}, and its camera is of {own_width:g} × {own_height:g}")
        fx = _focal(own_width, self.angle_x) if self.fx is None else self.fx
        fy = fx if self.angle_y is None else _focal(own_height, self.angle_y)
        fy = fy if self.fy is None else self.fy
        for focal in (fx, fy):
            if not (focal > 0 and math.isfinite(focal)):
                raise InputError(f"a focal length of {focal:g}")
        across, down = width / own_width, (height / own_height if given else width / own_width)
        cx = 0.5 * width if self.cx is None else self.cx * across
        cy = 0.5 * height if self.cy is None else self.cy * down
        if not (math.isfinite(cx) and math.isfinite(cy)):
            raise InputError("a principal point that is no number")
        return Camera(fx * across, fy * down, cx, cy, width, height, self.lens)

    def is_of(self, width: int, height: int) -> bool:
        """Whether a picture of that size has this camera's shape, as far as is known."""
        if self.width is None or self.height is None or self.width == self.height == 1:
            return True
        return abs(self.width * height - self.height * width) <= _OTHER_SHAPE * self.width * height

    def turned(self, quarters: int) -> Camera:
        """Of the picture turned clockwise by quarters. Sizes and principal point must be known (`at`)."""
        camera = self
        for _ in range(quarters % 4):
            assert camera.width is not None and camera.height is not None and camera.cx is not None
            assert camera.cy is not None and camera.fx is not None and camera.fy is not None
            camera = Camera(
                camera.fy,
                camera.fx,
                camera.height - camera.cy,
                camera.cx,
                camera.height,
                camera.width,
                camera.lens and camera.lens.turned(),
            )
        return camera

    def matrix(self) -> Floats:
        """(3, 3) for an image width of 1. Size and principal point must be known (`at`)."""
        K = np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, self.width]], np.float64)
        result: Floats = K / K[2, 2]
        return result


@dataclass(frozen=True)
class View:
    """A picture of a scene and its camera.

    path: of the picture in its source, with / between folders; c2w: (4, 4) OpenGL camera-to-world; mask: path of a
    picture that is black where nothing of what is shown is; points: (N, 3) those of the world that it shows;
    stands: whether the camera is of the picture as EXIF turns it, and not as it lies in its file.
    """

    path: str
    camera: Camera
    c2w: Floats
    mask: str | None = None
    points: Floats | None = None
    stands: bool = False


@dataclass(frozen=True)
class Scene:
    """Views in their order, and what is known of all.

    reprojection, overlap: as in the group `cameras`; left_out: picture → why it is no view; facts: what the source says
    of the scene, as metadata.csv does of a picture.
    """

    views: Sequence[View]
    reprojection: float | None = None
    overlap: float | None = None
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _focal(side: float, angle: float | None) -> float:
    assert angle is not None
    return 0.5 * side / math.tan(0.5 * angle) if 0 < angle < math.pi else 0.0


def camera_to_world(matrix: Any, name: str = "transform_matrix") -> Floats:
    """(4, 4) of a matrix that may lack its last row and may be scaled, as programs write it.

    Raises InputError for what is no rotation and translation.
    """
    try:
        values = np.array(matrix, np.float64)
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.size in (12, 16) and values.ndim == 1:
        values = values.reshape(-1, 4)
    if values.shape not in ((3, 4), (4, 4)) or not np.isfinite(values).all():
        raise InputError(f"{name} is not 4 × 4 numbers")
    result = np.eye(4)
    result[:3] = values[:3]
    turn = result[:3, :3]
    off = np.abs(turn.T @ turn - np.eye(3)).max()
    if off > _ROTATION:
        lengths = np.linalg.norm(turn, axis=0)
        turn = turn / np.where(lengths > 0, lengths, 1)
        result[:3, :3] = turn
        off = np.abs(turn.T @ turn - np.eye(3)).max()
    if off > 10 * _ROTATION or np.linalg.det(turn) < 0:
        raise InputError(f"{name} is no rotation and translation")
    return result


def from_opencv(rotation: Any, translation: Any) -> Floats:
    """OpenGL camera-to-world (4, 4) of an OpenCV world-to-camera rotation (3, 3) and translation (3,).

    Raises InputError as `camera_to_world`.
    """
    R, t = np.asarray(rotation, np.float64), np.asarray(translation, np.float64)
    if R.shape != (3, 3) or t.shape != (3,) or not (np.isfinite(R).all() and np.isfinite(t).all()):
        raise InputError("its pose is not a rotation and a translation")
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = R.T, -R.T @ t
    return camera_to_world(matrix @ _FLIP, "its pose")


def turned_pose(c2w: Floats, quarters: int) -> Floats:
    """Camera-to-world of the picture turned clockwise by quarters: what was up is to the right."""
    result = c2w.copy()
    for _ in range(quarters % 4):
        result[:, [0, 1]] = np.stack([result[:, 1], -result[:, 0]], 1)
    return result


def baseline(poses: Floats) -> float | None:
    """Median distance of views (V, 4, 4) in a row, by the distance of what all look at. None: they look nowhere."""
    centers, axes = poses[:, :3, 3], -poses[:, :3, 2]
    across = np.eye(3) - axes[:, :, None] * axes[:, None, :]
    pull = (across @ centers[:, :, None]).sum(0)[:, 0]
    if len(poses) < MIN_VIEWS or np.linalg.eigvalsh(across.mean(0))[0] < 1e-9:
        return None
    meeting = np.linalg.solve(across.sum(0), pull)
    distance = float(np.median(np.linalg.norm(centers - meeting, axis=1)))
    steps = np.linalg.norm(np.diff(centers, axis=0), axis=1)
    return float(np.median(steps)) / distance if distance > 0 else None
