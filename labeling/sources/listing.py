"""All that a source holds, as a table: files listed, containers looked into, what is said of each item joined to it.

Columns hold it, not Python objects: a source may have 10⁷ files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from labeling.dataset import Entry, Store
from labeling.sources.captions import SUFFIX_PATTERN, joined_form, pair
from labeling.sources.items import ITEM_SCHEMA, Container, Contents, Trouble, printable
from labeling.sources.metadata import is_metadata, joining_name, read_metadata
from model.inputs import InputError

FILE_SCHEMA = pa.schema([("name", pa.string()), ("file", pa.binary()), ("size", pa.int64()), ("tag", pa.string())])
_CHUNK = 1 << 16
_THREADS = 16

_File = tuple[str, bytes | None, int, str]  # a row of FILE_SCHEMA
ContainerOf = Callable[[str], Container | None]  # the container that a file is, None of a picture itself


@dataclass(frozen=True)
class PackedFile:
    """A file that is a container of items, as it was listed."""

    name: str
    container: Container
    entry: Entry

    @property
    def tag(self) -> str:
        """What an item's tag is made from: as long as it is the same, so are all items of the file."""
        return f"{self.entry.size}:{self.entry.tag}"

    def contents(self, store: Store) -> Contents:
        """What is in it; a file that cannot be read is a trouble."""
        try:
            return self.container.contents(store, self.name, self.entry)
        except InputError as error:
            reason = str(error).replace(f"{store.uri}/{self.name}", "", 1).lstrip(": ")
            return Contents(ITEM_SCHEMA.empty_table(), [Trouble(printable(self.name), self.entry.size, reason)])


LookInside = Callable[[Store, Sequence[PackedFile]], Iterator[Contents]]


@dataclass(frozen=True)
class Listing:
    """items: sorted by name (ITEM_SCHEMA); troubles: what can give no item; remarks: for the user, a line each.

    unchanged: files whose items are known already, which were not looked into.
    """

    items: pa.Table
    troubles: list[Trouble] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)


def look_inside(store: Store, files: Sequence[PackedFile]) -> Iterator[Contents]:
    """Contents of files in order, by threads of this process."""
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from pool.map(lambda file: file.contents(store), files)


def list_files(
    store: Store, matches: Callable[[str], bool], troubles: list[Trouble], leave_out: str = ""
) -> tuple[pa.Table, list[str]]:
    """The files of a store that match, sorted (FILE_SCHEMA), and the metadata tables beside them.

    leave_out: a folder whose files are none of the source, as the dataset that is being made.
    """
    chunks: list[pa.Table] = []
    rows: list[tuple[str, bytes | None, int, str]] = []
    tables: list[str] = []

    def trouble(name: str, reason: str) -> None:
        if matches(name) or reason.startswith("folder"):
            troubles.append(Trouble(printable(name), 0, reason))

    def flush() -> None:
        columns = zip(*rows, strict=True) if rows else ((), (), (), ())
        chunks.append(pa.table([pa.array(c, f.type) for c, f in zip(columns, FILE_SCHEMA, strict=True)], FILE_SCHEMA))
        rows.clear()

    for name, entry in store.scan(trouble=trouble):
        if leave_out and name.startswith(f"{leave_out}/"):
            continue
        if is_metadata(name):
            tables.append(name)
        elif matches(name):
            text = name if name.isascii() else printable(name)
            raw = None if text == name else name.encode("utf-8", "surrogateescape")
            rows.append((text, raw, entry.size, entry.tag))
            if len(rows) == _CHUNK:
                flush()
    flush()
    return pa.concat_tables(chunks).sort_by("name").combine_chunks(), sorted(tables)


def list_items(
    store: Store,
    files: pa.Table,
    tables: Sequence[str],
    container_of: ContainerOf,
    look: LookInside = look_inside,
    known: Mapping[str, str] | None = None,
) -> Listing:
    """The items of listed files. known: file → tag of containers whose items are known already.

    Raises InputError for a table at the top that names no files.
    """
    metadata = read_metadata(store, tables)
    plain, packed = _sort_out(files, container_of, metadata.companions)
    unchanged = [name for file in packed if known and known.get(name := printable(file.name)) == file.tag]
    left_out = set(unchanged)
    packed = [file for file in packed if printable(file.name) not in left_out]
    parts = [plain]
    troubles: list[Trouble] = []
    for file, contents in zip(packed, look(store, packed), strict=True):
        tags = pa.array([file.tag], pa.string()).take(pa.array([0] * contents.items.num_rows, pa.int64()))
        parts.append(contents.items.set_column(ITEM_SCHEMA.get_field_index("tag"), "tag", tags).cast(ITEM_SCHEMA))
        troubles += contents.troubles
    items = pa.concat_tables(parts)
    remarks = list(metadata.remarks)
    if metadata.names:
        items, unmatched = _describe(items, metadata.lookup())
        if unmatched:
            remarks.append(f"metadata: {unmatched} {'line names' if unmatched == 1 else 'lines name'} no file of these")
    return Listing(items.sort_by("name").combine_chunks(), troubles, remarks, unchanged)


def _sort_out(
    files: pa.Table, container_of: ContainerOf, companions: Collection[str]
) -> tuple[pa.Table, list[PackedFile]]:
    """The files that are items themselves (ITEM_SCHEMA), and the containers.

    What says something of a picture, or belongs to another one's row (companions), is no item.
    """
    packed: list[PackedFile] = []
    chunks = [ITEM_SCHEMA.empty_table()]
    columns: tuple[list[Any], ...] = ([], [], [], [], [])
    names = ("name", "size", "tag", "file", "beside")

    def flush() -> None:
        arrays = dict(zip(names, columns, strict=True))
        empty = [None] * len(columns[0])
        chunks.append(pa.table([pa.array(arrays.get(f.name, empty), f.type) for f in ITEM_SCHEMA], ITEM_SCHEMA))
        for column in columns:
            column.clear()

    for block in _blocks(files):
        pairs, used = pair([row[0] for row in block]) if len(block) > 1 else ({}, set())
        for index, (name, file, size, tag) in enumerate(block):
            container = container_of(name)
            if container is not None:
                packed.append(PackedFile(_raw(name, file), container, Entry(size, tag)))
            elif index not in used and not (companions and joining_name(name) in companions):
                beside = [block[one] for one in pairs.get(index, ())]
                versions = [f"{one[2]}:{one[3]}" for one in beside]
                named = json.dumps([_raw(one[0], one[1]) for one in beside]) if beside else None
                for column, value in zip(columns, (name, size, _with(tag, *versions), file, named), strict=True):
                    column.append(value)
        if len(columns[0]) >= _CHUNK:
            flush()
    flush()
    return pa.concat_tables(chunks), packed


def _blocks(files: pa.Table) -> Iterator[list[_File]]:
    """The files in blocks of those whose names begin alike up to a dot, whatever their Unicode form and case.

    They lie side by side in a sorted listing; where one may hold captions it is sorted by what such names have in
    common.
    """
    names = files["name"]
    if pc.any(pc.match_substring_regex(names, SUFFIX_PATTERN)).as_py() and not _is_plain(names):
        forms = pa.chunked_array([[joined_form(name) for name in names.to_pylist()]], pa.string())
        order = [("form", "ascending"), ("name", "ascending")]
        files = files.take(pc.sort_indices(pa.table({"form": forms, "name": names}), order))

    def rows() -> Iterator[_File]:
        for batch in files.to_batches(_CHUNK):
            yield from zip(*(batch[name].to_pylist() for name in FILE_SCHEMA.names), strict=True)

    def stem(row: _File) -> str:
        folder, slash, name = joined_form(row[0]).rpartition("/")
        return folder + slash + name.partition(".")[0]

    for _, block in groupby(rows(), stem):
        yield list(block)


def _is_plain(names: pa.ChunkedArray) -> bool:
    """Whether names are in the form that they have in common with others already."""
    is_ascii = pc.all(pc.string_is_ascii(names)).as_py()
    return bool(is_ascii and not pc.any(pc.match_substring_regex(names, "[A-Z]")).as_py())


def _describe(items: pa.Table, lookup: pa.Table) -> tuple[pa.Table, int]:
    """The items with what tables say of them, and how many lines name none of them."""
    keys = items["name"]
    if not pc.all(pc.string_is_ascii(keys)).as_py() or pc.any(pc.match_substring(keys, "\\")).as_py():
        keys = pa.chunked_array([[joining_name(name) for name in keys.to_pylist()]], pa.string())
    matches = pc.index_in(keys, value_set=lookup["name"])
    described = lookup["described"].take(matches)
    tags = [
        tag if facts is None else _with(tag, facts)
        for tag, facts in zip(items["tag"].to_pylist(), described.to_pylist(), strict=True)
    ]
    position = ITEM_SCHEMA.get_field_index
    items = items.set_column(position("described"), "described", described.cast(pa.string()))
    items = items.set_column(position("tag"), "tag", pa.array(tags, pa.string()))
    matched = pc.count_distinct(keys.filter(pc.is_valid(matches))).as_py()
    return items, pc.count_distinct(lookup["name"]).as_py() - matched


def _with(tag: str | None, *parts: str) -> str:
    """A tag that changes when what is said beside the item does."""
    if not parts:
        return tag or ""
    digest = hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=8)
    return f"{tag}+{digest.hexdigest()}"


def _raw(name: str, file: bytes | None) -> str:
    return name if file is None else file.decode("utf-8", "surrogateescape")
