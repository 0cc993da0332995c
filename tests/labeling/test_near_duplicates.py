"""Groups of nearly equal bits and vectors: exact for few rows, nearly so for many, whatever the order of rows."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from labeling import near_duplicates
from labeling.near_duplicates import group_words, records_of
from labeling.scratch import ScratchRows

DISTANCE = 40


def group_vectors(vectors: np.ndarray, similarity: float) -> np.ndarray:
    kept = ScratchRows(vectors.dtype, vectors.shape[1])
    kept.append(vectors)
    return near_duplicates.group_vectors(kept, similarity).first_rows(np.arange(len(vectors)))


def hashes(count: int, copies: int, flips: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(count, 4) words, the last `copies` of which differ from earlier ones in `flips` bits; whose copy each row is."""
    random = np.random.default_rng(seed)
    bits = random.integers(0, 2, (count, 256), np.uint8)
    origins = np.arange(count)
    origins[count - copies :] = random.integers(0, count - copies, copies)
    for row in range(count - copies, count):
        bits[row] = bits[origins[row]]
        bits[row, random.choice(256, flips, replace=False)] ^= 1
    return np.packbits(bits, axis=1).view(np.uint64), origins


@pytest.mark.parametrize("flips", [0, 1, DISTANCE // 2])
def test_copies_are_grouped_and_others_are_not(flips: int) -> None:
    words, origins = hashes(1000, 300, flips)
    assert np.array_equal(group_words(words, DISTANCE), origins)


def test_more_rows_than_are_compared_in_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    words, origins = hashes(3000, 900, 24)
    exact = group_words(words, DISTANCE)
    monkeypatch.setattr(near_duplicates, "EXACT", 100)
    sampled = group_words(words, DISTANCE)
    assert np.array_equal(exact, origins)
    assert (sampled == origins).mean() > 0.999
    assert np.array_equal(sampled, group_words(words, DISTANCE)), "the same at every call"


def test_rows_that_lie_in_parts_are_grouped_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    words, _ = hashes(3000, 900, 24)
    words[::3] = words[0]  # more than a part holds
    together = group_words(words, DISTANCE)
    for name, value in (("EXACT", 100), ("PART_ROWS", 350), ("BATCH", 200), ("PASSES", 32)):
        monkeypatch.setattr(near_duplicates, name, value)
    assert (group_words(words, DISTANCE) == together).mean() > 0.999


def test_memory_does_not_grow_with_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("PART_ROWS", 8000), ("BATCH", 2000), ("PASSES", 1)):
        monkeypatch.setattr(near_duplicates, name, value)
    peaks = []
    for rows in (20_000, 80_000):
        records, random = ScratchRows(np.uint64, 5), np.random.default_rng(0)
        for start in range(0, rows, 1000):
            words = np.frombuffer(random.bytes(32 * 1000), np.uint64).reshape(-1, 4)
            records.append(records_of(np.arange(start, start + 1000), words))
        tracemalloc.start()
        groups = near_duplicates.group_hashes(records, rows, DISTANCE)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert np.array_equal(groups.first_rows(np.arange(rows)), np.arange(rows))
    assert peaks[1] < 1.5 * peaks[0]  # 32 bytes a row would be 3 times as much


def test_chain_is_one_group_and_names_its_first_row() -> None:
    start, chain = np.zeros(256, np.uint8), []
    for link in range(6):
        start[link * 30 : link * 30 + 30] = 1
        chain.append(start.copy())
    words = np.packbits(np.array(chain[::-1]), axis=1).view(np.uint64)
    assert group_words(words, 30).tolist() == [0] * 6
    assert group_words(words, 29).tolist() == list(range(6))


def test_rows_that_are_all_alike_cost_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "EXACT", 100)
    words = np.repeat(hashes(2, 0, 0)[0], 5000, axis=0)
    words[::2, 0] ^= np.arange(5000, dtype=np.uint64) % 64  # near each other, and hardly any of them equal
    groups = group_words(words, DISTANCE)
    assert set(groups.tolist()) == {0, 5000}


@pytest.mark.parametrize("exact", [10_000, 100])
def test_vectors_are_grouped_by_their_cosine(exact: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "EXACT", exact)
    random = np.random.default_rng(0)
    vectors = random.standard_normal((1500, 96)).astype(np.float16)
    origins = np.arange(1500)
    origins[1000:] = random.integers(0, 1000, 500)
    noise = random.standard_normal((500, 96)) * 0.2
    vectors[1000:] = (vectors[origins[1000:]] + noise) * 3.0
    found = group_vectors(vectors, 0.95)
    cosines = [
        float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        for a, b in zip(vectors[1000:].astype(np.float32), vectors[origins[1000:]].astype(np.float32), strict=True)
    ]
    near = np.array(cosines) >= 0.95
    assert near.mean() > 0.9
    assert (found[1000:][near] == origins[1000:][near]).mean() > 0.98
    assert np.array_equal(found[:1000], origins[:1000])
