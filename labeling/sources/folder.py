"""Pictures that are files of their own, with the files beside them that say more of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from labeling.dataset import Entry, LocalStore, Store, in_parallel
from labeling.sources.captions import read_beside
from labeling.sources.items import Contents, Item, Reading, items_table
from labeling.sources.metadata import COMPANIONS
from labeling.sources.tar import MAX_MEMBER
from model.inputs import InputError, one_line

_AHEAD = 16  # files that are read from S3 at a time


class ImageFiles:
    """Files that are one item each."""

    def contents(self, store: Store, file: str, entry: Entry) -> Contents:
        return Contents(items_table([{"name": file, "size": entry.size, "file": file}]))

    def read(self, store: Store, items: Sequence[Item]) -> Iterator[Reading]:
        if isinstance(store, LocalStore):  # whose reads are over before a thread would have begun them
            for item in items:
                yield _read(store, item)
            return
        yield from in_parallel(lambda item: _read(store, item), items, _AHEAD, ahead=_AHEAD)


def _read(store: Store, item: Item) -> Reading:
    if item.size > MAX_MEMBER:
        return Reading(item, reason=f"larger than {MAX_MEMBER >> 20} MiB")
    try:
        raw = store.read(item.file)
    except FileNotFoundError:
        return Reading(item, reason="not there any more")
    except OSError as error:
        return Reading(item, reason=f"cannot be read ({error.strerror or one_line(error)})")
    beside: list[tuple[str, bytes]] = []
    for name in item.beside or ():
        try:
            beside.append((name, store.read(name)))
        except OSError:
            continue
    return Reading(item, raw, read_beside(beside) if beside else {})


def read_companions(store: Store, described: Mapping[str, Any]) -> dict[str, Any]:
    """Columns right, disparity and disparity_scale of a row, from the files below the source that a table of it names.

    Raises ValueError with a message for the user.
    """
    columns: dict[str, Any] = {}
    for key in COMPANIONS:
        if isinstance(name := described.get(key), str):
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise ValueError(f"metadata.csv names {name} as its {key}, which is not below the folder")
            try:
                columns[key] = store.read(name)
            except InputError:
                raise
            except (OSError, ValueError):
                raise ValueError(f"metadata.csv names {name} as its {key}, which is not there") from None
    if "disparity" in columns:
        scale = described.get("disparity_scale", 1.0)
        try:
            columns["disparity_scale"] = float(str(scale).strip().replace(",", "."))
        except ValueError:
            raise ValueError(f"metadata.csv gives {scale!r} as its disparity_scale, which is no number") from None
    return columns
