"""Where the pictures of a reconstruction show each of its points, to a tenth of what features are off by.

Features of a surface that is seen aslant lie elsewhere on it in each picture, by a quarter of a pixel (median) between
pictures 15° apart, and as those of all neighbors do alike, cameras drift along a chain of pictures. So what surrounds
a point in one picture, the one amid those that show it, is laid over each of the others by an affine map (Lucas and
Kanade 1981; the inverse compositional form of Baker and Matthews 2004, with gain and bias). Pixel-Perfect
Structure-from-Motion (Lindenberger et al. 2021) does so with learned features.

N observations of points, P of them in one picture, S = 11² samples around each, x and y of pictures as they are
searched for features, the middle of the first pixel at 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_RADIUS, _SIGMA = 5, 2.5  # pixels, of the samples and of their weights
_STEPS, _STILL = 12, 0.005  # most steps, and the pixels of one that ends them
_FARTHEST = 2.0  # pixels that an observation may move by
_ALIKE = 0.9  # correlation from which two surroundings are taken for the same
_RIDGE = 1e-5
_MOST_ROWS = 16384  # of OpenCV's maps, which have at most 32767

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.int64]

_SIDE = 2 * _RADIUS + 1
_ROWS, _COLUMNS = np.mgrid[-_RADIUS : _RADIUS + 1, -_RADIUS : _RADIUS + 1].reshape(2, -1)
_AROUND = np.stack([_COLUMNS, _ROWS], -1).astype(np.float32)  # (S, 2) x, y
_WEIGHTS = np.exp(-(_AROUND**2).sum(1) / (2 * _SIGMA**2))
_WEIGHTS = (_WEIGHTS / _WEIGHTS.sum()).astype(np.float32)


@dataclass(frozen=True)
class _Observations:
    """point, image: (N,) numbers; feature: (N,) number in its picture; xy: (N, 2); shape: (N, 2, 2) of the feature;
    middle: (N,) the observation that its point's others are laid over."""

    point: Integers
    image: Integers
    feature: Integers
    xy: Floats
    shape: Floats
    middle: Integers


def align_points(model: Any, database: Path, pictures: Path, side: int, threads: int = 1) -> int:
    """Move the points that the pictures of a pycolmap.Reconstruction show to where they match; how many.

    side: pixels of the longer side that features were looked for at. One picture at a time is in memory, and the
    surroundings of the points.
    """
    import cv2

    cv2.setNumThreads(threads)
    seen = _observations(model, database, side)
    templates = np.zeros((len(model.points3D), (_SIDE + 2) ** 2), np.float32)
    grid = np.mgrid[-_RADIUS - 1 : _RADIUS + 2, -_RADIUS - 1 : _RADIUS + 2].reshape(2, -1)[::-1].T
    middles = np.unique(seen.middle)
    for number in np.unique(seen.image[middles]).tolist():
        there = middles[seen.image[middles] == number]
        picture, _ = _picture(model, number, pictures, side)
        templates[seen.point[there]] = _sampled(picture, seen.xy[there][:, None] + grid)
    moved = 0
    for number in np.unique(seen.image).tolist():
        there = np.nonzero((seen.image == number) & (seen.middle != np.arange(len(seen.middle))))[0]
        if not len(there):
            continue
        picture, scale = _picture(model, number, pictures, side)
        start = seen.shape[there] @ np.linalg.inv(seen.shape[seen.middle[there]])
        xy, alike = lay_over(picture, templates[seen.point[there]], seen.xy[there], start)
        near = np.linalg.norm(xy - seen.xy[there], axis=1) < _FARTHEST
        points = model.images[number].points2D
        for which in np.nonzero(near & (alike > _ALIKE))[0].tolist():
            points[int(seen.feature[there[which]])].xy = (xy[which] + 0.5) / scale
            moved += 1
    return moved


def lay_over(picture: Floats, templates: Floats, xy: Floats, start: Floats) -> tuple[Floats, Floats]:
    """(P, 2) where the surroundings of points are in a picture, and the correlation (P,) there.

    picture: (H, W) float32; templates: (P, (11 + 2)²) of another picture, with a border of one pixel; xy: (P, 2) about
    where; start: (P, 2, 2) from steps there to steps in the picture.
    """
    wide = templates.reshape(-1, _SIDE + 2, _SIDE + 2)
    across = ((wide[:, 1:-1, 2:] - wide[:, 1:-1, :-2]) / 2).reshape(len(wide), -1)
    down = ((wide[:, 2:, 1:-1] - wide[:, :-2, 1:-1]) / 2).reshape(len(wide), -1)
    wanted, contrast = _standard(wide[:, 1:-1, 1:-1].reshape(len(wide), -1))
    across, down = across / contrast, down / contrast
    x, y = _AROUND.T / _RADIUS
    slopes = np.stack([across, down, across * x, across * y, down * x, down * y, wanted, np.ones_like(wanted)], -1)
    weighted = slopes * _WEIGHTS[:, None]
    normal = np.einsum("nsi,nsj->nij", weighted, slopes)
    normal += _RIDGE * np.trace(normal, axis1=1, axis2=2)[:, None, None] * np.eye(slopes.shape[-1])
    solve = np.linalg.inv(normal)
    where, turn, alike = xy.astype(np.float64), start.astype(np.float64), np.zeros(len(xy))
    left = np.arange(len(xy))
    for step in range(_STEPS + 1):
        own, _ = _standard(_sampled(picture, where[left][:, None] + np.einsum("nij,sj->nsi", turn[left], _AROUND)))
        alike[left] = (own * wanted[left] * _WEIGHTS).sum(1)
        if step == _STEPS:
            break
        off = np.einsum("nsi,ns->ni", weighted[left], own - wanted[left])
        off = np.einsum("nij,nj->ni", solve[left], off)
        # The template would have to move by `off`: the picture's map is composed with the inverse of that.
        back = np.linalg.inv(np.eye(2) + off[:, 2:6].reshape(-1, 2, 2) / _RADIUS)
        where[left] -= np.einsum("nij,njk,nk->ni", turn[left], back, off[:, :2])
        turn[left] = turn[left] @ back
        far = np.linalg.norm(where[left] - xy[left], axis=1) > 2 * _FARTHEST
        left = left[(np.abs(off[:, :2]).max(1) > _STILL) & ~far]
        if not len(left):
            break
    return where, alike


def _observations(model: Any, database: Path, side: int) -> _Observations:
    import pycolmap

    numbers = {point: number for number, point in enumerate(sorted(model.points3D))}
    place = np.array([model.points3D[point].xyz for point in numbers]).reshape(-1, 3)
    parts: list[tuple[Any, ...]] = []
    with pycolmap.Database.open(database) as opened:
        for image in sorted(number for number, image in model.images.items() if image.has_pose):
            taken = model.images[image]
            keypoints = np.asarray(opened.read_keypoints(image), np.float64)
            features = np.array(taken.get_observation_point2D_idxs(), np.int64)
            points = np.array([numbers[taken.points2D[one].point3D_id] for one in features.tolist()], np.int64)
            xy = keypoints[features, :2] * _scale(taken.camera, side) - 0.5
            toward = taken.projection_center() - place[points]
            toward /= np.maximum(np.linalg.norm(toward, axis=1, keepdims=True), 1e-12)
            shape = keypoints[features, 2:6].reshape(-1, 2, 2) * _scale(taken.camera, side)
            parts.append((points, np.full(len(points), image), features, xy, shape, toward))
    point, image_of, feature, xy, shape, toward = (np.concatenate(part) for part in zip(*parts, strict=True))
    mean = np.zeros_like(place)
    np.add.at(mean, point, toward)
    order = np.lexsort((-(toward * mean[point]).sum(1), point))
    _, first = np.unique(point[order], return_index=True)
    return _Observations(point, image_of, feature, xy, shape, order[first][np.unique(point, return_inverse=True)[1]])


def _scale(camera: Any, side: int) -> float:
    return float(min(1.0, side / max(camera.width, camera.height)))


def _picture(model: Any, number: int, pictures: Path, side: int) -> tuple[Floats, float]:
    """(H, W) levels of a picture, at the size at which it was searched for features, and its share of the full one."""
    import cv2

    image = model.images[number]
    scale = _scale(image.camera, side)
    levels = cv2.imread(str(pictures / image.name), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION)
    assert levels is not None, image.name  # JPEG or PNG, from which COLMAP has taken features
    if scale < 1:
        size = (round(image.camera.width * scale), round(image.camera.height * scale))
        levels = cv2.resize(levels, size, interpolation=cv2.INTER_AREA)
    return np.asarray(levels, np.float32), scale


def _sampled(picture: Floats, where: Floats) -> Floats:
    """(P, S) levels at x, y (P, S, 2), which OpenCV rounds to a 32nd of a pixel."""
    import cv2

    rows = []
    for some in np.array_split(where.astype(np.float32), -(-len(where) // _MOST_ROWS)):
        x, y = np.ascontiguousarray(some[..., 0]), np.ascontiguousarray(some[..., 1])
        rows.append(cv2.remap(picture, x, y, cv2.INTER_CUBIC))
    return np.concatenate(rows)


def _standard(levels: Floats) -> tuple[Floats, Floats]:
    """Levels of mean 0 and deviation 1, and the deviation (P, 1) that they had."""
    middle = levels - (levels * _WEIGHTS).sum(1, keepdims=True)
    deviation = np.maximum(np.sqrt((middle**2 * _WEIGHTS).sum(1, keepdims=True)), 1e-3)
    return middle / deviation, deviation
