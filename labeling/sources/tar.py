"""Tar archives, uncompressed: items are read by their offset, from disk or S3."""

from __future__ import annotations

import tarfile
from typing import Any

from labeling.dataset import Entry, Store
from labeling.sources.container import Item
from model.inputs import InputError, one_line


class TarArchive:
    """A tar archive of image files; files whose names begin with a dot are left out."""

    def items(self, store: Store, file: str, entry: Entry) -> list[Item]:
        try:
            with store.open(file) as opened, tarfile.open(fileobj=opened, mode="r:") as archive:
                return [
                    Item(f"{file}/{member.name}", member.size, file, member.offset_data)
                    for member in archive
                    if member.isfile() and not member.name.rsplit("/", 1)[-1].startswith(".")
                ]
        except tarfile.TarError as error:
            raise InputError(f"{store.uri}/{file} cannot be read ({one_line(error)}); is all of it there?") from None

    def read(self, store: Store, item: Item) -> tuple[bytes, dict[str, Any]]:
        assert item.place is not None
        return store.read_range(item.file, item.place, item.size), {}
