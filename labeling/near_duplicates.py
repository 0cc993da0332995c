"""Which of many rows are nearly the same: groups of bits that differ in few places, or of vectors in almost one
direction.

Up to `EXACT` rows every pair is compared. Among more, rows are compared that agree in all of some bits, drawn anew for
each of many passes (Indyk and Motwani 1998, sampled bits): the memory is that of the rows, and the time grows with
n log n. Groups are what is connected by pairs.

N rows, W words of 64 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

EXACT = 4096
PASSES = 128  # pairs that differ in 22 % of their bits, of which 17 are drawn for 10⁶ rows, are found by 85 in 100
ROWS_A_BUCKET = 4  # that agree by chance in the bits of a pass
NEIGHBORS = 64  # compared with each row of a pass: many rows that agree in many bits cost no more
BATCH = 1 << 18

Words = NDArray[np.uint64]
Near = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.bool_]]


def group_hashes(hashes: Words, distance: int) -> NDArray[np.int64]:
    """(N, W) → (N,) of each row the first row of its group: rows whose bits differ in at most `distance` places."""
    unique, first, inverse = np.unique(hashes, axis=0, return_index=True, return_inverse=True)
    groups = Groups(len(unique))
    for one, other in _candidates(unique, distance):
        groups.join(one, other)
    return _first_rows(groups.roots(), first, inverse.ravel())


def group_vectors(vectors: NDArray[np.floating], similarity: float) -> NDArray[np.int64]:
    """(N, D) → (N,) of each row the first row of its group: rows whose cosine is at least `similarity`."""
    count, width = vectors.shape
    random = np.random.default_rng(0).standard_normal((width, 256)).astype(np.float32)
    bits = np.empty((count, 4), np.uint64)  # on which side of random planes a row lies
    norms = np.empty(count, np.float32)
    for start in range(0, count, BATCH):
        part = vectors[start : start + BATCH].astype(np.float32)
        bits[start : start + BATCH] = np.packbits(part @ random > 0, axis=1).view(np.uint64)
        norms[start : start + BATCH] = np.linalg.norm(part, axis=1)

    def near(one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.bool_]:
        products = np.einsum("nd,nd->n", vectors[one].astype(np.float32), vectors[other].astype(np.float32))
        return products >= similarity * norms[one] * norms[other]

    # Planes part two rows by their angle: three times what is expected of it, for the exact look to decide.
    expected = 256 * np.arccos(min(similarity, 1.0)) / np.pi
    groups = Groups(count)
    for one, other in _candidates(bits, int(min(128, 3 * expected + 16))):
        for start in range(0, len(one), 4096):
            a, b = one[start : start + 4096], other[start : start + 4096]
            kept = near(a, b)
            groups.join(a[kept], b[kept])
    return _first_rows(groups.roots(), np.arange(count), np.arange(count))


def _candidates(words: Words, distance: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs of rows that differ in at most `distance` bits, some of them more than once."""
    count, width = len(words), 64 * words.shape[1]
    if count <= EXACT:
        columns = [np.ascontiguousarray(words[:, word]) for word in range(words.shape[1])]
        for offset in range(1, count):
            near = np.flatnonzero(_differences(columns, offset) <= distance)
            if len(near):
                yield near, near + offset
        return
    drawn = np.random.default_rng(0)
    bits = max(8, int(np.log2(count / ROWS_A_BUCKET)))
    columns = [np.ascontiguousarray(words[:, word]) for word in range(words.shape[1])]
    for _ in range(PASSES):
        keys = _sampled(columns, drawn.choice(width, bits, replace=False))
        order = np.argsort(keys)
        keys, ordered = keys[order], [column[order] for column in columns]
        for offset in range(1, NEIGHBORS + 1):
            together = keys[:-offset] == keys[offset:]
            pairs = int(np.count_nonzero(together))
            if not pairs:
                break
            if pairs > count // 8:  # along memory all of them are faster than those that count
                near = np.flatnonzero(together & (_differences(ordered, offset) <= distance))
            else:
                near = np.flatnonzero(together)
                near = near[_differences(ordered, offset, near) <= distance]
            if len(near):
                yield order[near], order[near + offset]


def _sampled(columns: Sequence[NDArray[np.uint64]], bit_indices: NDArray[np.int64]) -> NDArray[np.uint32]:
    """(N,) the bits of each row at these indices, as one number."""
    keys = np.zeros(len(columns[0]), np.uint32)
    for bit_index in bit_indices.tolist():
        bit = (columns[bit_index // 64] >> np.uint64(bit_index % 64)).astype(np.uint32) & np.uint32(1)
        keys = (keys << np.uint32(1)) | bit
    return keys


def _differences(
    columns: Sequence[NDArray[np.uint64]], offset: int, rows: NDArray[np.int64] | None = None
) -> NDArray[np.uint16]:
    """In how many bits a row differs from the one `offset` after it, of all rows that have one or of these."""
    total = np.zeros(len(columns[0]) - offset if rows is None else len(rows), np.uint16)
    for column in columns:
        if rows is None:
            total += np.bitwise_count(column[:-offset] ^ column[offset:])
        else:
            total += np.bitwise_count(column[rows] ^ column[rows + offset])
    return total


class Groups:
    """Which rows are connected, by union and find on whole arrays; the least row of a group is its root."""

    def __init__(self, count: int) -> None:
        self.parents = np.arange(count)

    def join(self, one: NDArray[np.int64], other: NDArray[np.int64]) -> None:
        """Connect the rows of each pair."""
        while len(one):
            a, b = self._roots_of(one), self._roots_of(other)
            apart = a != b
            one, other, a, b = one[apart], other[apart], a[apart], b[apart]
            # Only one of several pairs with one root counts at a time, so the others are tried again.
            np.minimum.at(self.parents, np.maximum(a, b), np.minimum(a, b))

    def roots(self) -> NDArray[np.int64]:
        """(N,) the root of each row."""
        return self._roots_of(np.arange(len(self.parents)))

    def _roots_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        roots = self.parents[rows]
        while not np.array_equal(above := self.parents[roots], roots):
            roots = above
        self.parents[rows] = roots
        return roots


def _first_rows(roots: NDArray[np.int64], first: NDArray[np.int64], inverse: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) the first row of each row's group.

    roots: (D,) of different rows; first: (D,) where each stands first; inverse: (N,) which of them each row is.
    """
    leaders = np.full(len(roots), np.iinfo(np.int64).max)
    np.minimum.at(leaders, roots, first)
    return leaders[roots][inverse]
