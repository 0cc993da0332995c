"""Paths and addresses as people give them, in Python, in files and on the command line."""

from __future__ import annotations

import os
from pathlib import Path

from model.inputs.errors import InputError, shown

_LONGEST_NAME, _LONGEST_PATH = 255, 4095  # bytes, of Linux's file systems


def as_path(what: str, value: object) -> Path:
    """A path, with the home folder for ~. Raises InputError, naming `what`, for one that no file or folder can have."""
    try:
        path = Path(value).expanduser()  # type: ignore[arg-type]
        encoded = os.fsencode(path)
    except (TypeError, ValueError, RuntimeError):  # no text, or one that no file system encodes, or nobody's home
        raise InputError(f"{what} {shown(value)}: give the path of a file or folder") from None
    if b"\0" in encoded or len(encoded) > _LONGEST_PATH or max(map(len, encoded.split(b"/"))) > _LONGEST_NAME:
        raise InputError(f"{what} {shown(value)}: no file or folder can have this name; give another")
    return path
