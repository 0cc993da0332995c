"""Lists of addresses: files of which each row names a picture by its address and says more about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from labeling.dataset import Entry, Store
from labeling.sources.addresses.parquet_list import ParquetList
from labeling.sources.addresses.rows import ListFile, RowRange
from labeling.sources.addresses.text_forms import TEXT_FORMS
from labeling.sources.addresses.text_list import TextList
from model.inputs import InputError, nearest

URL_COLUMNS = ("url", "image_url", "img_url", "imageurl", "image_link", "photo_image_url", "image_uri", "uri", "link")
TEXT_COLUMNS = ("caption", "text", "vlm_caption", "alt_text", "alt", "description", "prompt")
_OTHER_PICTURES = (".tar", ".jpg", ".jpeg", ".png", ".webp")  # a folder with such files is none of lists


@dataclass(frozen=True)
class AddressList:
    """The files of a list, sorted, and which of their columns are what; text is "" without one."""

    files: tuple[ListFile, ...]
    url: str
    text: str

    @property
    def rows(self) -> int:
        """Addresses in all files."""
        return sum(file.rows for file in self.files)


def open_list(
    store: Store, entries: Mapping[str, Entry], url: str | None = None, text: str | None = None
) -> AddressList | None:
    """The list of addresses that these files are, None where they are something else.

    They are one if all data files (Parquet, CSV, TSV, JSON lines) have a column of addresses and none has pictures.
    url, text: names of the columns, found by usual names otherwise. Raises InputError where `url` is named and there is
    no such column, or where the files differ in their columns.
    """
    names = [name for name in sorted(entries) if PurePosixPath(name).suffix.lower() in FORMATS]
    if not names or (not url and any(PurePosixPath(name).suffix.lower() in _OTHER_PICTURES for name in entries)):
        return None
    files: list[ListFile] = []
    for name in names:
        file = FORMATS[PurePosixPath(name).suffix.lower()](store, name, entries[name])
        if not url and (file.holds_pictures or not file.find_column(URL_COLUMNS, addresses=True)):
            return None
        files.append(file)
    url_column = _column(files, "--url", url, URL_COLUMNS)
    return AddressList(tuple(files), url_column, _column(files, "--text", text, TEXT_COLUMNS, optional=True))


def _column(
    files: Sequence[ListFile], option: str, named: str | None, usual: Sequence[str], optional: bool = False
) -> str:
    """The column of all files: the one named, or the first of the usual names."""
    column = named or files[0].find_column(usual, addresses=not optional)
    if not column:
        return ""
    for file in files:
        if column not in file.columns:
            have = ", ".join(file.columns)
            raise InputError(f"{file.place}: no column {column!r} ({option}); it has {have}{nearest(column, file.columns)}")
    return column


def cut_lots(
    file: ListFile, first_row: int, shard_rows: int, shards: int
) -> Iterator[list[RowRange]]:
    """The rows of a file from `first_row`: ranges of one shard each, several consecutive ones in a lot.

    A lot is read in one pass by one worker, since reading one range may mean decoding what lies before it.
    """
    lot: list[RowRange] = []
    for one in file.ranges(first_row, shard_rows):
        lot.append(one)
        if len(lot) == shards:
            yield lot
            lot = []
    if lot:
        yield lot


def split_row(row: Mapping[str, Any], url: str, text: str) -> tuple[str, str | None, dict[str, Any]]:
    """Address, caption and all other values of a row of a list."""
    others = {name: value for name, value in row.items() if name not in (url, text)}
    caption = row.get(text) if text else None
    return str(row.get(url) or "").strip(), None if caption is None else str(caption), others


FORMATS: dict[str, Any] = {".parquet": ParquetList, **dict.fromkeys(TEXT_FORMS, TextList)}
