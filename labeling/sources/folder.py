"""Image files in a folder, and the table beside them that says more of each."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from labeling.dataset import Entry, Store
from labeling.sources.container import Item
from model.inputs import InputError

METADATA = "metadata.csv"
Metadata = Mapping[str, Mapping[str, str]]  # file name → column → value, where there is one
_COMPANIONS = ("right", "disparity")  # columns that name files belonging to another image's row


class ImageFile:
    """A file that is one item itself."""

    def items(self, store: Store, file: str, entry: Entry) -> list[Item]:
        return [Item(file, entry.size, file)]

    def read(self, store: Store, item: Item) -> tuple[bytes, dict[str, Any]]:
        return store.read(item.file), {}


def read_metadata(store: Store) -> dict[str, dict[str, str]]:
    """Rows of a folder's metadata.csv by file name; empty without one. Raises InputError for a table without file_name.

    Column file_name, and any of author, licence, text, right (file of the right image of a rectified stereo pair),
    disparity (16-bit PNG) and disparity_scale.
    """
    if not store.exists(METADATA):
        return {}
    rows = list(csv.DictReader(io.StringIO(store.read(METADATA).decode("utf-8-sig"))))
    if rows and "file_name" not in rows[0]:
        raise InputError(f"{store.uri}/{METADATA}: no column 'file_name'; it names the picture each line is about")
    return {row["file_name"]: {key: value for key, value in row.items() if value} for row in rows}


def companion_files(metadata: Metadata) -> set[str]:
    """Right images and disparities: they belong to another image's row and become none of their own."""
    return {row[key] for row in metadata.values() for key in _COMPANIONS if key in row}


def read_companions(store: Store, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Columns right, disparity and disparity_scale of a row, from the files that its facts name.

    Raises FileNotFoundError with a message for the user.
    """
    columns: dict[str, Any] = {}
    for key in _COMPANIONS:
        if key in facts:
            try:
                columns[key] = store.read(facts[key])
            except FileNotFoundError:
                raise FileNotFoundError(f"{METADATA} names {facts[key]} as its {key}, which is not there") from None
    if "disparity" in columns:
        columns["disparity_scale"] = float(facts.get("disparity_scale", 1.0))
    return columns
