"""Which of many vectors belong together: a graph of near ones, and its clusters.

Each vector is linked to its nearest ones within a distance. Up to `EXACT` vectors all are compared; of more those of
the nearest cells of an inverted file (faiss), so that the time grows with n·√n and the memory with n. Clusters are
what the links connect, parted by Chinese whispers (Biemann 2006): each takes the label that most of its links have,
so that one link between two people does not make them one.

N vectors of D numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labeling.near_duplicates import Groups

EXACT = 16_384
NEIGHBORS = 24  # of each vector
BATCH = 8192  # vectors that are looked up at a time
CELLS_READ = 12
TRAINED = 32  # vectors of each cell that its middle is learned from
ROUNDS = 20
LINKS = 1 << 21  # of the components that are parted at a time

Indices = NDArray[np.int64]
Floats = NDArray[np.float32]
Vectors = NDArray[np.floating]  # (N, D); may lie on disk


@dataclass(frozen=True)
class Links:
    """Pairs of near vectors, one < other, each once, and their distances."""

    one: NDArray[np.int32]
    other: NDArray[np.int32]
    distance: Floats

    def within(self, distance: float) -> Links:
        """Those that are no further apart."""
        near = self.distance <= distance
        return Links(self.one[near], self.other[near], self.distance[near])


def link(vectors: Vectors, distance: float, seed: int = 0) -> Links:
    """Links of each vector to its nearest ones within a Euclidean distance. The same vectors give the same links."""
    count = len(vectors)
    parts: list[tuple[Indices, Floats]] = []
    index = _index(vectors, seed)
    for start in range(0, count, BATCH):
        squares, found = index.search(_block(vectors, start), min(NEIGHBORS + 1, count))
        rows = np.repeat(np.arange(start, start + len(found)), found.shape[1])
        others, distances = found.ravel().astype(np.int64), np.sqrt(np.maximum(squares.ravel(), 0))
        # A pair may be found from one side alone: from either side it is one link.
        near = (others >= 0) & (others != rows) & (distances <= distance)
        rows, others = rows[near], others[near]
        pairs = np.minimum(rows, others) * count + np.maximum(rows, others)
        parts.append((pairs, distances[near].astype(np.float32)))
    if not parts:
        return Links(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32))
    pairs, distances = (np.concatenate(column) for column in zip(*parts, strict=True))
    parts.clear()
    order = np.argsort(pairs, kind="stable")
    pairs, distances = pairs[order], distances[order]
    del order
    first = np.diff(pairs, prepend=-1) != 0
    pairs, distances = pairs[first], distances[first]
    return Links((pairs // count).astype(np.int32), (pairs % count).astype(np.int32), distances)


def cluster(count: int, links: Links, distance: float) -> Indices:
    """(N,) of each vector the first one of its cluster. A link weighs the more, the nearer its ends are."""
    groups = Groups(count)
    groups.join(links.one.astype(np.int64), links.other.astype(np.int64))
    roots = groups.roots()
    labels = np.arange(count)
    weights = np.maximum(1 - links.distance / distance, 0).astype(np.float32) + np.float32(0.05)
    for part in _components(roots[links.one]):
        one, other, weight = links.one[part], links.other[part], weights[part]
        _whisper(labels, np.concatenate([one, other]), np.concatenate([other, one]), np.concatenate([weight, weight]))
    first = np.full(count, count)
    np.minimum.at(first, labels, np.arange(count))
    return np.asarray(first[labels], np.int64)


def pair_scores(groups: Indices, truth: Indices) -> tuple[float, float]:
    """Precision and recall of the pairs that are in one group. truth: of each its true group, -1 where unknown."""
    known = truth >= 0
    groups, truth = groups[known], truth[known]

    def pairs(labels: Indices) -> int:
        sizes = np.unique(labels, return_counts=True)[1].astype(np.int64)
        return int((sizes * (sizes - 1) // 2).sum())

    both = pairs(np.unique(np.stack([groups, truth], 1), axis=0, return_inverse=True)[1].ravel())
    found, true = pairs(groups), pairs(truth)
    return both / found if found else 1.0, both / true if true else 1.0


def _block(vectors: Vectors, start: int, size: int = BATCH) -> Floats:
    return np.ascontiguousarray(vectors[start : start + size], np.float32)


def _index(vectors: Vectors, seed: int) -> Any:
    """What faiss looks vectors up in."""
    import faiss

    count, width = vectors.shape
    if count <= EXACT:
        exact: Any = faiss.IndexFlatL2(width)
        exact.add(np.ascontiguousarray(vectors, np.float32))
        return exact
    cells = int(4 * np.sqrt(count))
    # Half-precision copies: a face takes 256 bytes of memory.
    middles = faiss.IndexFlatL2(width)
    index: Any = faiss.IndexIVFScalarQuantizer(middles, width, cells, faiss.ScalarQuantizer.QT_fp16)
    index.cp.seed, index.cp.niter = 1234 + seed, 8
    index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 1, TRAINED
    drawn = np.sort(np.random.default_rng(seed).choice(count, min(count, TRAINED * cells), replace=False))
    index.train(np.ascontiguousarray(vectors[drawn], np.float32))
    for start in range(0, count, BATCH):
        index.add(_block(vectors, start))
    index.nprobe = CELLS_READ
    return index


def _components(roots: Indices) -> Iterator[Indices]:
    """Numbers of the links of whole components, so many at a time that their votes fit memory. roots: of each link."""
    order = np.argsort(roots, kind="stable")
    ends = np.flatnonzero(np.diff(roots[order], append=-1)) + 1
    start = 0
    while start < len(order):
        fitting = int(np.searchsorted(ends, start + LINKS, side="right"))
        end = int(ends[max(fitting - 1, int(np.searchsorted(ends, start, side="right")))])
        yield order[start:end]
        start = end


def _whisper(labels: Indices, rows: Indices, others: Indices, weights: Floats) -> None:
    """Part components, in place: each row takes the label of the most weight among what it is linked to.

    Half of the rows, drawn by their numbers, change at a time, since all at once would only swap their labels.
    """
    quiet = 0
    for number in range(ROUNDS):
        active = (((rows.astype(np.int64) * 2654435761 + number * 40503) >> 7) & 1) == 0
        row, vote, weight = rows[active], labels[others[active]], weights[active]
        order = np.lexsort((vote, row))
        row, vote, weight = row[order], vote[order], weight[order]
        starts = np.flatnonzero((np.diff(row, prepend=-1) != 0) | (np.diff(vote, prepend=-1) != 0))
        if not len(starts):
            continue
        sums = np.add.reduceat(weight.astype(np.float64), starts)
        row, vote = row[starts], vote[starts]
        best = np.lexsort((vote, -np.round(sums, 6), row))
        best = best[np.diff(row[best], prepend=-1) != 0]
        changed = labels[row[best]] != vote[best]
        labels[row[best]] = vote[best]
        quiet = 0 if changed.any() else quiet + 1
        if quiet == 4:
            return
