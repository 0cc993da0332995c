"""Which pictures of many may show the same: by their local features, gathered to one vector each (VLAD).

D = 128 numbers of a feature, W words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_WORDS = 64
_SAMPLE = 100_000  # features that words are found from
_SEED = 0

Floats = NDArray[np.float32]


def likely_pairs(database: Path, nearest: int, neighbors: int) -> list[tuple[str, str]]:
    """Pairs of names of a COLMAP database to be matched: each picture with those most alike, and those next by name."""
    import pycolmap

    with pycolmap.Database.open(database) as opened:
        images = sorted((image.name, image.image_id) for image in opened.read_all_images())
        features = {name: root_sift(opened.read_descriptors(number)) for name, number in images}
    return pairs_of(features, nearest, neighbors)


def pairs_of(features: Mapping[str, Floats], nearest: int, neighbors: int) -> list[tuple[str, str]]:
    """Pairs of names, sorted. features: name → (N, D) descriptors."""
    names = sorted(features)
    vectors = vectors_of([features[name] for name in names])
    pairs: set[tuple[str, str]] = set()
    for index, name in enumerate(names):
        like = vectors @ vectors[index]
        like[index] = -np.inf
        others = np.argsort(-like, kind="stable")[: min(nearest, len(names) - 1)].tolist()
        others += range(index + 1, min(index + 1 + neighbors, len(names)))
        pairs |= {(min(name, names[other]), max(name, names[other])) for other in others}
    return sorted(pairs)


def vectors_of(features: Sequence[Floats]) -> Floats:
    """(pictures, W · D) of unit length, of the descriptors (N, D) of each picture; zeros of one without."""
    import cv2

    some = [each for each in features if len(each)]
    if not some:
        return np.zeros((len(features), 1), np.float32)
    random = np.random.Generator(np.random.PCG64(_SEED))
    share = max(1, _SAMPLE // len(some))
    sample = np.concatenate([each[np.sort(random.permutation(len(each))[:share])] for each in some])
    cv2.setRNGSeed(_SEED)
    cv2.setNumThreads(1)
    end = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 1e-3)
    labels: Any = None
    _, _, words = cv2.kmeans(sample, min(_WORDS, len(sample)), labels, end, 1, cv2.KMEANS_PP_CENTERS)
    return np.stack([_vector(each, np.asarray(words, np.float32)) for each in features])


def _vector(features: Floats, words: Floats) -> Floats:
    vector = np.zeros_like(words)
    if len(features):
        closest = np.argmin((words**2).sum(1) - 2 * features @ words.T, axis=1)
        np.add.at(vector, closest, features - words[closest])
        lengths = np.linalg.norm(vector, axis=1, keepdims=True)
        vector /= np.where(lengths > 0, lengths, 1).astype(np.float32)
        vector /= max(float(np.linalg.norm(vector)), 1e-12)
    return vector.reshape(-1).astype(np.float32)


def root_sift(descriptors: Any) -> Floats:
    """(N, D) of unit length, whose distances say more than those of SIFT's descriptors (N, D)."""
    values = np.asarray(getattr(descriptors, "data", descriptors), np.float32)
    return np.sqrt(values / np.maximum(values.sum(1, keepdims=True), 1e-6))
