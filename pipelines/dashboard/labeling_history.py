"""What labeling jobs say of their work on a dataset, wherever they were sent from: how much, and in how long."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePosixPath

from labeling.dataset import Store
from pipelines.file_cache import FileCache
from pipelines.jobs.folder import FOLDER, JobFolder

STATE = "state.json"


@dataclass(frozen=True)
class Labeling:
    """Work of an attempt at a job on a group: rows, seconds over all its processes, when it ended (Unix time).

    job: its id with the number of the attempt, as its target knows it.
    """

    job: str
    group: str
    rows: int
    seconds: float
    ended: float

    @property
    def speed(self) -> float:
        """Rows a second of one process."""
        return self.rows / self.seconds


def labelings(store: Store) -> list[Labeling]:
    """By the last attempts of the jobs of a dataset that have ended, oldest first. Costs one listing."""
    found: list[Labeling] = []
    for name, entry in store.walk(FOLDER).items():
        path = PurePosixPath(name)
        if path.name == STATE and len(path.parts) == 2:
            found += _states.get(store, f"{FOLDER}/{name}", entry)
    return sorted(found, key=lambda one: (one.ended, one.group))


def _read(store: Store, name: str) -> list[Labeling]:
    folder = PurePosixPath(name).parent
    state = None
    with suppress(ValueError, TypeError):  # of another version: its work is not shown
        state = JobFolder(f"{store.uri}/{folder}").state()
    if state is None:
        return []
    busy, rows = state.result.get("busy") or {}, state.result.get("rows") or {}
    return [
        Labeling(f"{folder.name}-{state.attempt}", group, int(rows[group]), float(seconds), state.time)
        for group, seconds in busy.items()
        if rows.get(group) and seconds
    ]


_states = FileCache(_read, capacity=1024)
