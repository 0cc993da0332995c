"""COLMAP's sparse models, as text and as binary files: OpenCV world-to-camera, pixels counted from the corner.

The formats are those of https://colmap.github.io/format.html.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labeling.sources.lenses import lens_of
from labeling.sources.scenes.files import SceneFiles, folder_of, joined
from labeling.sources.scenes.scene import Camera, Floats, Scene, View, from_opencv
from model.inputs import InputError

# Number of a model in binary files → its name and parameters; f is that of both axes.
_MODELS = {
    0: ("SIMPLE_PINHOLE", ("f", "cx", "cy")),
    1: ("PINHOLE", ("fx", "fy", "cx", "cy")),
    2: ("SIMPLE_RADIAL", ("f", "cx", "cy", "k1")),
    3: ("RADIAL", ("f", "cx", "cy", "k1", "k2")),
    4: ("OPENCV", ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2")),
    5: ("OPENCV_FISHEYE", ("fx", "fy", "cx", "cy", "k1", "k2", "k3", "k4")),
    6: ("FULL_OPENCV", ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")),
    7: ("FOV", ("fx", "fy", "cx", "cy", "omega")),
    8: ("SIMPLE_RADIAL_FISHEYE", ("f", "cx", "cy", "k1")),
    9: ("RADIAL_FISHEYE", ("f", "cx", "cy", "k1", "k2")),
    10: ("THIN_PRISM_FISHEYE", ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2", "k3", "k4", "sx1", "sy1")),
}
_PARAMETERS = dict(_MODELS.values())
_IMAGE_FOLDERS = ("images", "", "input", "rgb", "photos")
_LEVELS = 3  # folders above a model in which its pictures are looked for: scene/sparse/0


@dataclass
class _Image:
    name: str
    rotation: Sequence[float]  # quaternion w, x, y, z
    translation: Sequence[float]
    camera: int
    points: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))  # that it shows, −1 left out


@dataclass
class _Points:
    ids: NDArray[np.int64]  # (N,) sorted
    places: Floats  # (N, 3)
    errors: Floats  # (N,) in pixels
    seen: NDArray[np.int64]  # (N,) in how many pictures


def is_model(name: str) -> bool:
    """Whether a file stands for a COLMAP model: the one that says the poses."""
    return PurePosixPath(name).name in ("images.txt", "images.bin")


def read_model(files: SceneFiles, name: str, folders: Sequence[str] = ()) -> Scene:
    """The scene of the model that images.txt or images.bin is of; its pictures in the order of their names.

    folders: that the pictures lie in, by default those beside the model and above it. Raises InputError for a model
    that is broken, and for a camera or picture that is none to store.
    """
    suffix, folder = PurePosixPath(name).suffix, folder_of(name)
    cameras_name = joined(folder, "cameras" + suffix)
    if not files.exists(cameras_name):
        raise InputError(f"a COLMAP model without {cameras_name!r}")
    points_name = joined(folder, "points3D" + suffix)
    try:
        if suffix == ".txt":
            cameras, images = _text_cameras(files.read(cameras_name)), _text_images(files.read(name))
            points = _text_points(files.read(points_name)) if files.exists(points_name) else None
        else:
            cameras, images = _binary_cameras(files.read(cameras_name)), _binary_images(files.read(name))
            points = _binary_points(files.read(points_name)) if files.exists(points_name) else None
    except (ValueError, IndexError, struct.error, KeyError, OverflowError, MemoryError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"a broken COLMAP model ({type(error).__name__}: {error})"[:200]) from None
    if not images:
        raise InputError("a COLMAP model without pictures")
    return scene_of(
        files, folders or _picture_folders(folder), cameras, sorted(images, key=lambda image: image.name), points
    )


def scene_of(
    files: SceneFiles,
    folders: Sequence[str],
    cameras: dict[int, dict[str, Any]],
    images: Sequence[_Image],
    points: _Points | None,
) -> Scene:
    """Views of the images of a model, whose pictures lie in one of these folders."""
    views = []
    for image in images:
        try:
            if image.camera not in cameras:
                raise InputError(f"its camera {image.camera} is not in the model")
            values = cameras[image.camera]
            fx, fy, cx, cy, width, height = (values[key] for key in ("fx", "fy", "cx", "cy", "width", "height"))
            camera = Camera(fx, fy, cx, cy, width, height, lens_of(values))
            c2w = from_opencv(_rotation(image.rotation), image.translation)
            path = files.find_picture(folders, image.name)
        except InputError as error:
            prefix = "" if repr(image.name) in str(error) else f"{image.name!r}: "
            raise InputError(f"picture {prefix}{error}") from None
        views.append(View(path, camera, c2w, points=None if points is None else _places(points, image.points)))
    if points is None or not points.seen.sum():
        return Scene(views)
    off = float((points.errors * points.seen).sum() / points.seen.sum())
    return Scene(views, off if off > 0 else None, _overlap([image.points for image in images]))


def _picture_folders(folder: str) -> list[str]:
    above = [folder]
    while above[-1] and len(above) <= _LEVELS:
        above.append(folder_of(above[-1]))
    return [f"{one}/{name}".strip("/") for one in reversed(above) for name in _IMAGE_FOLDERS]


def _places(points: _Points, ids: NDArray[np.int64]) -> Floats:
    where = np.searchsorted(points.ids, ids).clip(max=max(len(points.ids) - 1, 0))
    found = points.ids[where] == ids if len(points.ids) else np.zeros(len(ids), bool)
    return points.places[where[found]]


def _overlap(seen: Sequence[NDArray[np.int64]]) -> float | None:
    """Mean share of a picture's points that the next one shows too, of the one with fewer."""
    shares = [
        len(np.intersect1d(one, other)) / least
        for one, other in pairwise(seen)
        if (least := min(len(np.unique(one)), len(np.unique(other))))
    ]
    return float(np.mean(shares)) if shares else None


def _rotation(quaternion: Sequence[float]) -> Floats:
    q = np.asarray(quaternion, np.float64)
    length = np.linalg.norm(q)
    if not (np.isfinite(length) and length > 0):
        raise InputError("its rotation is no quaternion")
    w, x, y, z = q / length
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def _camera(model: str, width: float, height: float, parameters: Sequence[float]) -> dict[str, Any]:
    names = _PARAMETERS.get(model)
    if names is None:
        raise InputError(f"camera model {model} is not known")
    if len(parameters) != len(names):
        raise InputError(f"a camera of model {model} has {len(names)} parameters, not {len(parameters)}")
    values = dict(zip(names, parameters, strict=True))
    if "f" in values:
        values["fx"] = values["fy"] = values.pop("f")
    return {"camera_model": model, "width": width, "height": height, **values}


def _lines(data: bytes) -> Iterator[str]:
    """Lines without comments; an empty one is that of a picture without points."""
    for line in data.decode("utf-8", "replace").splitlines():
        if not line.startswith("#"):
            yield line.strip()


def _text_cameras(data: bytes) -> dict[int, dict[str, Any]]:
    cameras = {}
    for words in (line.split() for line in _lines(data) if line):
        cameras[int(words[0])] = _camera(
            words[1], float(words[2]), float(words[3]), [float(word) for word in words[4:]]
        )
    return cameras


def _text_images(data: bytes) -> list[_Image]:
    lines = list(_lines(data))
    while lines and not lines[0]:
        lines.pop(0)
    images = []
    for first, second in zip(lines[::2], [*lines[1::2], ""], strict=False):
        if not first:
            continue
        words = first.split(maxsplit=9)
        numbers = [float(word) for word in words[1:8]]
        ids = np.array(second.split()[2::3], np.float64).astype(np.int64)
        images.append(_Image(words[9], numbers[:4], numbers[4:], int(words[8]), ids[ids >= 0]))
    return images


def _text_points(data: bytes) -> _Points:
    rows = [line.split() for line in _lines(data) if line]
    return _sorted_points(
        [int(row[0]) for row in rows],
        [[float(word) for word in row[1:4]] for row in rows],
        [float(row[7]) for row in rows],
        [(len(row) - 8) // 2 for row in rows],
    )


class _Bytes:
    """Reads a binary file from its beginning to its end."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, form: str) -> tuple[Any, ...]:
        """The next values; struct.error at the file's end."""
        values = struct.unpack_from("<" + form, self._data, self._at)
        self._at += struct.calcsize("<" + form)
        return values

    def text(self) -> str:
        """The next text, which a zero byte ends."""
        end = self._data.index(b"\0", self._at)
        text = self._data[self._at : end].decode("utf-8", "replace")
        self._at = end + 1
        return text

    def array(self, kind: np.dtype[Any], count: int) -> NDArray[Any]:
        """The next `count` records. Raises ValueError at the file's end."""
        values = np.frombuffer(self._data, kind, count, self._at)
        self._at += values.nbytes
        return values

    def skip(self, size: int) -> None:
        """Go on by some bytes. Raises ValueError beyond the file's end."""
        self._at += size
        if self._at > len(self._data):
            raise ValueError("cut off")


def _binary_cameras(data: bytes) -> dict[int, dict[str, Any]]:
    file, cameras = _Bytes(data), {}
    for _ in range(file.take("Q")[0]):
        number, model, width, height = file.take("iiQQ")
        if model not in _MODELS:
            raise InputError(f"camera model {model} is not known")
        name, parameters = _MODELS[model]
        cameras[number] = _camera(name, width, height, file.take(f"{len(parameters)}d"))
    return cameras


def _binary_images(data: bytes) -> list[_Image]:
    file, images = _Bytes(data), []
    kind = np.dtype([("x", "<f8"), ("y", "<f8"), ("id", "<i8")])
    for _ in range(file.take("Q")[0]):
        numbers = file.take("i7di")
        name = file.text()
        ids = file.array(kind, file.take("Q")[0])["id"]
        images.append(_Image(name, numbers[1:5], numbers[5:8], numbers[8], ids[ids >= 0]))
    return images


def _binary_points(data: bytes) -> _Points:
    file = _Bytes(data)
    ids, places, errors, seen = [], [], [], []
    for _ in range(file.take("Q")[0]):
        values = file.take("Q3d3BdQ")
        ids.append(values[0])
        places.append(values[1:4])
        errors.append(values[7])
        seen.append(values[8])
        file.skip(8 * values[8])
    return _sorted_points(ids, places, errors, seen)


def _sorted_points(ids: Any, places: Any, errors: Any, seen: Any) -> _Points:
    numbers = np.array(ids, np.int64)
    order = np.argsort(numbers)
    return _Points(
        numbers[order],
        np.array(places, np.float64).reshape(-1, 3)[order],
        np.array(errors, np.float64)[order],
        np.array(seen, np.int64)[order],
    )
