"""How much labeling jobs did on a dataset and how long that took, wherever the jobs were sent from."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePosixPath

from labeling.dataset import Store
from pipelines.file_cache import FileCache
from pipelines.jobs.folder import FOLDER, TASKS, JobFolder

STATE = "state.json"


@dataclass(frozen=True)
class Labeling:
    """One attempt's work on a group: rows, seconds summed over its processes, and when it ended (Unix time).

    attempt_name: the job's id and the number of the attempt, as its target knows it.
    """

    attempt_name: str
    group: str
    rows: int
    seconds: float
    ended: float

    @property
    def speed(self) -> float:
        """Rows per second of one process."""
        return self.rows / self.seconds


def labeling_history(store: Store) -> list[Labeling]:
    """The last attempts of a dataset's jobs that have ended, oldest first. Costs one listing."""
    history: list[Labeling] = []
    for name, entry in store.walk(FOLDER).items():
        path = PurePosixPath(name)
        if path.name == STATE and (len(path.parts) == 2 or path.parts[1] == TASKS):
            history += _states.get(store, f"{FOLDER}/{name}", entry)
    return sorted(history, key=lambda labeling: (labeling.ended, labeling.group))


def _read(store: Store, name: str) -> list[Labeling]:
    folder = PurePosixPath(name).parent  # jobs/ID, or jobs/ID/tasks/NUMBER
    state = None
    with suppress(ValueError, TypeError):  # written by another version of the project
        state = JobFolder(f"{store.uri}/{folder}").state()
    if state is None:
        return []
    seconds, rows = state.result.get("busy") or {}, state.result.get("rows") or {}
    return [
        Labeling(f"{folder.parts[1]}-{state.attempt}{_task(folder)}", group, int(rows[group]), float(busy), state.time)
        for group, busy in seconds.items()
        if rows.get(group) and busy
    ]


def _task(folder: PurePosixPath) -> str:
    """What tells the tasks of a job array apart."""
    return f" task {int(folder.name)}" if len(folder.parts) > 2 else ""


_states = FileCache(_read, capacity=1024)
