"""A collection of raw images, opened by its address: a folder, a glob, a tar archive or Parquet files, disk or S3."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import Any

from labeling.dataset import Entry, Store, open_store
from labeling.sources.container import Container, Item
from labeling.sources.folder import METADATA, ImageFile, companion_files, read_metadata
from labeling.sources.parquet import ParquetTable
from labeling.sources.tar import TarArchive
from model.inputs import InputError

CONTAINERS: dict[str, Container] = {".tar": TarArchive(), ".parquet": ParquetTable()}  # any other file is an item
_WILDCARDS = "*?["


class Source:
    """A collection opened for listing and reading. It may be sent to other processes."""

    def __init__(self, uri: str) -> None:
        """Raises InputError for an address that is neither local nor S3."""
        self.uri = uri.rstrip("/") or "/"
        folder, self.pattern = _split_address(uri)
        self.store: Store = open_store(folder)

    @property
    def address(self) -> str:
        """The address by which a dataset remembers this source: of a local one the absolute path."""
        return self.uri if self.uri.startswith("s3://") else open_store(self.uri).uri

    def items(self) -> list[Item]:
        """All items, sorted by name. Raises InputError when there are none, or for an archive that cannot be read."""
        companions = companion_files(self.metadata())
        items: list[Item] = []
        for name, entry in self.files().items():
            packed = PurePosixPath(name).suffix in CONTAINERS
            if packed or (name not in companions and name != METADATA):
                items += _container(name).items(self.store, name, entry)
        if not items:
            raise InputError(f"{self.uri}: no files there to ingest; name a folder, glob, tar or Parquet with pictures")
        return sorted(items, key=lambda item: item.name)

    def files(self) -> dict[str, Entry]:
        """The files that the address names, sorted; none is opened. What lies beside them may change at any time."""
        if not self.pattern:
            return self.store.walk()
        # A single file is not worth walking through all that lies beside it.
        files = self.store.walk() if any(sign in self.pattern for sign in _WILDCARDS) else self.store.files()
        return {name: entry for name, entry in files.items() if fnmatch(name, self.pattern)}

    def metadata(self) -> dict[str, dict[str, str]]:
        """Rows of the folder's metadata.csv by file name; see `read_metadata`."""
        return read_metadata(self.store)

    def read(self, item: Item) -> tuple[bytes, dict[str, Any]]:
        """The bytes of an item and what its container says of it (a Parquet row's text, licence, …)."""
        return _container(item.file).read(self.store, item)


def _container(file: str) -> Container:
    return CONTAINERS.get(PurePosixPath(file).suffix, ImageFile())


def _split_address(uri: str) -> tuple[str, str]:
    """The folder of an address, and the pattern of the files in it, "" for all of them."""
    plain = uri.removeprefix("s3://")
    if any(sign in plain for sign in _WILDCARDS):
        fixed = plain[: min(plain.index(sign) for sign in _WILDCARDS if sign in plain)].rpartition("/")[0]
        folder = uri[: len(uri) - len(plain)] + fixed
        return folder or ("/" if uri.startswith("/") else "."), plain[len(fixed) :].lstrip("/")
    address = uri.rstrip("/") or "/"
    if address.endswith(tuple(CONTAINERS)):
        folder, _, name = address.rpartition("/")
        return folder or ("/" if address.startswith("/") else "."), name
    return address, ""
