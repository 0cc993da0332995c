"""One training of a soak: a command of its own, what it has done so far, and the processes to disturb."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from process_tree import below, wait_for_end
from recorded_training import recorded_samples

from labeling.dataset import Store, open_store
from model.inputs.yaml_files import to_yaml
from training.checkpoint import FOLDER, check_checkpoint, whole_checkpoints
from training.metrics_logger import read_metrics

_ROOT = Path(__file__).parents[2]
PYTHONPATH = os.pathsep.join([str(_ROOT), str(_ROOT / "tests" / "plugins")])
PATIENCE = 300.0  # seconds for anything, on a busy machine too
KINDS = {
    "worker": lambda process, line: line.startswith("ray::RayTrainWorker"),
    "coordinator": lambda process, line: line.startswith("ray::Coordinator"),
    "raylet": lambda process, line: process.name() == "raylet",
}
Loss = dict[str, Any]  # a line of losses.jsonl


class Training:
    """A run of a configuration. `folder` has what it is told and what it records; `run` is its address."""

    def __init__(
        self, folder: Path, settings: dict[str, Any], run: str | None = None, environment: dict[str, str] | None = None
    ) -> None:
        self.folder, self.steps = folder, int(settings["steps"])
        self.run = run or str(folder / "run")
        (folder / "samples").mkdir(parents=True)
        (folder / "config.yaml").write_text(to_yaml({"base": "debug", **settings}))
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
        self.environment = {
            **kept,
            "PYTHONPATH": PYTHONPATH,
            "SOAK": str(folder),
            "XDG_DATA_HOME": str(folder / "data"),
            "OMP_NUM_THREADS": "1",
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
            **(environment or {}),
        }
        self.log = folder / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @property
    def store(self) -> Store:
        return open_store(self.run)

    def start(self) -> None:
        """Send the command, once more where it ended."""
        assert self.process is None or self.process.poll() is not None
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        command = [sys.executable, "-m", "recorded_training", "train", str(self.folder / "config.yaml")]
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [*command, "--run", self.run],
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=self.environment,
                cwd=self.folder,
            )

    @property
    def has_ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def said(self) -> str:
        """What the command has said since it was sent last."""
        return self.log.read_bytes()[self._log_start :].decode(errors="replace")

    def tell(self, name: str, value: str | int) -> None:
        """Write one of the files that steer it, whole."""
        scratch = self.folder / f".{name}"
        scratch.write_text(str(value))
        scratch.replace(self.folder / name)

    def losses(self) -> list[Loss]:
        """What rank 0 has recorded, in order; of steps that were done again several."""
        with suppress(FileNotFoundError):
            lines = (self.folder / "losses.jsonl").read_text().split("\n")
            return [json.loads(line) for line in lines[:-1]]
        return []

    def newest(self) -> int:
        """The step that was done last."""
        return int(next(iter(self.losses()[-1:]), {"step": 0})["step"])

    def wait(self, moment: Callable[[], bool], runs: bool = True) -> None:
        """Wait for a moment. runs: it must not end before."""
        deadline = time.monotonic() + PATIENCE
        while not moment():
            assert not runs or not self.has_ended, f"it ended:\n{self.said()}"
            assert time.monotonic() < deadline, f"it hangs:\n{self.said()}"
            time.sleep(0.05)

    def wait_for_end(self) -> int:
        """Wait until the command ends; its exit code. What it says is for people."""
        self.wait(lambda: self.has_ended, runs=False)
        assert self.process is not None
        assert "Traceback" not in self.said(), self.said()
        return int(self.process.returncode)

    def find(self, kind: str) -> list[psutil.Process]:
        """Its processes of a kind, also those on nodes that this process has started."""
        found = []
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if KINDS[kind](process, "".join(process.cmdline()[:1])):
                    found.append(process)
        return found

    def kill(self) -> None:
        """SIGKILL to the command itself; what works for it ends with it."""
        assert self.process is not None
        # On a cluster that others have started only its workers end.
        children = self.find("worker") if "RAY_ADDRESS" in self.environment else below(self.process.pid)
        self.process.send_signal(signal.SIGKILL)
        wait_for_end(self.process, children)

    def end(self) -> None:
        """Leave no process behind."""
        if not self.has_ended:
            self.kill()

    def samples(self) -> dict[int, set[tuple[int, int]]]:
        """See `recorded_samples`."""
        return recorded_samples(self.folder)

    def check_whole(self) -> None:
        """Its metrics are those of every step once; its last checkpoint is sound, and nothing unfinished lies about."""
        assert [record["step"] for record in read_metrics(self.store)] == list(range(1, self.steps + 1))
        steps = whole_checkpoints(self.store)
        assert steps[-1] == self.steps
        for step in steps:
            check_checkpoint(self.store, step, content=True)
        folders = self.store.folders(FOLDER)
        assert folders == [f"step-{step:06d}" for step in steps], f"left: {folders}, whole: {steps}"
        assert not self.store.files(FOLDER), f"left: {list(self.store.files(FOLDER))}"
