"""A collection of raw images, opened by its address: a folder, a pattern, archives or tables, on disk or S3."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from labeling.dataset import Store, open_store
from labeling.sources import tar
from labeling.sources.facts import USUAL, Naming
from labeling.sources.folder import ImageFiles
from labeling.sources.items import Container, Item, Reading, Trouble, items_of
from labeling.sources.listing import FILE_SCHEMA, Listing, LookInside, list_files, list_items, look_inside
from labeling.sources.metadata import FILE_NAME, read_metadata
from labeling.sources.parquet import ParquetTable
from labeling.sources.patterns import matcher, split_address
from labeling.sources.tar import TarArchive
from model.inputs import InputError


class Source:
    """A collection opened for listing and reading. It may be sent to other processes."""

    def __init__(self, uri: str, naming: Naming = USUAL) -> None:
        """Raises InputError for an address that is neither local nor S3."""
        self.uri = uri.rstrip("/") or "/"
        self.naming = naming
        self.parts = split_address(uri)
        self.store: Store = open_store(self.parts.folder)

    @property
    def address(self) -> str:
        """The address by which a dataset remembers this source: of a local one the absolute path."""
        return self.uri if self.uri.startswith("s3://") else open_store(self.uri).uri

    def container_of(self, name: str) -> Container | None:
        """The container that a file of this source is, None of a picture itself."""
        lowered = name.lower()
        if lowered.endswith(tar.SUFFIXES):
            return TarArchive()
        if lowered.endswith(".parquet"):
            return ParquetTable(self.naming)
        return None

    def files(self, troubles: list[Trouble] | None = None, leave_out: str = "") -> tuple[pa.Table, list[str]]:
        """The files that the address names, sorted (FILE_SCHEMA), and metadata tables beside them; none is opened."""
        troubles = [] if troubles is None else troubles
        if self.parts.file:
            # A single file is not worth walking through all that lies beside it.
            entry = self.store.entry(self.parts.file)
            rows = [{"name": self.parts.file, "size": entry.size, "tag": entry.tag}] if entry else []
            tables = ["metadata.csv"] if self.store.exists("metadata.csv") else []
            return pa.Table.from_pylist(rows, FILE_SCHEMA), tables
        matches = matcher(self.parts.pattern) if self.parts.pattern else lambda name: True
        files, tables = list_files(self.store, matches, troubles, leave_out)
        return _without_statistics(files), tables

    def listing(
        self, look: LookInside = look_inside, known: Mapping[str, str] | None = None, leave_out: str = ""
    ) -> Listing:
        """All items. look: looks into containers; known: file → tag of those whose items are known already.

        Raises InputError when there is nothing, or nothing but files that cannot be read.
        """
        troubles: list[Trouble] = []
        files, tables = self.files(troubles, leave_out)
        listing = list_items(self.store, files, tables, self.container_of, look, known)
        listing.troubles[:0] = troubles
        if not listing.items.num_rows and not listing.unchanged:
            if listing.troubles:
                first = listing.troubles[0]
                more = f"; {len(listing.troubles) - 1} more files like it" if len(listing.troubles) > 1 else ""
                separator = " " if first.reason.startswith("cannot") else ": "
                raise InputError(f"{self.store.uri}/{first.name}{separator}{first.reason}{more}")
            raise InputError(f"{self.uri}: no files there to ingest; {self._advice()}")
        return listing

    def items(self) -> list[Item]:
        """All items, sorted by name: for small sources. Raises InputError as `listing`."""
        return items_of(self.listing().items)

    def metadata(self) -> dict[str, dict[str, Any]]:
        """File → what metadata tables of the folder say of it, `file_name` included: for small sources."""
        table = read_metadata(self.store, self.files()[1])
        rows = zip(table.names, table.rows, strict=True)
        return {name: {FILE_NAME: name, **json.loads(row)} for name, row in rows}

    def read(self, items: Sequence[Item]) -> Iterator[Reading]:
        """Read items, each once; those that lie together in a file, together. The order is the containers'."""
        for file, some in groupby(items, key=lambda item: item.file if self.container_of(item.file) else None):
            container = self.container_of(file) if file is not None else None
            yield from (container or ImageFiles()).read(self.store, list(some))

    def _advice(self) -> str:
        if self.parts.pattern and "**" not in self.parts.pattern:
            return "a * stays within a folder; ** goes into all of them, as in photos/**/*.jpg"
        return "name a folder, pattern, tar or Parquet with pictures"


def _without_statistics(files: pa.Table) -> pa.Table:
    """Drop the tables and counts that img2dataset leaves beside each of its archives and folders."""
    names = files["name"]
    is_report = pc.match_substring_regex(names, r"^(.*/)?\d+(\.parquet|_stats\.json)$")
    if not pc.any(is_report).as_py():
        return files
    everything = names.to_pylist()
    shards = {name.removesuffix(".tar") for name in everything if name.endswith(".tar")}
    shards |= {str(PurePosixPath(name).parent) for name in everything}
    keep = [
        not (report and name.removesuffix(".parquet").removesuffix("_stats.json") in shards)
        for name, report in zip(everything, is_report.to_pylist(), strict=True)
    ]
    return files.filter(pa.array(keep, pa.bool_()))
