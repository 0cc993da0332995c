"""A pile of photographs of several scenes → groups that show the same: found by likeness, made sure of by geometry.

N features of a picture, D = 128 numbers each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labeling.sources.scenes.files import SceneFiles, read_picture
from labeling.sources.scenes.retrieval import Floats, pairs_of, root_sift
from model.inputs import InputError
from model.pictures import decode_picture

MOST_PICTURES = 2000  # of a pile, whose features are held together
_FEATURES, _SIDE = 600, 640  # of a picture, and pixels of the longer side that they are looked for at
_NEAREST = 10  # others that each picture is compared with
_RATIO = 0.8  # Lowe's: by which the closest feature is closer than the second
_LEAST_MATCHES, _OFF = 25, 3.0  # points that agree on how two cameras stood, and pixels by which they may be off


@dataclass(frozen=True)
class _Features:
    places: NDArray[np.float32]  # (N, 2)
    descriptors: Floats  # (N, D)


def group_pile(files: SceneFiles, pictures: Sequence[str]) -> list[list[str]]:
    """Groups of pictures that show the same, sorted; one that shows what no other does is a group of its own.

    Raises InputError for a pile of more pictures than MOST_PICTURES.
    """
    if len(pictures) > MOST_PICTURES:
        raise InputError(f"a pile of {len(pictures)} pictures; sort them into folders of at most {MOST_PICTURES} each")
    features = {path: _features(files, path) for path in pictures}
    leader = {path: path for path in pictures}

    def root(path: str) -> str:
        while leader[path] != path:
            leader[path] = path = leader[leader[path]]
        return path

    for one, other in pairs_of({path: each.descriptors for path, each in features.items()}, _NEAREST, 0):
        if root(one) != root(other) and _shows_the_same(features[one], features[other]):
            leader[max(root(one), root(other))] = min(root(one), root(other))
    groups: dict[str, list[str]] = {}
    for path in sorted(pictures):
        groups.setdefault(root(path), []).append(path)
    return [groups[key] for key in sorted(groups)]


def _features(files: SceneFiles, path: str) -> _Features:
    import cv2

    try:
        picture = decode_picture(read_picture(files, path)[1].encoded)
    except InputError:  # which making its scene tells
        return _Features(np.empty((0, 2), np.float32), np.empty((0, 128), np.float32))
    cv2.setNumThreads(1)
    scale = min(1.0, _SIDE / max(picture.shape[:2]))
    gray = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    if scale < 1:
        gray = cv2.resize(gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    points, values = cv2.SIFT.create(nfeatures=_FEATURES).detectAndCompute(gray, None)
    if values is None:
        return _Features(np.empty((0, 2), np.float32), np.empty((0, 128), np.float32))
    return _Features(np.array([point.pt for point in points], np.float32), root_sift(values))


def _shows_the_same(one: _Features, other: _Features) -> bool:
    """Whether enough features of two pictures agree on how their cameras stood to each other."""
    import cv2

    if min(len(one.places), len(other.places)) < _LEAST_MATCHES:
        return False
    like = one.descriptors @ other.descriptors.T  # cosines: root-SIFT has unit length
    closest = like.argmax(1)
    best = like[np.arange(len(like)), closest]
    like[np.arange(len(like)), closest] = -1
    # Distances are √(2 − 2 cos).
    is_clear = (1 - best) < _RATIO**2 * (1 - like.max(1))
    if is_clear.sum() < _LEAST_MATCHES:
        return False
    cv2.setRNGSeed(0)
    from_, to = one.places[is_clear], other.places[closest[is_clear]]
    _, agree = cv2.findFundamentalMat(from_, to, cv2.FM_RANSAC, _OFF, 0.999)
    return agree is not None and int(agree.sum()) >= _LEAST_MATCHES
