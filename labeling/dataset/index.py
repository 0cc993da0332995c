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
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from labeling.dataset.footer_batches import BATCH, read_batches
from labeling.dataset.footers import COLUMN, SCHEMA, FooterTable
from labeling.dataset.lease import Range, live_ranges
from labeling.dataset.parallel import in_parallel
from labeling.dataset.shards import SUFFIX, Footer
from labeling.dataset.storage import Entry, Store
from labeling.dataset.storage.errors import dispensable

INDEX = "index"  # how the names of parts begin
BLOCK = 4096  # shards in a part: about a megabyte
LOG_SHARDS, LOG_SECONDS = 1024, 30.0  # of a writer's own part: most shards, and between two versions
_FILES = pa.schema([("name", pa.string()), ("size", pa.int64()), ("tag", pa.string())])
_RANGE_NAME = re.compile(r"index-(\d{6,})-(\d{6,})\.parquet")


def read_footers(
    store: Store,
    groups: Sequence[str],
    shards: Sequence[str],
    part: Range | None = None,
    save: bool = False,
    known: Mapping[str, FooterTable] | None = None,
    deadline: float = float("inf"),
) -> tuple[dict[str, FooterTable], bool]:
    """Footers of those of the shards that are there, by group, and whether these are all: see `deadline`.

    All groups at once, many requests at a time. shards: all of the dataset's; part: those of interest, all by default.
    save: keep the footers in the indexes, where one may write there and all are read. known: footers read before, which
    are taken instead of the index where the file is the same. deadline: of time.monotonic, at which reading stops. Some
    are read in any case, so that whoever gives them as `known` the next time comes to an end.
    """
    chosen = shards if part is None else shards[slice(*part)]

    names = pa.array(chosen, pa.string())

    def look(group: str) -> tuple[FooterTable, dict[str, int], bool]:
        return _look(store, group, names, part, (known or {}).get(group))

    # A disk answers at once: nothing is gained by listing groups beside each other there.
    at_once = min(len(groups), store.parallel // 8)
    looks = dict(zip(groups, in_parallel(look, groups, at_once), strict=True))
    missing = ((group, shard, size) for group, (_, sizes, _) in looks.items() for shard, size in sizes.items())
    read: dict[str, list[FooterTable]] = {group: [] for group in groups}
    left, is_complete = sum(len(sizes) for _, sizes, _ in looks.values()), True
    with closing(read_batches(store, missing, BATCH if deadline == float("inf") else BATCH // 4)) as batches:
        for group, table in batches:
            read[group].append(table)
            left -= len(table)
            if left and time.monotonic() > deadline:
                is_complete = False
                break
    footers = {}
    for group, (table, sizes, _) in looks.items():
        footers[group] = _in_order([table, *read[group]], chosen) if sizes else table
    if save and is_complete:
        changed = [group for group, (_, sizes, is_whole) in looks.items() if sizes or not is_whole]
        for group in changed:
            save_index(store, group, footers[group], shards, part)
    pa.default_memory_pool().release_unused()
    return footers, is_complete


def refreshed_footers(
    store: Store, footers: Mapping[str, FooterTable], pairs: Iterable[tuple[str, str]]
) -> dict[str, FooterTable]:
    """The footers, those of some (group, shard) read anew: a request for each, and no listing."""
    pairs = list(pairs)
    read: dict[str, list[FooterTable]] = {}
    for group, table in read_batches(store, ((group, shard, None) for group, shard in pairs)):
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
    with dispensable():  # the index is only a cache, and not everyone who reads may write
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
        with dispensable():
            _write_part(self.store, name, FooterTable.of(self._footers[group]))


def _look(
    store: Store, group: str, shards: pa.Array, part: Range | None, known: FooterTable | None
) -> tuple[FooterTable, dict[str, int], bool]:
    """The footers that index or `known` hold, the shards that they lack with the sizes of their files, and whether
    the index needs no change.

    All of it in columns: objects for the files of a listing would take more memory than the footers.
    """
    listing, parts = _list(store, group, part)
    tables = [known] if known is not None else _load_parts(store, group, parts).values()
    every = FooterTable.concatenated(list(tables))
    row_of = pc.index_in(every.table["name"], value_set=listing["name"])  # of the file that each footer is of
    is_valid = pc.and_(
        pc.equal(listing["size"].take(row_of), every.table["size"]),
        pc.equal(listing["tag"].take(row_of), every.table["tag"]),
    )
    valid = pc.indices_nonzero(pc.fill_null(is_valid, False))
    row_in_valid = pc.index_in(shards, value_set=every.table["name"].take(valid).combine_chunks())
    positions = valid.take(row_in_valid.drop_null()).to_numpy()
    file_of = pc.index_in(shards, value_set=listing["name"])
    lacks = pc.and_(pc.is_null(row_in_valid), pc.is_valid(file_of))
    sizes = listing["size"].take(file_of.filter(lacks)).to_pylist()
    missing = dict(zip(shards.filter(lacks).to_pylist(), sizes, strict=True))
    is_whole = part is not None or (len(positions) == len(every) and all(map(_is_block, parts)))
    if np.array_equal(positions, np.arange(len(every))):
        return every, missing, is_whole
    return every.take(positions), missing, is_whole


def _list(store: Store, group: str, part: Range | None) -> tuple[pa.Table, list[str]]:
    """The shards that are there (name, size and tag of each file), and the parts of the index that may hold some."""
    parts: list[str] = []
    batches = [pa.table({"name": [], "size": [], "tag": []}, _FILES)]
    files = store.listing(group)
    while batch := list(islice(files, BATCH)):
        parts += [name for name, _ in batch if _is_part(name) and _may_hold(name, part)]
        shards = [(name.removesuffix(SUFFIX), entry) for name, entry in batch if name.endswith(SUFFIX)]
        names, sizes = [name for name, _ in shards], [entry.size for _, entry in shards]
        batches.append(pa.table([names, sizes, [entry.tag for _, entry in shards]], schema=_FILES))
    return pa.concat_tables(batches).combine_chunks(), sorted(parts)


def _in_order(tables: Sequence[FooterTable], shards: Sequence[str]) -> FooterTable:
    return FooterTable.concatenated(tables).only(shards)


def _is_part(name: str) -> bool:
    """Whether a file of a group is a part of its index."""
    return name.startswith(INDEX) and name.endswith(SUFFIX)


def _range_of(name: str) -> Range | None:
    """The shards that a part with this name is of, None for any."""
    match = _RANGE_NAME.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else None


def _may_hold(name: str, part: Range | None) -> bool:
    """Whether a part of the index may hold some of these shards."""
    of = _range_of(name)
    return part is None or of is None or (of[0] < part[1] and part[0] < of[1])


def _is_block(name: str) -> bool:
    of = _range_of(name)
    return of is not None and of[0] % BLOCK == 0 and of[1] == of[0] + BLOCK


def _load_parts(store: Store, group: str, names: Sequence[str]) -> dict[str, FooterTable]:
    loaded = in_parallel(lambda name: _load(store, f"{group}/{name}"), names, min(store.parallel, len(names)))
    return dict(zip(names, loaded, strict=True))


def _load(store: Store, name: str) -> FooterTable:
    """A part of the index; an empty one where it cannot be read."""
    try:
        # Without threads: those of pq.read_table may free Python's bytes after the interpreter's end, which aborts.
        table = pq.ParquetFile(pa.BufferReader(store.read(name))).read(use_threads=False)
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
    live = live_ranges(store, group)
    ranges = [
        (max(start, held[0]), start + BLOCK if held[1] >= len(shards) else min(start + BLOCK, held[1]))
        for start in range(held[0] - held[0] % BLOCK, held[1], BLOCK)
    ]
    ranges = [(first, end) for first, end in ranges if not any(a < end and first < b for a, b in live)]
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
    is_all = not live and held[0] <= 0 and held[1] >= len(shards)
    for name, part in parts.items():
        if all(_is_inside(positions.get(shard), ranges, is_all) for shard in part.names()):
            store.delete(f"{group}/{name}")


def _is_inside(position: int | None, ranges: Sequence[Range], is_all: bool) -> bool:
    return is_all if position is None else any(first <= position < end for first, end in ranges)


def _write_part(store: Store, name: str, footers: FooterTable) -> None:
    path = store.scratch(name)
    try:
        pq.write_table(footers.table, path, compression="zstd", write_statistics=False)
        store.put_file(name, path)
    finally:
        store.discard(path)
