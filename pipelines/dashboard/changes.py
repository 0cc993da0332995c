"""Whether a dataset, a run or a group may have changed, without a look at its shards: by the times of folders.

Every file there is written beside its place and renamed, so a folder's time changes with each of them. A lab has 10⁷
shards, and looking at every file of them takes minutes. On S3, where folders have no times, the index of a group shows
what our writers did.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from labeling.dataset import Store, digest_json
from labeling.dataset.index import INDEX
from labeling.dataset.parallel import in_parallel
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


def group_markers(store: Store, groups: Sequence[str]) -> list[str | None]:
    """For each group, what changes whenever a writer of ours changes it; None where nothing tells.

    On a disk it is the time of the group's folder, on S3 the files of its index, which writers keep as they go on: one
    request, where a listing costs one for each thousand shards. What others overwrite in place shows in neither.
    """
    if store.uri.startswith("s3://"):
        return list(in_parallel(lambda group: _index_marker(store, group), groups, min(len(groups), store.parallel)))
    return [_time_marker(f"{store.uri}/{group}") for group in groups]


def _index_marker(store: Store, group: str) -> str | None:
    parts = store.files(group, INDEX)
    return digest_json([[name, entry.size, entry.tag] for name, entry in parts.items()]) if parts else None


def _time_marker(folder: str) -> str | None:
    try:
        changed = os.stat(folder).st_mtime_ns
    except OSError:
        return None
    return None if time.time() - changed / 1e9 < UNSURE_SECONDS else str(changed)


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
