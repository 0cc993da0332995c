"""Reading single latents and embeddings of shards: exactly their bytes, neighbors together, many at a time on S3."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labeling.dataset.places import LENGTH_BYTES, EntryPlaces, LatentPlaces, read_places
from labeling.dataset.shards import footer_of, read_metadata, shard_file
from labeling.dataset.storage import Store
from model.inputs import InputError

MOST_BYTES = 8 << 20  # of one read
_LENGTH = np.dtype("<u4")


class ArrayFile:
    """One shard of latents or text, opened to read single arrays of it.

    content: as its footer says; places: where its arrays are, None where the file does not say so and row groups have
    to be read. Raises FileNotFoundError, InputError for a file that this project did not write.
    """

    def __init__(self, store: Store, group: str, shard: str) -> None:
        name = shard_file(group, shard)
        self.address = f"{store.uri}/{name}"
        # Opened before it is looked at: a file that replaces it in between has the same content, or another than the
        # one that is expected.
        self._ranges = store.ranges(name)
        metadata, entry = read_metadata(store, group, shard)
        self.content = footer_of(metadata, entry, self.address).content
        found = read_places(metadata)
        self.latents = found if isinstance(found, LatentPlaces) else None
        self.entries = found if isinstance(found, EntryPlaces) else None
        self.gap = store.gap

    def read(self, wants: Sequence[Want]) -> None:
        """Fill what is wanted, sorted by their places and close to each other, by one read.

        Raises InputError where the file does not hold what its footer says.
        """
        lengths = np.empty(len(wants), _LENGTH)
        parts: list[Any] = []
        end = wants[0].start - LENGTH_BYTES
        for number, want in enumerate(wants):
            if gap := want.start - LENGTH_BYTES - end:
                parts.append(memoryview(bytearray(gap)))
            parts += [lengths[number : number + 1].data.cast("B"), want.target]
            end = want.start + want.target.nbytes
        size = end - wants[0].start + LENGTH_BYTES
        is_whole = self._ranges.read_into(wants[0].start - LENGTH_BYTES, parts) == size
        if not is_whole or any(length != want.target.nbytes for length, want in zip(lengths, wants, strict=True)):
            raise InputError(f"{self.address}: damaged; delete it and label its group again, which makes it anew")


@dataclass(frozen=True, slots=True)
class Want:
    """An array to read: where its numbers start in the file, and the memory that they go to."""

    file: ArrayFile
    start: int
    target: memoryview


def want(file: ArrayFile, start: int, target: NDArray[np.float16]) -> Want:
    """What fills `target`, which is contiguous, with the numbers from `start` on."""
    return Want(file, int(start), target.reshape(-1).view(np.uint8).data)


def read_arrays(wants: Iterable[Want], pool: Executor | None = None) -> None:
    """Fill all that is wanted; neighbors by one read. pool: where reads of stores with delay run beside each other.

    Raises InputError for the first that cannot be read.
    """
    ordered = sorted(wants, key=lambda one: (one.file.address, one.start))
    reads: list[Callable[[], None]] = []
    for _, of_file in groupby(ordered, key=lambda one: one.file.address):
        run: list[Want] = []
        end = 0
        for one in of_file:
            size = one.start + one.target.nbytes - run[0].start if run else 0
            if run and not (0 <= one.start - LENGTH_BYTES - end <= one.file.gap and size <= MOST_BYTES):
                reads.append(_read(run))
                run = []
            run.append(one)
            end = one.start + one.target.nbytes
        reads.append(_read(run))
    if pool is None or len(reads) == 1:
        for read in reads:
            read()
        return
    for future in [pool.submit(read) for read in reads]:
        future.result()


def _read(run: Sequence[Want]) -> Callable[[], None]:
    return lambda: run[0].file.read(run)
