"""Parts of shards, the rows of the Ray Data job: references to row groups, and what their writer needs to know."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from labeling.dataset import ID_COLUMN, IMAGES, Footers, FooterTable, groups_of
from labeling.dataset.footers import COLUMN, unpacked
from labeling.plan import Wave
from model.inputs import InputError

PART_ROWS = 128  # most rows of a part: a second of work where labels are fast, and little to do again where not
BLOCKS_A_PROCESS = 8  # least blocks for each process, so that all of them end together
MAX_ROW_GROUPS = 8  # of a part: large pictures have few rows in a row group, and a process holds all of a part's
MAX_BLOCKS = 4096  # which the driver keeps at hand


@dataclass(frozen=True)
class Part:
    """Some row groups of a shard, for one process to label.

    first, end: the row groups, [first, end); row_groups: rows of every row group of the shard; groups: the groups to
    label, each after those that it reads; digests: "group.column" → digest, of the stored columns that are read, and of
    `error` in their groups;
    only_errors: whether only rows in error are labeled again.
    """

    shard: str
    first: int
    end: int
    row_groups: Sequence[int]
    groups: Sequence[str]
    digests: Mapping[str, str]
    only_errors: bool = False

    @property
    def rows(self) -> int:
        """How many rows the part has."""
        return sum(self.row_groups[self.first : self.end])


def pack(parts: Sequence[Part]) -> bytes:
    """Parts as they travel in a row of Ray Data; what those of a shard have in common takes room once."""
    return zlib.compress(json.dumps([asdict(part) for part in parts]).encode())


def unpack(data: bytes) -> list[Part]:
    """Back from `pack`."""
    return [Part(**values) for values in json.loads(zlib.decompress(data))]


def count_rows(wave: Wave, footers: Footers) -> dict[str, int]:
    """Rows to label of each group in a wave."""
    images = FooterTable.of(footers[IMAGES])
    rows = {}
    for group in wave.groups:
        shards = [shard for shard, groups in wave.work.items() if group in groups]
        rows[group] = images.total("rows", images.positions(shards))
    return rows


def cut_parts(
    wave: Wave, declarations: Mapping[str, Mapping[str, Any]], footers: Footers, part_rows: int, only_errors: bool
) -> Iterator[Part]:
    """The parts of a wave in order; of shards without rows there are none.

    part_rows: most rows of a part that has several row groups. Raises InputError where a column read is not there.
    """
    shards = list(wave.work)
    reads = {ID_COLUMN, *(column for group in wave.groups for column in declarations[group]["reads"])}
    errors = [f"{group}.error" for group in groups_of(sorted(reads))]
    digests_by_column = {column: _digests(column, shards, footers) for column in [*sorted(reads), *errors]}
    images = FooterTable.of(footers[IMAGES])
    for index, (shard, groups) in enumerate(wave.work.items()):
        digests = {}
        for column in [ID_COLUMN, *(column for group in groups for column in declarations[group]["reads"])]:
            if column.partition(".")[0] in groups:  # it is made in this wave
                continue
            digest = digests_by_column[column][index]
            if digest is None:
                raise InputError(f"{', '.join(groups)}: there is no column {column} in shard {shard}")
            digests[column] = unpacked(digest)
        for column in errors:
            if (digest := digests_by_column[column][index]) and column.partition(".")[0] in groups_of(list(digests)):
                digests[column] = unpacked(digest)
        sizes = images.row_groups(shard)
        first = 0
        while first < len(sizes):
            end = first + 1
            while end < min(len(sizes), first + MAX_ROW_GROUPS) and sum(sizes[first : end + 1]) <= part_rows:
                end += 1
            yield Part(shard, first, end, sizes, groups, digests, only_errors)
            first = end


def _digests(column: str, shards: Sequence[str], footers: Footers) -> list[bytes | None]:
    """The digest of a column in each shard, None where there is none."""
    group, _, name = column.partition(".")
    table = FooterTable.of(footers.get(group, {}))
    return table.kept(COLUMN + name, table.positions(shards))


def blocks_of_parts(parts: Iterator[Part], rows: int, processes: int) -> Iterator[list[Part]]:
    """Parts in blocks, each of which is a task of one process: equal ones, and smaller ones at the end.

    rows: of all parts.
    """
    most = max(-(-rows // MAX_BLOCKS), min(PART_ROWS, -(-rows // (processes * BLOCKS_A_PROCESS))))
    block: list[Part] = []
    size, left = 0, rows
    for part in parts:
        block.append(part)
        size += part.rows
        # What is left shrinks to what every process can end on.
        if size >= min(most, max(PART_ROWS, left // (2 * processes))):
            yield block
            left -= size
            block, size = [], 0
    if block:
        yield block
