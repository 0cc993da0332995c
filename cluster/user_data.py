"""What this user keeps on this machine, under the data folder: the addresses of the jobs submitted from here."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def data_folder() -> Path:
    """The project's folder for this user's own data ($XDG_DATA_HOME/onediffusion), made on first use."""
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "onediffusion"
    data.mkdir(parents=True, exist_ok=True)
    return data


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file of this user's own (mode 0600), whole or not at all, whoever else writes it at the same time."""
    data = content.encode() if isinstance(content, str) else content
    # The name aside is new each time: on a disk that machines share, not even process ids are one writer's own.
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as aside:
        try:
            aside.write(data)
            aside.flush()
            os.replace(aside.name, path)
        except BaseException:
            os.unlink(aside.name)
            raise


def remember_job(identity: str, address: str) -> None:
    """Note the address of a job's folder, before anything is sent: what is killed later is still listed."""
    folder = data_folder() / "jobs"
    folder.mkdir(exist_ok=True)
    write_whole(folder / f"{identity}.json", json.dumps({"address": address}))


def forget_job(identity: str) -> None:
    """Drop the note."""
    (data_folder() / "jobs" / f"{identity}.json").unlink(missing_ok=True)


def remembered_jobs() -> dict[str, str]:
    """Job id → address of its folder."""
    found: dict[str, str] = {}
    for path in sorted((data_folder() / "jobs").glob("[!.]*.json")):
        with suppress(FileNotFoundError):  # forgotten since they were listed
            found[path.stem] = json.loads(path.read_text())["address"]
    return found


@contextmanager
def one_at_a_time(name: str) -> Iterator[None]:
    """Let one process of this user at a time do what `name` stands for."""
    folder = data_folder() / "locks"
    folder.mkdir(exist_ok=True)
    with (folder / name).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the system lets go of it when the process ends, however it does
        yield
