"""What a run leaves to look at: metrics.jsonl and TensorBoard's event files, beside its checkpoints."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from labeling.dataset import Store, open_store

METRICS, TENSORBOARD = "metrics.jsonl", "tensorboard"


class Records:
    """A run's metrics, appended to as it goes; for a run on S3 they are uploaded at checkpoints and at the end."""

    def __init__(self, store: Store, start: int) -> None:
        """start: the step that the run continues from; records of later steps are dropped, they come again."""
        self.store = store
        self.remote = store.uri.startswith("s3://")
        self.folder = Path(tempfile.mkdtemp(prefix="onediffusion-") if self.remote else store.uri)
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = [record for record in read_metrics(store) if record["step"] <= start]
        # Whole or as it was: a full disk or a kill must not take what was measured before.
        open_store(self.folder).put(METRICS, "".join(map(_line, kept)).encode())
        self._file = (self.folder / METRICS).open("a")

    def append(self, record: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl."""
        self._file.write(_line(record))
        self._file.flush()

    def sync(self) -> None:
        """Upload what is local only."""
        if not self.remote:
            return
        for path in sorted(path for path in self.folder.rglob("*") if path.is_file()):
            self.store.put(path.relative_to(self.folder).as_posix(), path.read_bytes())

    def close(self) -> None:
        """Upload the last lines and end."""
        self._file.close()
        self.sync()


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record) + "\n"


def read_metrics(store: Store) -> list[dict[str, Any]]:
    """The records of metrics.jsonl, oldest first; a line that a killed writer cut is left out."""
    try:
        lines = store.read(METRICS).decode().splitlines()
    except FileNotFoundError:
        return []
    records = []
    for line in lines:
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records
