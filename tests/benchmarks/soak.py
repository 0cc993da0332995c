"""`make soak`: trainings that are disturbed at random moments train on the same samples, to the same losses.

An undisturbed training comes first. Others of the same configuration then meet faults, some of each kind: killed
workers, drivers, nodes and Rays; kills halfway through every file of a checkpoint; other numbers of workers; a full
disk; an S3 that fails. Every sample of every step, as workers were dealt it, and the loss of every step, also of those
that were done again, are compared with the undisturbed training's. The table goes to runs/bench/soak.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ray_head import ray_head, ray_node
from rich.console import Console
from rich.table import Table
from s3_proxy import serving
from s3_server import s3_server
from soak_faults import (
    WRITES,
    CutUploads,
    FailingS3,
    Fault,
    fill_disk,
    kill,
    kill_driver,
    killed_at,
    killed_starting,
    lost_machine,
    resize,
    small_disk,
    stop_worker,
)
from soak_training import PYTHONPATH, Loss, Training
from tiny_training import SIZE, WIDTH, write_pictures, write_views

from labeling.dataset import open_store

STEPS, EVERY = 60, 3
LEAST_FAULTS, MOST_DIFFERENCE = 20, 1e-5
S3_FAILS = 0.05


@dataclass
class Row:
    """A fault that a training has met.

    step: done last before it. seconds: from then until the training was further. resumed_from: None where the same
    processes went on. difference: the largest of a loss from there to the next fault, relative.
    """

    run: str
    fault: str
    step: int
    seconds: float
    resumed_from: int | None
    difference: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", help="one of the runs, for a try; given several times")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/soak.json"))
    options = parser.parse_args()
    rows: list[Row] = []
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        settings = settings_for(folder)
        calm = Training(folder / "calm", settings)
        calm.tell("gate", STEPS)
        began = time.monotonic()
        calm.start()
        assert calm.wait_for_end() == 0, calm.said()
        calm.check_whole()
        seconds = time.monotonic() - began
        print(f"undisturbed: {seconds:.0f} s", flush=True)
        for name, run in RUNS.items():
            if options.only and name not in options.only:
                continue
            began = time.monotonic()
            try:
                rows += run(name, folder / name, settings, calm, random.Random(f"{options.seed} {name}"))
            except Exception as error:  # the other runs go on
                wrong.append(f"{name}: {error}")
            print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    show(rows)
    wrong += [f"{row.run}, {row.fault}: losses differ by {row.difference:.1e}" for row in rows if not _is_close(row)]
    if not options.only and len(rows) < LEAST_FAULTS:
        wrong.append(f"{len(rows)} faults, not {LEAST_FAULTS}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figures = {"seed": options.seed, "steps": STEPS, "undisturbed_seconds": round(seconds, 1), "wrong": wrong}
    options.out.write_text(json.dumps({**figures, "faults": [asdict(row) for row in rows]}, indent=1) + "\n")
    if wrong:
        sys.exit("\n".join(wrong))


def settings_for(folder: Path) -> dict[str, Any]:
    """A training of the debug preset's model on small datasets, which lie in `folder`."""
    import skimage

    pictures = write_pictures(folder / "pictures", Path(skimage.__file__).parent / "data")
    views = write_views(folder / "views")
    tasks = ["text2image", "edges", "segmentation", "deblurring"]
    return {
        "steps": STEPS,
        "size": SIZE,
        "log_every": 1,
        "mixture": {
            "pictures": {"dataset": str(pictures), "tasks": tasks},
            "views": {"dataset": str(views), "tasks": ["views"]},
        },
        "model": {"caption_channels": WIDTH},
        # At a higher rate the rounding of other numbers of workers grows from step to step.
        "optimizer": {"learning_rate": 1e-4, "warmup": 10, "schedule": "constant"},
        "reader": {"prefetch": 1},
        "workers": {"count": 1, "threads": 1, "max_failures": -1},
        "checkpoints": {"every": EVERY, "keep": 2, "first": False},
    }


def show(rows: Sequence[Row]) -> None:
    table = Table("run", "fault", "step", "seconds lost", "resumed from", "loss difference")
    for row in rows:
        resumed = "went on" if row.resumed_from is None else str(row.resumed_from)
        table.add_row(row.run, row.fault, str(row.step), f"{row.seconds:.1f}", resumed, f"{row.difference:.1e}")
    Console(width=120).print(table)


def _is_close(row: Row) -> bool:
    return row.difference <= MOST_DIFFERENCE


def disturb(name: str, training: Training, faults: dict[str, Fault], draw: random.Random, calm: Training) -> list[Row]:
    """Let a training meet faults at random steps, in order, and compare what it has done."""
    rows = [Row(name, fault, 0, 0.0, None) for fault in faults]
    share = STEPS // (len(faults) + 1)
    steps = [share * (number + 1) + draw.randrange(max(1, share - EVERY)) for number in range(len(faults))]
    began = []
    try:
        for number, (row, meet, step) in enumerate(zip(rows, faults.values(), steps, strict=True)):
            training.tell("gate", step + 2)
            if training.has_ended:
                training.start()
            training.wait(lambda step=step: training.newest() >= step)
            before = training.losses()[-1]
            began.append(time.time())
            training.tell("gate", [*steps, STEPS][number + 1] + 2)
            others = meet(training, draw)
            after = _further(training, before, began[-1], others)
            own = [loss for loss in training.losses() if loss["process"] == before["process"]]
            last = own[-1] if others else before
            row.step, row.resumed_from = last["step"], after["start"] if others else None
            row.seconds = after["at"] - last["at"]
            print(f"  {name}: {row.fault} at {row.step}, {row.seconds:.1f} s, from {row.resumed_from}", flush=True)
        training.tell("gate", STEPS)
        assert training.wait_for_end() == 0, training.said()
    finally:
        training.end()
    compare(training, calm, rows, began)
    return rows


def _further(training: Training, before: Loss, at: float, others: bool) -> Loss:
    """Start it again as often as it ends, until it is further than before; the record of that.

    others: other processes than the one that did the step `before` go on.
    """
    deadline = time.monotonic() + 600
    while True:
        losses = training.losses()
        same = [loss["step"] for loss in losses if loss["process"] == before["process"]]
        for loss in losses:
            is_other = loss["process"] != before["process"]
            if loss["at"] > at and loss["step"] > (same[-1] if others else before["step"]) and is_other >= others:
                return loss
        assert time.monotonic() < deadline, f"it comes no further than {same[-1]}:\n{training.said()}"
        if training.has_ended:
            training.wait_for_end()
            training.start()
        time.sleep(0.05)


def compare(training: Training, calm: Training, rows: Sequence[Row], began: Sequence[float]) -> None:
    """Fill in how far losses were off, and raise AssertionError where samples differ or something is left behind."""
    right = {loss["step"]: loss["loss"] for loss in calm.losses()}
    ends = [*began[1:], float("inf")]
    for row, begin, end in zip(rows, began, ends, strict=True):
        losses = [loss for loss in training.losses() if begin < loss["at"] <= end]
        row.difference = max((abs(loss["loss"] / right[loss["step"]] - 1) for loss in losses), default=0.0)
    samples, expected = training.samples(), calm.samples()
    other = [step for step in range(1, STEPS + 1) if samples.get(step) != expected[step]]
    assert not other, f"other samples at steps {other}"
    training.check_whole()


def shuffled(faults: dict[str, Fault], draw: random.Random) -> dict[str, Fault]:
    return {name: faults[name] for name in draw.sample(list(faults), len(faults))}


def alone(name: str, folder: Path, settings: dict[str, Any], calm: Training, draw: random.Random) -> list[Row]:
    """One worker on a Ray of its own."""
    faults = {
        "SIGKILL of the worker": kill("worker"),
        "SIGKILL of the driver": kill_driver,
        "SIGKILL of the raylet": kill("raylet"),
        "the worker stands still": stop_worker,
        "SIGKILL within config.yaml": killed_starting("*/config.yaml"),
        "SIGKILL within the lease": killed_starting("*/running-*.json"),
    }
    return disturb(name, Training(folder, settings), shuffled(faults, draw), draw, calm)


def writing(name: str, folder: Path, settings: dict[str, Any], calm: Training, draw: random.Random) -> list[Row]:
    """Kills halfway through each file that a worker writes."""
    return disturb(name, Training(folder, settings), shuffled(WRITES, draw), draw, calm)


def two_workers(name: str, folder: Path, settings: dict[str, Any], calm: Training, draw: random.Random) -> list[Row]:
    """Two workers on a Ray of their own."""
    faults = {
        "SIGKILL of one of two workers": kill("worker"),
        "SIGKILL of the coordinator": kill("coordinator"),
        "SIGKILL within the second shard": killed_at("*/checkpoints/step-*/shard-00001-*"),
        "the driver's machine is lost": lost_machine,
    }
    two = {**settings, "workers": {**settings["workers"], "count": 2, "cpus": 0.25}}
    return disturb(name, Training(folder, two), shuffled(faults, draw), draw, calm)


def resized(name: str, folder: Path, settings: dict[str, Any], calm: Training, draw: random.Random) -> list[Row]:
    """One worker, two, one."""
    faults = {"two workers instead of one": resize(2), "one worker instead of two": resize(1)}
    small = {**settings, "workers": {**settings["workers"], "cpus": 0.25}}
    return disturb(name, Training(folder, small), faults, draw, calm)


def two_nodes(name: str, folder: Path, settings: dict[str, Any], calm: Training, draw: random.Random) -> list[Row]:
    """A worker on each of two nodes."""
    elastic = {**settings, "workers": {**settings["workers"], "count": [1, 2], "cpus": 1.25}}
    with (
        ray_head(_made(folder / "head"), {"SOAK": str(folder), "PYTHONPATH": PYTHONPATH}) as head,
        ExitStack() as nodes,
    ):
        raylet = nodes.enter_context(ray_node(head, 2))
        environment = {**head.environment, "RAY_ADDRESS": head.gcs, "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "6"}

        def kill_node(training: Training, draw: random.Random) -> bool:
            assert any("RayTrainWorker" in "".join(process.cmdline()[:1]) for process in raylet.children())
            raylet.send_signal(signal.SIGKILL)
            return True

        faults = {"SIGKILL of a node of two": kill_node, "SIGKILL of the driver of a cluster": kill_driver}
        return disturb(name, Training(folder, elastic, environment=environment), faults, draw, calm)


def full_disk(name: str, folder: Path, settings: dict[str, Any], calm: Training, draw: random.Random) -> list[Row]:
    """On a small disk, which others fill."""
    faults = {"a disk that takes no checkpoint": fill_disk(1 << 20), "a disk that takes nothing": fill_disk(0)}
    with small_disk(_made(folder.with_name(f"{name}-disk"))) as disk:
        if disk is None:
            print(f"{name}: left out, this user may not mount a file system", flush=True)
            return []
        return disturb(name, Training(folder, settings, f"{disk}/run"), shuffled(faults, draw), draw, calm)


def failing_s3(name: str, folder: Path, settings: dict[str, Any], calm: Training, draw: random.Random) -> list[Row]:
    """Datasets and run on S3, of which every twentieth answer fails, all the time."""
    with s3_server(_made(folder.with_name(f"{name}-server"))) as environment:
        seed = draw.randrange(1 << 30)
        proxy = FailingS3(environment["AWS_ENDPOINT_URL"], share=S3_FAILS, seed=seed, handler=CutUploads)
        with serving(proxy):
            environment["AWS_ENDPOINT_URL"] = proxy.address
            os.environ |= environment  # for this process's own look at it
            mixture = {
                source: {**values, "dataset": _upload(values["dataset"])}
                for source, values in settings["mixture"].items()
            }

            def cut(training: Training, draw: random.Random) -> bool:
                proxy.cuts = 2
                training.wait(lambda: not proxy.cuts)
                return False

            faults = {
                "two cut uploads": cut,
                "SIGKILL within an upload": killed_at("s3://*/shard-*"),
                "SIGKILL of the worker": kill("worker"),
                "SIGKILL of the driver": kill_driver,
            }
            on_s3 = Training(folder, {**settings, "mixture": mixture}, "s3://lab/run", environment)
            began = time.monotonic()
            rows = disturb(name, on_s3, shuffled(faults, draw), draw, calm)
            failed = sum(proxy.counts[fault] for fault in ("500", "503", "no answer", "cut"))
            fault = f"{failed} of {proxy.requests} answers of S3 fail"
            lost = time.monotonic() - began - sum(row.seconds for row in rows)
            return [Row(name, fault, 0, lost, None, max(row.difference for row in rows)), *rows]


def _upload(dataset: str) -> str:
    address = f"s3://lab/{Path(dataset).name}"
    store = open_store(address)
    for path in sorted(path for path in Path(dataset).rglob("*") if path.is_file()):
        store.put(path.relative_to(dataset).as_posix(), path.read_bytes())
    return address


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


RUNS: dict[str, Callable[[str, Path, dict[str, Any], Training, random.Random], list[Row]]] = {
    "alone": alone,
    "writing": writing,
    "two workers": two_workers,
    "resized": resized,
    "two nodes": two_nodes,
    "full disk": full_disk,
    "S3": failing_s3,
}

if __name__ == "__main__":
    main()
