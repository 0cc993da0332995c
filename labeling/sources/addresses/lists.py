"""Lists of addresses: files of which each row names a picture by its address and says more about it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from labeling.dataset import Store
from labeling.sources.addresses.parquet_list import ParquetList
from labeling.sources.addresses.rows import ListFile
from labeling.sources.addresses.text_forms import TEXT_FORMS
from labeling.sources.addresses.text_list import TextList
from model.inputs import InputError, nearest

URL_COLUMNS = ("url", "image_url", "img_url", "imageurl", "image_link", "photo_image_url", "image_uri", "uri", "link")
TEXT_COLUMNS = ("caption", "text", "vlm_caption", "alt_text", "alt", "description", "prompt")
_BESIDE = ("", ".md", ".txt", ".json", ".yaml", ".yml", ".html", ".crc", ".sha256")  # files that may lie with lists


@dataclass(frozen=True)
class AddressList:
    """The files of a list, sorted, and which of their columns are what; text is "" without one."""

    files: tuple[ListFile, ...]
    url: str
    text: str


def open_list(
    store: Store, names: Iterable[str], url: str | None = None, text: str | None = None
) -> AddressList | None:
    """The list of addresses that these files (names in the store) are, None where they are something else.

    They are one if all data files (Parquet, CSV, TSV, JSON lines) have a column of addresses and none has pictures.
    url, text: names of the columns; found by usual names otherwise. Raises InputError where a column that is named is
    not there, or where `url` is named and no file can be a list.
    """
    lists: list[str] = []
    other = ""
    for name in names:
        if _suffix(name) in FORMATS:
            lists.append(name)
        elif _suffix(name) not in _BESIDE:
            other = name
            break  # so a folder of pictures is known by one of them
    lists.sort()
    if not lists or other:
        if url:
            what = f"{other} is there" if other else "no Parquet, CSV, TSV or JSON lines there"
            raise InputError(f"{store.uri}: --url names a column of a list of addresses, and this is none ({what})")
        return None
    files: list[ListFile] = []
    unreadable: list[InputError] = []
    for name in lists:
        file = FORMATS[_suffix(name)](store, name)
        try:
            is_list = bool(url) or (not file.holds_pictures and bool(_usual(file, URL_COLUMNS)))
        except InputError as error:
            unreadable.append(error)
            continue
        if not is_list:
            if _suffix(name) in TEXT_FORMS:
                have = ", ".join(file.columns)
                raise InputError(f"{file.address}: no column of addresses (url); name it with --url; it has {have}")
            return None
        files.append(file)
    if unreadable:
        if files or _suffix(lists[0]) in TEXT_FORMS:
            raise unreadable[0]
        return None
    url_column = url or _usual(files[0], URL_COLUMNS)
    text_column = text or _usual(files[0], TEXT_COLUMNS)
    for option, column in (("--url", url_column), ("--text", text_column)):
        for file in files if column else ():
            if column not in file.columns:
                have = ", ".join(file.columns)
                hint = nearest(column, file.columns)
                raise InputError(f"{file.address}: no column {column!r} ({option}){hint}; it has {have}")
    return AddressList(tuple(files), url_column, text_column)


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _usual(file: ListFile, usual: Sequence[str]) -> str:
    """The column of a file that has the first of some usual names, in any case and with blanks; "" without one."""
    by_name = {name.strip().lower().replace(" ", "_"): name for name in reversed(file.columns)}
    return next((by_name[name] for name in usual if name in by_name), "")


FORMATS: dict[str, Any] = {".parquet": ParquetList, **dict.fromkeys(TEXT_FORMS, TextList)}
