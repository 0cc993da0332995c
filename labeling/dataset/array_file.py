"""Reading single latents, embeddings and pictures of shards: their bytes alone, neighbors together, many at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from labeling.dataset.checksums import (
    PIECE_BYTES,
    array_checksum,
    changed_shard,
    damaged_shard,
    gone_shard,
    is_checksum,
    read_checksums,
)
from labeling.dataset.places import LENGTH_BYTES, EntryPlaces, LatentPlaces, PicturePlaces, read_places
from labeling.dataset.shards import footer_of, read_metadata, row_groups_of, shard_file
from labeling.dataset.storage import Store
from model.inputs import InputError

MOST_BYTES = 8 << 20  # of one read
_OPEN_BYTES = 16 << 10  # of memory that an open shard takes beside its places


class ArrayFile:
    """One shard of latents, text or pictures, opened to read single arrays of it.

    content: as its footer says; row_starts: rows before each row group; latents, entries, pictures: where its arrays
    are, all None where the file does not say so and row groups have to be read; has_checksums: whether its arrays have
    some. Raises FileNotFoundError, InputError for a file that this project did not write.
    """

    def __init__(self, store: Store, group: str, shard: str) -> None:
        name = shard_file(group, shard)
        self.address = f"{store.uri}/{name}"
        self._opened = store, group, shard
        self._now: ArrayFile | None = None
        self._ranges = store.ranges(name)
        metadata, entry = read_metadata(store, group, shard, opened=self._ranges)
        self.content = footer_of(metadata, entry, self.address).content
        places = read_places(metadata, self.address)
        self.latents = places if isinstance(places, LatentPlaces) else None
        self.entries = places if isinstance(places, EntryPlaces) else None
        self.pictures = places if isinstance(places, PicturePlaces) else None
        self._places = places
        self._starts = places.starts if places else np.zeros(0, np.int64)
        self.gap = store.gap
        _, self._checksums = read_checksums(metadata)
        self.has_checksums = self._checksums is not None
        self.row_groups = row_groups_of(metadata)
        self.row_starts = np.concatenate([[0], np.cumsum(self.row_groups)]).tolist()
        arrays = [self._checksums, *vars(places).values()] if places else []
        self.nbytes = _OPEN_BYTES + sum(values.nbytes for values in arrays if isinstance(values, np.ndarray))
        if self.entries:
            self.nbytes += 4 * len(self.entries.firsts) * len(self.entries.tasks)  # which tasks' entries are where

    def want(
        self,
        value: int,
        target: NDArray[np.float16] | NDArray[np.uint8],
        page: tuple[int, int] | None = None,
    ) -> Want:
        """The array of that number, as its places number them, to be read into `target`; page: see `Want`."""
        return Want(self, value, int(self._starts[value]), target, page)

    def read(self, wants: Sequence[Want]) -> None:
        """Fill what is wanted, sorted by their places and close to each other, by one read.

        What cannot be read is read once more from the file that has the name now: a server may have cut its answer, and
        the same content may be stored anew. Raises InputError where the file does not hold what its footer says, is
        gone, or has other content.
        """
        if self._now is not None:
            self._now.read(self._placed_in(self._now, wants))
            return
        try:
            self._read(wants)
        except (InputError, FileNotFoundError):
            now = self._reopened()
            if len(now._starts) != len(self._starts):
                raise
            now._read(self._placed_in(now, wants))
            self._now = now

    def _reopened(self) -> ArrayFile:
        try:
            now = ArrayFile(*self._opened)
        except FileNotFoundError:
            raise gone_shard(self.address) from None
        if now.content != self.content:
            raise changed_shard(self.address)
        return now

    def _placed_in(self, now: ArrayFile, wants: Iterable[Want]) -> list[Want]:
        return [now.want(want.value, want.target) for want in wants]

    def _read(self, wants: Sequence[Want]) -> None:
        if len(wants) == 1 and not self.gap and wants[0].target.nbytes > PIECE_BYTES:
            self._read_in_pieces(wants[0])
            return
        first = end = wants[0].start - LENGTH_BYTES
        lengths = [bytearray(LENGTH_BYTES) for _ in wants]
        parts: list[Any] = []
        for want, length in zip(wants, lengths, strict=True):
            if gap := want.start - LENGTH_BYTES - end:
                parts.append(bytearray(gap))
            parts += (length, want.target)
            end = want.start + want.target.nbytes
        if not self._ranges.read_into(first, parts, end - first):
            raise self._damaged(wants[0])
        for want, length in zip(wants, lengths, strict=True):
            self.check(want, length)

    def _read_in_pieces(self, want: Want) -> None:
        """Fill one large array from a store without delay, each piece compared while the cache still holds it."""
        length, offset = bytearray(LENGTH_BYTES), want.start - LENGTH_BYTES
        before: tuple[Any, ...] = (length,)
        checksum = 0
        for piece in pieces(want.target):
            size = len(piece) + (LENGTH_BYTES if before else 0)
            if not self._ranges.read_into(offset, (*before, piece), size):
                raise self._damaged(want)
            if self.has_checksums:
                checksum = array_checksum(piece, checksum)
            offset += size
            before = ()
        self.check(want, length, checksum)

    def read_bytes(self, first: int, end: int) -> bytes | bytearray:
        """The bytes [first, end). Raises InputError where there are fewer."""
        content = self._ranges.read(first, end - first)
        if content is None:
            raise damaged_shard(self.address, None)
        return content

    def check(self, want: Want, length: bytes | bytearray, checksum: int | None = None) -> None:
        """Raise InputError unless these bytes, which stand before an array, say its length, and the array that was read
        has its checksum.

        checksum: of the array as it was read, where it is known.
        """
        if length != want.target.nbytes.to_bytes(LENGTH_BYTES, "little"):
            raise self._damaged(want)
        if self._checksums is None:
            return
        if checksum is None:
            checksum = array_checksum(want.target.reshape(-1).view(np.uint8).data)
        if not is_checksum(checksum, int(self._checksums[want.value])):
            raise self._damaged(want)

    def page(self, row_group: int) -> tuple[int, int]:
        """[first, end) bytes of all arrays of a row group."""
        assert self._places is not None
        return int(self._places.pages[0, row_group]), int(self._places.pages[1, row_group])

    def _damaged(self, want: Want) -> InputError:
        value_index = want.value
        assert self._places is not None
        bounds = [self._places.firsts, *([self.entries.views] if self.entries else [])]
        for firsts in (*bounds, self.row_starts):
            value_index = int(np.searchsorted(firsts, value_index, side="right")) - 1
        return damaged_shard(self.address, value_index)


class Want(NamedTuple):
    """An array to read, see `ArrayFile.want`: its number, the byte that its values start at in the file, and the
    contiguous memory that they go to.

    page: [first, end) bytes that will be wanted with it sooner or later, None where the others will not.
    """

    file: ArrayFile
    value: int
    start: int
    target: NDArray[np.float16] | NDArray[np.uint8]
    page: tuple[int, int] | None = None


def pieces(target: NDArray[Any]) -> Iterator[memoryview]:
    """The bytes of a contiguous array, piece by piece."""
    content = target.reshape(-1).view(np.uint8).data
    for first in range(0, len(content), PIECE_BYTES):
        yield content[first : first + PIECE_BYTES]


def read_arrays(wants: Iterable[Want], pool: Executor | None = None) -> None:
    """Fill all that is wanted; neighbors by one read. pool: where reads of stores with delay run beside each other.

    Raises InputError for the first that cannot be read.
    """
    runs: list[list[Want]] = []
    last, end = None, 0
    for one in sorted(wants, key=lambda one: (one.file.address, one.start)):
        size = one.target.nbytes
        if (
            one.file is last
            and 0 <= one.start - LENGTH_BYTES - end <= last.gap
            and one.start + size - runs[-1][0].start <= MOST_BYTES
        ):
            runs[-1].append(one)
        else:
            runs.append([one])
        last, end = one.file, one.start + size
    if pool is None or len(runs) == 1:
        for run in runs:
            run[0].file.read(run)
        return
    for future in [pool.submit(run[0].file.read, run) for run in runs]:
        future.result()
