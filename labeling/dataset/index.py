"""GROUP/index-*.parquet: a cache of the footers of a group's shards, in parts. Deleting any of them is harmless.

With it, the status of a group costs one listing, the parts, and the footers that changed, however many shards there
are. An entry counts when size and tag are those of the listing, so parts may be old, overlap, and have any name. A part
of many shards holds a block of them, cut to the range that a job holds; a writer keeps one of its own while it works.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq

from labeling.dataset.footers import COLUMN, SCHEMA, FooterTable
from labeling.dataset.lease import Range, live_ranges
from labeling.dataset.parallel import in_parallel
from labeling.dataset.shards import SUFFIX, Footer, read_footer
from labeling.dataset.storage import Entry, Store
from model.inputs import InputError

INDEX = "index"  # how the names of parts begin
BLOCK = 4096  # shards in a part: about a megabyte
BATCH = 2048  # footers that are read before they become columns
LOG_SHARDS, LOG_SECONDS = 1024, 30.0  # of a writer's own part: most shards, and between two versions
_BLOCK_NAME = re.compile(r"index-(\d{6,})-(\d{6,})\.parquet")


def read_footers(
    store: Store,
    groups: Sequence[str],
    shards: Sequence[str],
    save: bool = False,
    known: Mapping[str, FooterTable] | None = None,
) -> dict[str, FooterTable]:
    """Footers of those of the shards that are there, by group: all groups at once, many requests at a time.

    save: keep the footers in the indexes, where one may write there; shards are then all of the dataset's.
    known: footers read before, which are taken instead of the index where the file is the same.
    """

    def look(group: str) -> tuple[FooterTable, list[str], bool]:
        return _look(store, group, shards, (known or {}).get(group))

    looks = dict(zip(groups, in_parallel(look, groups, len(groups)), strict=True))
    missing = ((group, shard) for group, (_, names, _) in looks.items() for shard in names)
    read: dict[str, list[FooterTable]] = {group: [] for group in groups}
    for group, table in _read_missing(store, missing):
        read[group].append(table)
    footers = {}
    for group, (table, names, _) in looks.items():
        footers[group] = _in_order([table, *read[group]], shards) if names else table
    if save:
        changed = [group for group, (_, names, is_whole) in looks.items() if names or not is_whole]
        for _ in in_parallel(lambda group: save_index(store, group, footers[group], shards), changed, len(changed)):
            pass
    return footers


def refreshed_footers(
    store: Store, footers: Mapping[str, FooterTable], pairs: Iterable[tuple[str, str]]
) -> dict[str, FooterTable]:
    """The footers, those of some (group, shard) read anew: a request for each, and no listing."""
    pairs = list(pairs)
    read: dict[str, list[FooterTable]] = {}
    for group, table in _read_missing(store, pairs):
        read.setdefault(group, []).append(table)
    gone: dict[str, list[str]] = {}
    for group, shard in pairs:
        gone.setdefault(group, []).append(shard)
    now = dict(footers)
    for group, shards in gone.items():
        left = footers[group].without(shards) if group in footers else FooterTable.concatenated([])
        both = FooterTable.concatenated([left, *read.get(group, ())])
        now[group] = both.only(sorted(both))
    return now


def save_index(
    store: Store, group: str, footers: FooterTable, shards: Sequence[str], held: Range | None = None
) -> None:
    """Keep footers in the index of a group, and drop what it is kept in otherwise; without effect where one may not.

    shards: all of the dataset's. held: the range that the caller works on, all by default. What other jobs hold is left
    alone.
    """
    with suppress(InputError, OSError):  # the index is only a cache, and not everyone who reads may write
        _save_index(store, group, footers, shards, held)


class IndexLog:
    """The footers that a writer makes, in parts of the index of its own: others read them while it goes on.

    What it had not written when it is lost is read from the shards. `save_index` takes over its parts.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._footers: dict[str, dict[str, Footer]] = {}
        self._names: dict[str, str] = {}
        self._written = time.monotonic()

    def add(self, group: str, shard: str, footer: Footer) -> None:
        """Take a footer of a shard that is written."""
        footers = self._footers.setdefault(group, {})
        footers[shard] = footer
        if len(footers) >= LOG_SHARDS:
            self._write(group)
            del self._footers[group], self._names[group]
        elif time.monotonic() - self._written > LOG_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what was not yet."""
        for group in self._footers:
            self._write(group)
        self._written = time.monotonic()

    def _write(self, group: str) -> None:
        name = self._names.setdefault(group, f"{group}/{INDEX}-new-{secrets.token_hex(6)}{SUFFIX}")
        with suppress(InputError, OSError):
            _write_part(self.store, name, FooterTable.of(self._footers[group]))


def _look(
    store: Store, group: str, shards: Sequence[str], known: FooterTable | None
) -> tuple[FooterTable, list[str], bool]:
    """The footers that index or `known` hold, the shards that they lack, and whether the index needs no change."""
    listing = store.files(group)
    parts = [name for name in listing if _is_part(name)]
    tables = [known] if known is not None else _load_parts(store, group, parts).values()
    entries = {shard: entry for shard in shards if (entry := listing.get(f"{shard}{SUFFIX}"))}
    del listing
    every = FooterTable.concatenated(list(tables))
    valid: dict[str, int] = {}
    rows = (every.table[field].to_pylist() for field in ("name", "size", "tag"))
    for position, (name, size, tag) in enumerate(zip(*rows, strict=True)):
        entry = entries.get(name)
        if entry is not None and entry.size == size and entry.tag == tag:
            valid[name] = position
    positions = [valid[shard] for shard in entries if shard in valid]
    missing = [shard for shard in entries if shard not in valid]
    is_whole = len(positions) == len(every) and all(_block_of(name) for name in parts)
    if positions == list(range(len(every))):
        return every, missing, is_whole
    return every.take(positions), missing, is_whole


def _read_missing(store: Store, missing: Iterable[tuple[str, str]]) -> Iterator[tuple[str, FooterTable]]:
    """Tables of the footers of (group, shard), some thousands at a time; a shard that is gone is left out."""

    def read(pair: tuple[str, str]) -> Footer | None:
        try:
            return read_footer(store, *pair)
        except FileNotFoundError:  # deleted since it was listed
            return None

    pairs = iter(missing)
    while batch := list(islice(pairs, BATCH)):
        by_group: dict[str, dict[str, Footer]] = {}
        for (group, shard), footer in zip(batch, in_parallel(read, batch, store.parallel), strict=True):
            if footer:
                by_group.setdefault(group, {})[shard] = footer
        for group, footers in by_group.items():
            yield group, FooterTable.of(footers)


def _in_order(tables: Sequence[FooterTable], shards: Sequence[str]) -> FooterTable:
    return FooterTable.concatenated(tables).only(shards)


def _is_part(name: str) -> bool:
    """Whether a file of a group is a part of its index."""
    return name.startswith(INDEX) and name.endswith(SUFFIX)


def _block_of(name: str) -> Range | None:
    """The shards of the part with this name, where that is a whole block."""
    match = _BLOCK_NAME.fullmatch(name)
    block = (int(match[1]), int(match[2])) if match else None
    return block if block and block[0] % BLOCK == 0 and block[1] == block[0] + BLOCK else None


def _load_parts(store: Store, group: str, names: Sequence[str]) -> dict[str, FooterTable]:
    loaded = in_parallel(lambda name: _load(store, f"{group}/{name}"), names, min(store.parallel, len(names)))
    return dict(zip(names, loaded, strict=True))


def _load(store: Store, name: str) -> FooterTable:
    """A part of the index; an empty one where it cannot be read."""
    try:
        table = pq.read_table(pa.BufferReader(store.read(name)))
        if "footer" in table.column_names:
            return _from_json(table)
        digests = [name for name in table.column_names if name.startswith(COLUMN)]
        schema = pa.schema([*SCHEMA, *(pa.field(name, pa.binary()) for name in digests)])
        return FooterTable(table.select(schema.names).cast(schema))
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        return FooterTable.concatenated([])  # an unreadable cache is made anew


def _from_json(table: pa.Table) -> FooterTable:
    """An index as it was before it had columns: index.parquet with a text in JSON for each footer."""
    return FooterTable.of(
        {
            row["name"]: Footer(**json.loads(row["footer"]), entry=Entry(row["size"], row["tag"]))
            for row in table.to_pylist()
        }
    )


def _save_index(store: Store, group: str, footers: FooterTable, shards: Sequence[str], held: Range | None) -> None:
    held = held or (0, len(shards))
    taken = live_ranges(store, group)
    ranges = [
        (max(start, held[0]), start + BLOCK if held[1] >= len(shards) else min(start + BLOCK, held[1]))
        for start in range(held[0] - held[0] % BLOCK, held[1], BLOCK)
    ]
    ranges = [(first, end) for first, end in ranges if not any(a < end and first < b for a, b in taken)]
    if not ranges:
        return
    parts = _load_parts(store, group, [name for name in store.files(group, INDEX) if _is_part(name)])
    for first, end in ranges:
        block = footers.only(shards[first:end])
        name = f"{INDEX}-{first:06d}-{end:06d}{SUFFIX}"
        before = parts.pop(name, None)
        if before is None or not before.table.equals(block.table):
            _write_part(store, f"{group}/{name}", block)
    positions = {shard: position for position, shard in enumerate(shards)}
    is_all = not taken and held[0] <= 0 and held[1] >= len(shards)
    for name, part in parts.items():
        if all(_is_inside(positions.get(shard), ranges, is_all) for shard in part.names()):
            store.delete(f"{group}/{name}")


def _is_inside(position: int | None, ranges: Sequence[Range], is_all: bool) -> bool:
    return is_all if position is None else any(first <= position < end for first, end in ranges)


def _write_part(store: Store, name: str, footers: FooterTable) -> None:
    path = store.scratch(name)
    pq.write_table(footers.table, path, compression="zstd", write_statistics=False)
    store.put_file(name, path)
