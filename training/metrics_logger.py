"""A run's metrics: metrics.jsonl and TensorBoard, beside its checkpoints."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from labeling.dataset import Store, open_store
from labeling.dataset.storage.errors import explained

METRICS, TENSORBOARD = "metrics.jsonl", "tensorboard"
# Older versions wrote these into the metrics.jsonl of their runs.
_OLD_KEYS = {"held_out_loss": "validation_loss", "held_out_losses": "validation_losses"}


class MetricsLogger:
    """Appends to a run's metrics as it goes; those of a run on S3 are uploaded at checkpoints and at the end."""

    def __init__(self, store: Store, start: int) -> None:
        """start: the step that the run continues from; records of later steps are dropped, they come again."""
        self.store = store
        self.remote = store.uri.startswith("s3://")
        self.folder = Path(tempfile.mkdtemp(prefix="onediffusion-") if self.remote else store.uri)
        lines = [line for line, record in _read_lines(store) if record["step"] <= start]
        # Written whole or not at all: a full disk or a kill must not lose what was measured before.
        open_store(self.folder).put(METRICS, "".join(lines).encode())
        with explained(f"{self.folder}/{METRICS}"):
            self._file = (self.folder / METRICS).open("a")

    def append(self, record: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl. Raises InputError where the disk is full."""
        with explained(f"{self.folder}/{METRICS}"):
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()

    def sync(self) -> None:
        """Upload what is local only."""
        if not self.remote:
            return
        for path in sorted(path for path in self.folder.rglob("*") if path.is_file()):
            self.store.put(path.relative_to(self.folder).as_posix(), path.read_bytes())

    def close(self) -> None:
        """Upload the last lines and close the file. Trackers that write beside it have ended."""
        self._file.close()
        self.sync()
        if self.remote:
            shutil.rmtree(self.folder, ignore_errors=True)


def scalars(record: dict[str, Any]) -> dict[str, float]:
    """A record as trackers take it: the losses by task ("losses") and by noise level have a name each ("loss/TASK")."""
    values = {name: value for name, value in record.items() if name != "step" and not isinstance(value, dict)}
    for name, losses in record.items():
        if isinstance(losses, dict):
            values |= {f"{name.replace('losses', 'loss')}/{part}": loss for part, loss in losses.items()}
    return values


def read_metrics(store: Store) -> list[dict[str, Any]]:
    """The records of metrics.jsonl, oldest first; a line that a killed writer cut is left out."""
    return [{_OLD_KEYS.get(key, key): value for key, value in record.items()} for _, record in _read_lines(store)]


def _read_lines(store: Store) -> list[tuple[str, dict[str, Any]]]:
    """The whole lines of metrics.jsonl, each with its record; lines from the first broken one on are left out."""
    try:
        text = store.read(METRICS).decode()
    except FileNotFoundError:
        return []
    lines = []
    for line in text.splitlines():
        try:
            lines.append((line + "\n", json.loads(line)))
        except ValueError:
            break
    return lines
