"""The dataset of aligned column groups: Parquet shards with the same rows in the same order in every group.

dataset.json              schema version, kind of rows, the shards with their row counts, sources
GROUP/group.json          what is declared: labeler, version, parameters, weights digest, columns read
GROUP/000000.parquet      the group's columns; its footer says how they came to be
GROUP/index-*.parquet     cache of footers, harmless to delete
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from labeling.dataset.array_file import ArrayFile
from labeling.dataset.footers import FooterTable
from labeling.dataset.images import IMAGES
from labeling.dataset.index import read_footers, refreshed_footers, save_index
from labeling.dataset.join import Columns, join_groups, read_columns
from labeling.dataset.lease import Range
from labeling.dataset.parallel import in_parallel
from labeling.dataset.shards import RECIPE_FIELDS, SUFFIX, Footer, read_footer, shard_file
from labeling.dataset.storage import Entry, Store, open_store
from model.inputs import InputError

SCHEMA_VERSION = 1
DATASET_FILE = "dataset.json"
GROUP_FILE = "group.json"
EARLIER = "earlier"  # key of group.json: declarations before the present one
MAX_EARLIER = 8


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """One shard: its name, its rows, and the source (index into dataset.json's sources) it was cut from."""

    name: str
    rows: int
    source: int = 0


class Dataset:
    """A dataset on disk or S3, read lazily: opening costs one small file."""

    def __init__(self, uri: str | Path) -> None:
        self.store: Store = open_store(uri)
        self.uri = self.store.uri

    @classmethod
    def open(cls, uri: str | Path) -> Dataset:
        """The dataset at `uri`. Raises InputError when there is none or it has another schema version."""
        dataset = cls(uri)
        version = dataset._contents["schema"]
        if version != SCHEMA_VERSION:
            raise InputError(f"{uri}: dataset of schema version {version}, this program reads {SCHEMA_VERSION}")
        return dataset

    def __reduce__(self) -> tuple[type[Dataset], tuple[str]]:
        return Dataset, (self.uri,)

    @property
    def description(self) -> dict[str, Any]:
        """dataset.json. Raises InputError when it is not there."""
        return {**self._contents, "shards": [asdict(shard) for shard in self.shards]}

    @cached_property
    def _contents(self) -> dict[str, Any]:
        """dataset.json; its shards as ShardInfo, which take a quarter of the memory."""

        def compact(values: dict[str, Any]) -> Any:
            is_shard = {"name", "rows"} <= values.keys() and values.keys() <= {"name", "rows", "source"}
            return ShardInfo(**values) if is_shard else values

        try:
            return dict(json.loads(self.store.read(DATASET_FILE), object_hook=compact))
        except FileNotFoundError:
            raise InputError(f"{self.uri}: no dataset there (no dataset.json); make it with `ingest`") from None

    def describe(
        self,
        kind: str,
        shards: Sequence[ShardInfo],
        sources: Sequence[Mapping[str, Any]],
        removed: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        """Write dataset.json: with it, the shards become part of the dataset.

        removed: shard → numbers of its rows that are marked as removed; see `removed_rows`.
        """
        description = {
            "schema": SCHEMA_VERSION,
            "kind": kind,
            "shards": [asdict(shard) for shard in shards],
            "sources": list(sources),
        }
        if removed:
            description["removed"] = {shard: sorted(rows) for shard, rows in sorted(removed.items()) if rows}
        self.store.put(DATASET_FILE, json.dumps(description, indent=1).encode() + b"\n")
        self.__dict__.pop("_contents", None)

    @property
    def kind(self) -> str:
        """ "pictures" (a row is an image) or "sets" (a row is a set of views, its columns are lists)."""
        return str(self._contents["kind"])

    @property
    def has_sets(self) -> bool:
        """Whether a row is a set of views."""
        return self.kind == "sets"

    @property
    def shards(self) -> list[ShardInfo]:
        """The shards, in order."""
        shards: list[ShardInfo] = self._contents["shards"]
        return shards

    @property
    def sources(self) -> list[dict[str, Any]]:
        """The places that were ingested, each with its `uri`."""
        return list(self._contents.get("sources", ()))

    def removed_rows(self, shard: str) -> list[int]:
        """Numbers of the rows of a shard whose pictures were removed at their source. They keep their place and labels.

        No training uses them.
        """
        return list(self._contents.get("removed", {}).get(shard, ()))

    @property
    def shard_names(self) -> list[str]:
        """Names of the shards, in order."""
        return [shard.name for shard in self.shards]

    def groups(self) -> list[str]:
        """Declared column groups, `images` first, the others by name."""
        folders = self.store.folders()
        declared = in_parallel(lambda name: self.store.exists(f"{name}/{GROUP_FILE}"), folders, self.store.parallel)
        names = [name for name, is_group in zip(folders, declared, strict=True) if is_group]
        return sorted(names, key=lambda name: (name != IMAGES, name))

    def declaration(self, group: str) -> dict[str, Any] | None:
        """group.json of a group, None where it is not declared."""
        try:
            return dict(json.loads(self.store.read(f"{group}/{GROUP_FILE}")))
        except FileNotFoundError:
            return None

    def declare(self, group: str, declaration: Mapping[str, Any]) -> None:
        """Write group.json: how the shards of a group are to be made.

        The declarations before it are kept in its `earlier`, the latest first: shards that one of them made, and that
        are stale now, can be told from those of which something that they read has changed.
        """
        values = {key: value for key, value in declaration.items() if key != EARLIER}
        if earlier := self._earlier(group, values):
            values[EARLIER] = earlier
        self.store.put(f"{group}/{GROUP_FILE}", _group_json(values))

    def declare_new(self, group: str, declaration: Mapping[str, Any]) -> bool:
        """Write group.json where there is none; False where there is one, by now: of several writers one has True."""
        return self.store.put_new(f"{group}/{GROUP_FILE}", _group_json(declaration))

    def restore_declaration(self, group: str, declaration: Mapping[str, Any] | None) -> None:
        """Write group.json as it was read before, or remove it (None)."""
        if declaration is None:
            self.store.delete(f"{group}/{GROUP_FILE}")
        else:
            self.store.put(f"{group}/{GROUP_FILE}", _group_json(declaration))

    def _earlier(self, group: str, declaration: Mapping[str, Any]) -> list[dict[str, Any]]:
        before = self.declaration(group)
        if before is None or not before.get("reads"):  # what comes from a source is never stale
            return []
        made_by = {key: before.get(key) for key in (*RECIPE_FIELDS, "reads")}
        declarations = list(before.get(EARLIER, []))
        if any(declaration.get(key) != value for key, value in made_by.items()):
            declarations = [made_by, *(one for one in declarations if one != made_by)]
        return declarations[:MAX_EARLIER]

    def shard_entries(self, group: str) -> dict[str, Entry]:
        """The files of the group's shards that are there, by shard name: one listing."""
        files = self.store.files(group)
        return {shard: entry for shard in self.shard_names if (entry := files.get(f"{shard}{SUFFIX}"))}

    def has_shard(self, group: str, shard: str) -> bool:
        """Whether a shard is there, fresh or not."""
        return self.store.exists(shard_file(group, shard))

    def footers(
        self, group: str, save: bool = False, shards: Range | None = None, known: FooterTable | None = None
    ) -> FooterTable:
        """Footers of the group's shards that are there, by shard name; see `all_footers`."""
        return self.all_footers([group], save, shards, None if known is None else {group: known})[group]

    def all_footers(
        self,
        groups: Sequence[str],
        save: bool = False,
        shards: Range | None = None,
        known: Mapping[str, FooterTable] | None = None,
    ) -> dict[str, FooterTable]:
        """Footers of several groups' shards that are there, by group: one listing each, and the footers that changed.

        save: keep them in the groups' indexes, where one may write there and no other job works. shards: [first, end),
        all by default. known: footers read before, which stand in for the indexes.
        """
        footers, _ = read_footers(self.store, groups, self.shard_names, shards, save, known)
        return footers

    def footers_until(
        self, deadline: float, groups: Sequence[str], known: Mapping[str, FooterTable]
    ) -> tuple[dict[str, FooterTable], bool]:
        """Footers as of `all_footers`, kept in the indexes, and whether these are all: at `deadline` reading stops.

        deadline: of time.monotonic. Some are read in any case: given as `known` the next time, they bring it to an end.
        """
        return read_footers(self.store, groups, self.shard_names, save=True, known=known, deadline=deadline)

    def refreshed(self, footers: Mapping[str, FooterTable], pairs: Iterable[tuple[str, str]]) -> dict[str, FooterTable]:
        """The footers, those of some (group, shard) read anew: cheaper than a listing for few of many shards."""
        return refreshed_footers(self.store, footers, pairs)

    def save_index(self, group: str, footers: FooterTable, held: Range | None = None) -> None:
        """Keep footers in the index of a group, where one may write there. held: the shards that the caller works on,
        [first, end), all by default."""
        save_index(self.store, group, footers, self.shard_names, held)

    def footer(self, group: str, shard: str) -> Footer:
        """Footer of one shard. Raises FileNotFoundError, InputError for a file this project did not write."""
        return read_footer(self.store, group, shard)

    def read(
        self,
        group: str,
        shard: str,
        columns: Sequence[str] | None = None,
        row_groups: Sequence[int] | None = None,
        content: str | None = None,
    ) -> pa.Table:
        """Columns of a shard (all by default), of some of its row groups (all by default); see `read_columns`."""
        return read_columns(self.store, group, shard, columns, row_groups, content)

    def arrays(self, group: str, shard: str) -> ArrayFile:
        """A shard of latents or text, to read single arrays of it; see `ArrayFile`."""
        return ArrayFile(self.store, group, shard)

    def join(
        self, shard: str, columns: Columns, row_groups: Sequence[int] | None = None, skip_missing: bool = False
    ) -> pa.Table:
        """Rows of several groups of a shard, as a table with the columns "group.column"; see `join_groups`."""
        return join_groups(self.store, shard, columns, row_groups, skip_missing)

    def rows(self, group: str, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """All rows of a group in order, as Python values: for small datasets and reports."""
        for shard in self.shards:
            if self.has_shard(group, shard.name):
                yield from self.read(group, shard.name, columns).to_pylist()

    def joined_rows(self, columns: Columns) -> Iterator[dict[str, Any]]:
        """All rows of several groups as "group.column" → value; a group that lacks a shard is left out of its rows."""
        for shard in self.shards:
            yield from self.join(shard.name, columns, skip_missing=True).to_pylist()


def _group_json(declaration: Mapping[str, Any]) -> bytes:
    return json.dumps(dict(declaration), indent=1, sort_keys=True).encode() + b"\n"
