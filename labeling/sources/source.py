"""Raw picture collections: a folder, a glob, a tar archive or Parquet files, on disk or S3, listed in order."""

from __future__ import annotations

import csv
import io
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from labeling.dataset import Entry, Store, open_store
from model.inputs import InputError, one_line

METADATA = "metadata.csv"


@dataclass(frozen=True)
class Item:
    """One raw file: its name in the source, bytes, and where it lies (a file; an offset in a tar or row in Parquet)."""

    name: str
    size: int
    file: str
    place: int | None = None


class Source:
    """A collection opened for listing and reading.

    A table `metadata.csv` in the folder says more of its pictures: column file_name, and any of author, licence, text,
    right (file of the right picture of a rectified stereo pair), disparity (16-bit PNG) and disparity_scale.
    """

    def __init__(self, uri: str) -> None:
        """Raises InputError for an address that is neither local nor S3."""
        self.uri = uri.rstrip("/") or "/"
        plain = uri.removeprefix("s3://")
        self.pattern = ""
        folder = self.uri
        if any(sign in plain for sign in "*?["):
            fixed = plain[: min(plain.index(sign) for sign in "*?[" if sign in plain)]
            folder = uri[: len(uri) - len(plain)] + fixed.rpartition("/")[0]
            folder = folder or ("/" if uri.startswith("/") else ".")
            self.pattern = plain[len(fixed.rpartition("/")[0]) :].lstrip("/")
        elif self.uri.endswith((".tar", ".parquet")):
            folder, _, self.pattern = self.uri.rpartition("/")
            folder = folder or "."
        self.store: Store = open_store(folder)

    def items(self) -> list[Item]:
        """All items, sorted by name. Raises InputError when there are none, or for an archive that cannot be read."""
        files = self.files()
        companions = self._companions()
        items: list[Item] = []
        for name, entry in files.items():
            if name.endswith((".tar", ".parquet")):
                items += self._packed_items(name)
            elif name not in companions and name != METADATA:
                items.append(Item(name, entry.size, name))
        if not items:
            raise InputError(f"{self.uri}: no files there to ingest; name a folder, glob, tar or Parquet with pictures")
        return sorted(items, key=lambda item: item.name)

    def files(self) -> dict[str, Entry]:
        """The files that the address names, sorted; none is opened. What lies beside them may change at any time."""
        if not self.pattern:
            return self.store.walk()
        # A single file is not worth walking through all that lies beside it.
        found = self.store.walk() if any(sign in self.pattern for sign in "*?[") else self.store.files()
        return {name: entry for name, entry in found.items() if fnmatch(name, self.pattern)}

    def metadata(self) -> dict[str, dict[str, str]]:
        """Rows of metadata.csv by file name; empty without one. Raises InputError for a table without file_name."""
        if not self.store.exists(METADATA):
            return {}
        rows = list(csv.DictReader(io.StringIO(self.store.read(METADATA).decode("utf-8-sig"))))
        if rows and "file_name" not in rows[0]:
            raise InputError(f"{self.uri}/{METADATA}: no column 'file_name'; it names the picture each line is about")
        return {row["file_name"]: {key: value for key, value in row.items() if value} for row in rows}

    def read(self, item: Item) -> tuple[bytes, dict[str, Any]]:
        """The bytes of an item and what its container says of it (a Parquet row's text, licence, …)."""
        if item.place is None:
            return self.store.read(item.name), {}
        if item.file.endswith(".tar"):
            return self.store.read_range(item.file, item.place, item.size), {}
        return self._read_parquet(item)

    def _companions(self) -> set[str]:
        # Right pictures and disparities belong to another picture's row and are none of their own.
        return {row[key] for row in self.metadata().values() for key in ("right", "disparity") if key in row}

    def _packed_items(self, name: str) -> list[Item]:
        try:
            return self._tar_items(name) if name.endswith(".tar") else self._parquet_items(name)
        except (tarfile.TarError, pa.ArrowInvalid) as error:
            said = one_line(error)
            raise InputError(f"{self.uri}: {name} cannot be read ({said}); is all of it there?") from None

    def _tar_items(self, name: str) -> list[Item]:
        with self.store.open(name) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            return [
                Item(f"{name}/{member.name}", member.size, name, member.offset_data)
                for member in archive
                if member.isfile() and not member.name.rsplit("/", 1)[-1].startswith(".")
            ]

    def _parquet_items(self, name: str) -> list[Item]:
        with self.store.open(name) as file:
            parquet = pq.ParquetFile(file)
            _picture_column(parquet.schema_arrow, f"{self.uri}/{name}")
            items, row = [], 0
            for index in range(parquet.num_row_groups):
                group = parquet.metadata.row_group(index)
                size = group.total_byte_size // max(group.num_rows, 1)
                for _ in range(group.num_rows):
                    items.append(Item(f"{name}/{row:09d}", size, name, row))
                    row += 1
            return items

    def _read_parquet(self, item: Item) -> tuple[bytes, dict[str, Any]]:
        assert item.place is not None
        with self.store.open(item.file) as file:
            parquet = pq.ParquetFile(file)
            column = _picture_column(parquet.schema_arrow, item.file)
            texts = [
                name
                for name in ("author", "licence", "license", "text", "caption")
                if name in parquet.schema_arrow.names
            ]
            row = item.place
            for index in range(parquet.num_row_groups):
                count = parquet.metadata.row_group(index).num_rows
                if row < count:
                    values = parquet.read_row_group(index, columns=[column, *texts]).slice(row, 1).to_pylist()[0]
                    break
                row -= count
            picture = values.pop(column)
            said = {
                {"license": "licence", "caption": "text"}.get(key, key): value for key, value in values.items() if value
            }
            return (picture.get("bytes") if isinstance(picture, Mapping) else picture) or b"", said


def _picture_column(schema: pa.Schema, place: str) -> str:
    """The column with encoded pictures: binary, or the struct of bytes and path that HuggingFace datasets write."""
    for name in ("image", "picture", "bytes", "jpg", "png"):
        if name in schema.names:
            kind = schema.field(name).type
            if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_struct(kind):
                return name
    raise InputError(f"{place}: no column of encoded pictures (image); it has {', '.join(schema.names)}")


def cut(items: Sequence[Item], max_rows: int, max_bytes: int) -> list[list[Item]]:
    """Cut a sorted listing into the items of each shard: at most `max_rows` items and `max_bytes` bytes."""
    shards: list[list[Item]] = []
    size = 0
    for item in items:
        if not shards or len(shards[-1]) >= max_rows or size + item.size > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(item)
        size += item.size
    return shards
