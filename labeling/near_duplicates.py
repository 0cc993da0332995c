"""Which of many rows are nearly the same: groups of bits that differ in few places, or of vectors in almost one
direction.

Up to `EXACT` rows every pair is compared. Among more, rows are compared that agree in all of some bits, drawn anew for
each of many passes (Indyk and Motwani 1998, sampled bits): the time grows with n log n. Groups are what is connected by
pairs.

Memory does not grow with the rows: they lie in files without a name, which a pass divides by its bits into parts of at
most `PART_ROWS`. A record is the number of a row, ascending, and W words of 64 bits. N rows or records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labeling.scratch import ScratchRows, scratch_array

EXACT = 4096
PASSES = 128  # pairs that differ in 22 % of their bits, of which 17 are drawn for 10⁶ rows, are found by 85 in 100
ROWS_A_BUCKET = 4  # that agree by chance in the bits of a pass
NEIGHBORS = 64  # compared with each row of a pass: many rows that agree in many bits cost no more
PART_ROWS = 1 << 21  # held at once: of hashes 84 MB, and as much again while they are compared
BATCH = 1 << 18
VECTOR_BYTES = 64 << 20  # of vectors that are looked at together
BITS_OF_VECTORS = 256

Words = NDArray[np.uint64]
Rows = NDArray[np.int64]


class Groups:
    """Which rows are connected, by union and find on whole arrays; the least row of a group is its root."""

    def __init__(self, rows: int) -> None:
        self._parents = scratch_array(rows, np.int64)
        for start in range(0, rows, BATCH):
            self._parents[start : start + BATCH] = np.arange(start, min(rows, start + BATCH))

    def join(self, one: Rows, other: Rows) -> None:
        """Connect the rows of each pair."""
        while len(one):
            a, b = self.first_rows(one), self.first_rows(other)
            apart = a != b
            one, other, a, b = one[apart], other[apart], a[apart], b[apart]
            # Only one of several pairs with one root counts at a time, so the others are tried again.
            np.minimum.at(self._parents, np.maximum(a, b), np.minimum(a, b))

    def first_rows(self, rows: Rows) -> Rows:
        """(N,) the first row of each row's group."""
        roots = self._parents[rows]
        while not np.array_equal(above := self._parents[roots], roots):
            roots = above
        self._parents[rows] = roots
        return roots

    def roots(self) -> Rows:
        """(rows,) the first row of each row's group, of rows that are few enough to hold."""
        return self.first_rows(np.arange(len(self._parents)))


def records_of(rows: Rows, words: Words) -> Words:
    """(N,), (N, W) → (N, 1 + W) records."""
    return np.concatenate([rows.astype(np.uint64)[:, None], words], axis=1)


def group_hashes(hashes: ScratchRows, rows: int, distance: int) -> Groups:
    """Groups of rows whose bits differ in at most `distance` places.

    hashes: records of some of the rows; the others are alone.
    """
    groups, unique = Groups(rows), ScratchRows(np.uint64, hashes.width)
    for records in _parts(hashes, _mixed):
        first, inverse = np.unique(records[:, 1:], axis=0, return_index=True, return_inverse=True)[1:]
        groups.join(_numbers(records[first[inverse.ravel()]]), _numbers(records))
        unique.append(records[np.sort(first)])
    for one, other in _candidates(unique, distance):
        groups.join(one, other)
    return groups


def group_words(words: Words, distance: int) -> Rows:
    """(N, W) → (N,) of each row the first row of its group, of rows that are few enough to hold."""
    records = ScratchRows(np.uint64, 1 + words.shape[1])
    records.append(records_of(np.arange(len(words)), words))
    return group_hashes(records, len(words), distance).roots()


def group_vectors(vectors: ScratchRows, similarity: float) -> Groups:
    """Groups of rows whose cosine is at least `similarity`. vectors: of all rows; those of zeros are alone."""
    planes = np.random.default_rng(0).standard_normal((vectors.width, BITS_OF_VECTORS)).astype(np.float32)
    bits = ScratchRows(np.uint64, 1 + BITS_OF_VECTORS // 64)  # on which side of random planes a row lies
    rows = 0
    norms = scratch_array(len(vectors), np.float32)
    for block in vectors.blocks(max(1, VECTOR_BYTES // (4 * vectors.width))):
        part = block.astype(np.float32)
        norms[rows : rows + len(part)] = norm = np.linalg.norm(part, axis=1)
        there = np.flatnonzero(norm)
        sides = np.packbits(part[there] @ planes > 0, axis=1).view(np.uint64)
        bits.append(records_of(rows + there, sides))
        rows += len(part)
    mapped = vectors.mapped()

    def are_near(one: Rows, other: Rows) -> NDArray[np.bool_]:
        products = np.einsum("nd,nd->n", mapped[one].astype(np.float32), mapped[other].astype(np.float32))
        return np.asarray(products >= similarity * norms[one] * norms[other])

    # Planes part two rows by their angle: three times what is expected of it, for the exact look to decide.
    expected = BITS_OF_VECTORS * np.arccos(min(similarity, 1.0)) / np.pi
    groups = Groups(rows)
    for one, other in _candidates(bits, int(min(BITS_OF_VECTORS // 2, 3 * expected + 16))):
        for start in range(0, len(one), 4096):
            a, b = one[start : start + 4096], other[start : start + 4096]
            near = are_near(a, b)
            groups.join(a[near], b[near])
    return groups


def _candidates(records: ScratchRows, distance: int) -> Iterator[tuple[Rows, Rows]]:
    """Pairs of rows that differ in at most `distance` bits, some of them more than once."""
    count, width = len(records), 64 * (records.width - 1)
    if count <= EXACT:
        for all_records in records.blocks(EXACT):
            rows, columns = _numbers(all_records), _columns(all_records)
            for offset in range(1, count):
                near = np.flatnonzero(_differences(columns, offset) <= distance)
                if len(near):
                    yield rows[near], rows[near + offset]
        return
    drawn = np.random.default_rng(0)
    bits = max(8, int(np.log2(count / ROWS_A_BUCKET)))
    for _ in range(PASSES):
        indices = drawn.choice(width, bits, replace=False)
        for part in _parts(records, partial(_sampled_of, bit_indices=indices)):
            yield from _neighbors(part, indices, distance)


def _neighbors(records: Words, indices: Rows, distance: int) -> Iterator[tuple[Rows, Rows]]:
    """Pairs of rows that agree in the bits at these indices, and differ in at most `distance` of all."""
    columns = _columns(records)
    # Sorted together with their indices, equal keys are in the order of their rows on every machine.
    sampled, places = _sampled(columns, indices).astype(np.uint64), np.arange(len(records), dtype=np.uint64)
    keyed = np.sort(sampled << np.uint64(32) | places)
    order, keys = (keyed & np.uint64(0xFFFFFFFF)).astype(np.int64), keyed >> np.uint64(32)
    rows, ordered = _numbers(records)[order], [column[order] for column in columns]
    for offset in range(1, NEIGHBORS + 1):
        together = keys[:-offset] == keys[offset:]
        pairs = int(np.count_nonzero(together))
        if not pairs:
            break
        if pairs > len(records) // 8:  # along memory all of them are faster than those that count
            near = np.flatnonzero(together & (_differences(ordered, offset) <= distance))
        else:
            near = np.flatnonzero(together)
            near = near[_differences(ordered, offset, near) <= distance]
        if len(near):
            yield rows[near], rows[near + offset]


def _parts(records: ScratchRows, number_of: Callable[[Words], NDArray[Any]]) -> Iterator[Words]:
    """The records in parts of at most `PART_ROWS`, those with equal numbers together.

    More of them with one number than a part holds are divided in their order: rows that are all alike are found among
    the neighbors that they have there, and hang together by those.
    """
    if len(records) <= PART_ROWS:
        yield from records.blocks(PART_ROWS)
        return
    count = 1 << int(np.ceil(np.log2(len(records) / PART_ROWS)) + 1)  # half full, as numbers are not even
    files = [ScratchRows(np.uint64, records.width) for _ in range(count)]
    for block in records.blocks(BATCH):
        parts = (number_of(block) % count).astype(np.int64)
        order = np.argsort(parts, kind="stable")
        ends = np.cumsum(np.bincount(parts, minlength=count))
        for file, rows in zip(files, np.split(block[order], ends[:-1]), strict=True):
            file.append(rows)
    while files:
        yield from files.pop().blocks(PART_ROWS)  # and its disk is free again


def _mixed(records: Words) -> Words:
    """(N,) a number for equal words, even over different ones."""
    mixed = np.zeros(len(records), np.uint64)
    for column in _columns(records):
        mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return mixed


def _numbers(records: Words) -> Rows:
    return records[:, 0].astype(np.int64)


def _columns(records: Words) -> list[Words]:
    """The words, each (N,) along memory."""
    return [np.ascontiguousarray(records[:, word]) for word in range(1, records.shape[1])]


def _sampled_of(records: Words, bit_indices: Rows) -> NDArray[np.uint32]:
    return _sampled(_columns(records), bit_indices)


def _sampled(columns: Sequence[Words], bit_indices: Rows) -> NDArray[np.uint32]:
    """(N,) the bits of each row at these indices, as one number."""
    keys = np.zeros(len(columns[0]), np.uint32)
    for bit_index in bit_indices.tolist():
        bit = (columns[bit_index // 64] >> np.uint64(bit_index % 64)).astype(np.uint32) & np.uint32(1)
        keys = (keys << np.uint32(1)) | bit
    return keys


def _differences(columns: Sequence[Words], offset: int, rows: Rows | None = None) -> NDArray[np.uint16]:
    """In how many bits a row differs from the one `offset` after it, of all rows that have one or of these."""
    total = np.zeros(len(columns[0]) - offset if rows is None else len(rows), np.uint16)
    for column in columns:
        if rows is None:
            total += np.bitwise_count(column[:-offset] ^ column[offset:])
        else:
            total += np.bitwise_count(column[rows] ^ column[rows + offset])
    return total
