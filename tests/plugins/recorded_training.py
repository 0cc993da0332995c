"""`onediffusion` for a soak: it records what trainings do, lets them go no further than a gate, and kills at traps.

`python -m recorded_training train CONFIG --run RUN` is that command. The environment variable SOAK names a folder:

    gate            the last step that may be read
    trap            a pattern of paths: the process that writes (or removes) such a one is killed halfway, once
    workers         the number of workers that is asked for
    samples/*.jsonl of each worker process: the samples that it was dealt, step by step
    losses.jsonl    of rank 0: step, loss, when, its process and the step that it began at, and the number of workers
"""

from __future__ import annotations

import fnmatch
import json
import os
import signal
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from training.plan.planned_sample import Leveled

SOAK = "SOAK"


def main() -> None:
    """The command line."""
    import pipelines.train
    import training.run
    from pipelines.cli import main as command_line

    set_traps()
    training.run._train_worker = recorded_worker
    pipelines.train.train = partial(pipelines.train.train, control=_control)
    command_line()


def _control() -> Any:
    from training.coordinator import ControlRequest

    text = _read("workers")
    return ControlRequest(workers=int(text) if text else None)


def folder_beside(run: str) -> Path:
    """What is SOAK to `worker_recorded_beside`."""
    return Path(f"{run}.recorded")


def worker_recorded_beside(values: dict[str, Any]) -> dict[str, Any]:
    """`recorded_worker` on a Ray that was started without SOAK."""
    os.environ[SOAK] = str(folder_beside(values["settings"].run))  # of this process, which ends with the worker
    return recorded_worker(values)


def marks_of(packs: list[list[Leveled]]) -> dict[int, int]:
    """Number → fingerprint of each sample that was dealt: its row, noise, noise levels and all else that is drawn."""
    return {
        planned.index: zlib.crc32(repr((planned, levels.tolist(), counted.tolist())).encode())
        for pack in packs
        for planned, levels, counted in pack
    }


def recorded_samples(folder: Path) -> dict[int, set[tuple[int, int]]]:
    """Step → (number, fingerprint) of every sample that any worker was ever dealt for it."""
    steps: dict[int, set[tuple[int, int]]] = defaultdict(set)
    for path in (folder / "samples").iterdir():
        for line in path.read_text().splitlines():
            with suppress(ValueError):  # cut by a kill
                dealt = json.loads(line)
                steps[dealt["step"] + 1] |= {(int(index), mark) for index, mark in dealt["samples"].items()}
    return dict(steps)


def recorded_worker(values: dict[str, Any]) -> dict[str, Any]:
    """What Ray Train runs in place of `training.run._train_worker`."""
    from training import worker
    from training.plan import dealing

    folder = Path(os.environ[SOAK])
    samples = (folder / "samples" / f"{time.time_ns()}-{os.getpid()}.jsonl").open("a", buffering=1)
    deal, log = dealing.Dealer.deal, worker._Worker._log

    def recorded_deal(self: Any, step: int, rank: int, workers: int) -> Any:
        while step > int(_read("gate") or 0):
            time.sleep(0.02)
        dealt = deal(self, step, rank, workers)
        record = {"step": step, "rank": rank, "workers": workers, "samples": marks_of(dealt[0])}
        samples.write(json.dumps(record) + "\n")
        return dealt

    def recorded_log(self: Any, record: dict[str, Any]) -> None:
        log(self, record)
        if self.rank == 0 and "loss" in record:
            line = {name: record[name] for name in ("step", "loss")} | {"at": time.time(), "process": os.getpid()}
            with (folder / "losses.jsonl").open("a") as losses:
                losses.write(json.dumps({**line, "start": self.start, "workers": self.workers}) + "\n")

    dealing.Dealer.deal, worker._Worker._log = recorded_deal, recorded_log
    set_traps()
    try:
        return worker.train_worker(values["settings"])
    finally:
        dealing.Dealer.deal, worker._Worker._log = deal, log


def set_traps() -> None:
    """Let this process be killed halfway through what it writes to, or removes from, a store."""
    from labeling.dataset.storage.local import LocalStore
    from labeling.dataset.storage.s3 import S3Store
    from training.metrics_logger import METRICS, MetricsLogger

    for kind in (LocalStore, S3Store):
        _trap_writes(kind)
    put, delete_tree, append = LocalStore.put, LocalStore.delete_tree, MetricsLogger.append

    def trapped_put(self: LocalStore, name: str, content: bytes) -> None:
        if _springs(f"{self.uri}/{name}"):
            self.scratch(name).write_bytes(content[: len(content) // 2])
            _die()
        put(self, name, content)

    def trapped_delete_tree(self: LocalStore, prefix: str) -> None:
        if prefix and _springs(f"{self.uri}/{prefix}/"):
            for name in list(self.walk(prefix))[:1]:
                self.delete(f"{prefix}/{name}")
            _die()
        delete_tree(self, prefix)

    def trapped_append(self: MetricsLogger, record: dict[str, Any]) -> None:
        if _springs(f"{self.store.uri}/{METRICS}"):
            self._file.write(json.dumps(record)[:20])
            self._file.flush()
            _die()
        append(self, record)

    LocalStore.put, LocalStore.delete_tree, MetricsLogger.append = trapped_put, trapped_delete_tree, trapped_append


def _trap_writes(kind: Any) -> None:
    put_stream: Callable[..., None] = kind.put_stream

    def trapped(self: Any, name: str, parts: Iterable[bytes | memoryview], size: int) -> None:
        put_stream(self, name, _halved(parts, size) if _springs(f"{self.uri}/{name}") else parts, size)

    kind.put_stream = trapped


def _halved(parts: Iterable[bytes | memoryview], size: int) -> Iterator[bytes | memoryview]:
    given = 0
    for part in parts:
        if given + len(part) > size // 2:
            yield part[: max(0, size // 2 - given)]
            time.sleep(0.2)  # what was given is on its way
            _die()
        given += len(part)
        yield part


def _springs(path: str) -> bool:
    """Whether the trap is for this path. It is gone then, so that it kills once."""
    if not (pattern := _read("trap")) or not fnmatch.fnmatch(path, pattern):
        return False
    try:
        Path(os.environ[SOAK], "trap").unlink()
    except FileNotFoundError:  # another process was faster
        return False
    return True


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("it is dead")


def _read(name: str) -> str:
    try:
        return Path(os.environ[SOAK], name).read_text()
    except FileNotFoundError:
        return ""


if __name__ == "__main__":
    from recorded_training import main as imported  # as Ray's workers import it, and not as __main__

    imported()
