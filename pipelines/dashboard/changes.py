"""Whether a dataset or run on a disk of this machine may have changed: by the times of its folders, without its files.

Every file there is written beside its place and renamed, so a folder's time changes with each of them. A lab has 10⁷
shards, and looking at every file of them takes minutes.
"""

from __future__ import annotations

import os
import time

from labeling.dataset import digest_json
from pipelines.jobs.folder import FOLDER as JOBS

UNSURE_SECONDS = 2.0  # after a change, in which the clock of a disk may not tell another one from it


def fingerprint(address: str, looks_into_folders: bool) -> str | None:
    """Digest of the times of files and folders; None on S3, where there are none, and while something changes.

    looks_into_folders: whether files in its folders count by themselves, and not only their coming and going.
    """
    if address.startswith("s3://"):
        return None
    try:
        times = _times(address, 2 if looks_into_folders else 1)
    except OSError:  # reading it says why
        return None
    newest = max((at for _, at, _ in times), default=0)
    return None if time.time() - newest / 1e9 < UNSURE_SECONDS else digest_json(times)


def _times(folder: str, depth: int) -> list[tuple[str, int, int]]:
    """Path, time of change (ns) and size of a folder and of what is in it, down to so many levels."""
    own = os.stat(folder)
    times = [(folder, own.st_mtime_ns, 0)]
    if depth:
        with os.scandir(folder) as listed:
            for item in sorted(listed, key=lambda item: item.name):
                if item.is_dir():
                    times += _times(item.path, max(depth - 1, 1) if item.name == JOBS else depth - 1)
                else:
                    stat = item.stat()
                    times.append((item.path, stat.st_mtime_ns, stat.st_size))
    return times
