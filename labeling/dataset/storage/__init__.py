"""Where datasets and runs live: a folder or an s3:// prefix, with the same few whole-or-absent operations."""

from __future__ import annotations

import os
from pathlib import Path

from labeling.dataset.storage.growing_text import (
    PAUSE_SECONDS,
    GrowingText,
    lines_of_many,
    stored_lines,
    text_parts,
)
from labeling.dataset.storage.local import LocalStore
from labeling.dataset.storage.s3 import S3Store
from labeling.dataset.storage.store import Entry, Ranges, Store
from model.inputs import InputError, as_path, shown

__all__ = [
    "PAUSE_SECONDS",
    "Entry",
    "GrowingText",
    "LocalStore",
    "Ranges",
    "S3Store",
    "Store",
    "lines_of_many",
    "open_store",
    "stored_lines",
    "text_parts",
]


def open_store(uri: str | Path) -> Store:
    """The store at a local path or s3://bucket/prefix. Raises InputError for other schemes and impossible names."""
    text = os.fspath(uri) if isinstance(uri, os.PathLike) else uri
    if not isinstance(text, str) or not text:
        raise InputError(f"{shown(uri)}: give a folder or an s3:// address")
    if text.startswith("s3://"):
        return S3Store("s3://" + text.removeprefix("s3://").rstrip("/"))
    if "://" in text:
        raise InputError(f"{text}: only local paths and s3:// addresses are supported")
    return LocalStore(str(as_path("folder", text).absolute()))
