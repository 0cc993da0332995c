"""The pictures that asset pages show: files named by their content, which the dashboard's own server serves.

Dagster shows Markdown on a page only where it is short, and keeps every event forever, so an event holds only the
address of its picture.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from cluster.user_data import write_whole
from pipelines.dashboard.tracked_assets import state_folder

PICTURES = "pictures"  # the folder, and the first part of the address where they are served
MAX_BYTES = 1 << 30


def keep_picture(content: bytes, extension: str) -> str:
    """Keep a file under the digest of its content; the path of its address on the dashboard."""
    name = f"{hashlib.blake2b(content, digest_size=12).hexdigest()}.{extension}"
    path = picture_folder() / name
    if not path.exists():
        write_whole(path, content)
    return f"/{PICTURES}/{name}"


def picture_folder() -> Path:
    """Where the pictures are kept."""
    path = state_folder() / PICTURES
    path.mkdir(exist_ok=True)
    return path


def takes_too_much(max_bytes: int = MAX_BYTES) -> bool:
    """Whether there are pictures to drop."""
    with os.scandir(picture_folder()) as files:
        return sum(file.stat().st_size for file in files) > max_bytes


def drop_old_pictures(shown: Iterable[str] = (), max_bytes: int = MAX_BYTES) -> None:
    """Delete pictures until the rest takes at most max_bytes, first those that have not been shown for longest.

    shown: names of the pictures that the newest events show. Older events then show none.
    """
    for name in shown:
        with suppress(FileNotFoundError):
            os.utime(picture_folder() / name)
    files = sorted(((path.stat(), path) for path in picture_folder().iterdir()), key=lambda item: item[0].st_mtime)
    total = sum(stat.st_size for stat, _ in files)
    for stat, path in files:
        if total <= max_bytes:
            break
        path.unlink(missing_ok=True)
        total -= stat.st_size
