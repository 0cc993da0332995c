"""This user's own folder on this machine: where it is, files written whole, and locks."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def data_folder() -> Path:
    """The project's folder for this user's own data ($XDG_DATA_HOME/onediffusion), made on first use."""
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "onediffusion"
    data.mkdir(parents=True, exist_ok=True)
    return data


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file of this user's own (mode 0600), whole or not at all, whoever else writes it at the same time."""
    data = content.encode() if isinstance(content, str) else content
    # The temporary name is random: on a disk that machines share, even process ids are not unique.
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as aside:
        try:
            aside.write(data)
            aside.flush()
            os.replace(aside.name, path)
        except BaseException:
            os.unlink(aside.name)
            raise


@contextmanager
def one_at_a_time(name: str) -> Iterator[None]:
    """Let one process of this user at a time do what `name` stands for."""
    folder = data_folder() / "locks"
    folder.mkdir(exist_ok=True)
    with (folder / name).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the system releases the lock when the process ends, however it ends
        yield
