"""A seeded generator whose numbers stay the same on any machine and with any version of a library.

Only the raw words of a bit generator are used: numpy promises that those never change, which it does not promise of
its distributions and shuffles.
"""

from __future__ import annotations

import hashlib
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

_NORMAL = NormalDist()


class SeededGenerator:
    """Random numbers seeded by any values, as SeededGenerator(seed, "views", 17)."""

    def __init__(self, *seed: int | str) -> None:
        digest = hashlib.blake2b(repr(seed).encode(), digest_size=16).digest()
        self._bits = np.random.PCG64(int.from_bytes(digest, "little"))

    def word(self) -> int:
        """An integer in 0 … 2⁶³ − 1, fit to seed another generator."""
        return int(self._bits.random_raw()) >> 1

    def uniform(self) -> float:
        """A number in (0, 1), never 0 or 1."""
        return (float(int(self._bits.random_raw()) >> 12) + 0.5) / 2**52

    def uniforms(self, count: int) -> NDArray[np.float64]:
        """(count,) numbers in (0, 1), as `uniform` draws them."""
        return as_uniforms(self._bits.random_raw(count))

    def normal(self) -> float:
        """A number of the standard normal distribution."""
        return _NORMAL.inv_cdf(self.uniform())

    def integer(self, least: int, most: int) -> int:
        """An integer in least … most, both included."""
        return least + int(self.uniform() * (most - least + 1))

    def permutation(self, count: int) -> NDArray[np.int64]:
        """0 … count − 1 in random order."""
        return np.argsort(self._bits.random_raw(count), kind="stable")


def indexed_words(seed: tuple[int | str, ...], first: int, count: int, each: int) -> NDArray[np.uint64]:
    """(count, each) random words of the things numbered from `first` on, `each` a multiple of 4.

    The generator counts instead of keeping a state, so that the words of a thing do not depend on who asks for them
    together with which others.
    """
    digest = hashlib.blake2b(repr(seed).encode(), digest_size=16).digest()
    # Its counter advances once for four words.
    bits = np.random.Philox(key=int.from_bytes(digest, "little"), counter=first * each // 4)
    return bits.random_raw(count * each).reshape(count, each)


def as_uniforms(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Numbers in (0, 1), never 0 or 1, of random words."""
    return ((words >> np.uint64(12)).astype(np.float64) + 0.5) / 2**52
