"""`make bench-train`: a training worker beside a bare loop of forward, backward and AdamW on the same packs.

One worker on the CPU with one thread, so that its readers have a core of their own where there are two. Both are
processes of their own, taken in turn; the ratio is of medians of the steps after the first ones. The time from the
command to the first step is printed by its parts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

SIZE, WIDTH, ROWS, GROUP = 256, 384, 256, 32
WARM = 10  # steps that are left out
STEPS = 50
TARGET = 0.95
MODEL = {"hidden_size": 216, "depth": 6, "num_heads": 6, "num_kv_heads": 6, "caption_channels": WIDTH}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--part", choices=("worker", "loop"), help=argparse.SUPPRESS)
    parser.add_argument("folder", nargs="?", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        print(json.dumps({"worker": run_worker, "loop": run_loop}[given.part](Path(given.folder))))
        return
    with tempfile.TemporaryDirectory(prefix="onediffusion-bench-") as folder:
        write_dataset(Path(folder, "pictures"))
        rounds = [(part("worker", folder), part("loop", folder)) for _ in range(given.rounds)]
    figures = summary(rounds)
    out = Path("runs", "bench")
    out.mkdir(parents=True, exist_ok=True)
    (out / "train.json").write_text(json.dumps(figures, indent=1) + "\n")
    show(figures)
    sys.exit(figures["ratio"] < TARGET)


def part(name: str, folder: str) -> dict[str, Any]:
    """What one process measured."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--part", name, folder]
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(result.stdout.splitlines()[-1]))


def write_dataset(folder: Path) -> None:
    """Pictures with edges, as the labelers write them: latents of noise, and prompts for both tasks."""
    from labeling.dataset import Dataset, write_shard

    random = np.random.default_rng(0)
    side = SIZE // 8
    row_groups = [GROUP] * (ROWS // GROUP)
    dataset = Dataset(folder)
    ids = [str(number) for number in range(ROWS)]
    entry = pa.struct(
        [("task", pa.string()), ("prompt", pa.string()), ("tokens", pa.int32()), ("embedding", pa.list_(pa.float16()))]
    )

    def write(group: str, columns: dict[str, pa.Array], parameters: dict[str, Any]) -> None:
        dataset.declare(group, {"labeler": group, "version": 1, "parameters": parameters, "weights": ""})
        table = pa.table({"id": ids, **columns, "error": pa.nulls(ROWS, pa.string())})
        write_shard(dataset.store, group, "000000", table, row_groups, "recipe")

    def latents() -> dict[str, pa.Array]:
        values = [random.normal(size=16 * side * side).astype(np.float16) for _ in ids]
        sides = pa.array([side] * ROWS, pa.int32())
        return {"latent": pa.array(values, pa.list_(pa.float16())), "latent_height": sides, "latent_width": sides}

    def entries() -> list[dict[str, Any]]:
        return [
            {"task": task, "prompt": task, "tokens": 32, "embedding": random.normal(size=32 * WIDTH).astype(np.float16)}
            for task in ("", "text2image", "edges")
        ]

    blank = pa.array([b""] * ROWS, pa.binary())
    write("images", {"image": blank}, {})
    write(f"latents-{SIZE}", latents(), {"codec": "dct"})
    write(f"latents-{SIZE}-edges", latents(), {"codec": "dct"})
    write("text", {"entries": pa.array([entries() for _ in ids], pa.list_(entry))}, {"encoder": "minilm"})
    description = {"schema": 1, "kind": "pictures", "shards": [{"name": "000000", "rows": ROWS}], "sources": []}
    dataset.store.put("dataset.json", json.dumps(description).encode())


def configuration(folder: Path, steps: int) -> Any:
    """A run with packs of one size, so that steps are alike."""
    from training.config import load_config

    overrides = {
        "size": SIZE,
        "steps": steps,
        "batch": 8,
        "log_every": 1,
        "mixture": {
            "pictures": {"dataset": str(folder / "pictures"), "tasks": ["text2image", "edges"]},
            "views": None,
        },
        "model": MODEL,
        "workers": {"count": 1, "threads": 1},
        "checkpoints": {"every": 10_000, "keep": 1, "first": False},
    }
    return load_config("debug", overrides)


def run_worker(folder: Path) -> dict[str, Any]:
    """Seconds of each step of a real run, and when what came before the first one had ended."""
    began = time.time()
    from cluster.session import ray_session
    from training.run import run_training

    steps, waits, marks = list[float](), list[float](), {"imports": time.time() - began}

    def progress(event: dict[str, Any]) -> None:
        if event["event"] == "mixture":
            marks.setdefault("manifest", time.time() - began)
        elif event["event"] == "step":
            steps.append(event["seconds"])
            waits.append(event["wait_share"])
            marks.setdefault("first step", time.time() - began)

    with tempfile.TemporaryDirectory(prefix="onediffusion-bench-") as run, ray_session():
        marks["Ray"] = time.time() - began
        run_training(configuration(folder, STEPS), run, progress)
    seconds = np.diff(steps)
    marks["first step"] -= float(np.median(seconds))
    marks["steps begin"] = marks.pop("first step")
    return {"step": statistics.median(seconds[WARM:]), "wait_share": statistics.mean(waits[WARM:]), "marks": marks}


def run_loop(folder: Path) -> dict[str, Any]:
    """Seconds of a step of the bare loop, and of the worker's own update, on the packs that the worker has."""
    import torch

    from training.batch import Sample
    from training.memory import keep_freed_memory
    from training.objective import flow_matching_loss
    from training.packed_model import build_model
    from training.plan.mixture import build_manifest
    from training.reader import PlanReader
    from training.updates import Updates

    keep_freed_memory()
    torch.set_num_threads(1)
    config = configuration(folder, STEPS)
    manifest = build_manifest(config.mixture, config.size, config.lanes)
    reader = PlanReader(manifest, config, "dct")
    batches = [reader.read(step, 0, 1) for step in range(STEPS)]
    for batch in batches:
        for pack in batch.packs:  # torch warns of memory that it must not write to
            pack[:] = [Sample(**{**vars(one), "latents": one.latents.copy(), "text": one.text.copy()}) for one in pack]
    model = build_model(config)
    device = torch.device("cpu")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    bare, whole = list[float](), list[float]()
    for batch in batches:
        started = time.perf_counter()
        optimizer.zero_grad()
        for pack in batch.packs:
            loss, _ = flow_matching_loss(model, pack, device)
            (loss / batch.frames_in_loss).backward()
        optimizer.step()
        bare.append(time.perf_counter() - started)
    updates = Updates(build_model(config), config, device, 1)
    updates.average.reset()
    for batch in batches:
        started = time.perf_counter()
        updates.update(batch)
        whole.append(time.perf_counter() - started)
    return {"bare": statistics.median(bare[WARM:]), "update": statistics.median(whole[WARM:])}


def summary(rounds: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    """Medians over the rounds."""
    workers, loops = zip(*rounds, strict=True)

    def median(values: list[dict[str, Any]], name: str) -> float:
        return float(statistics.median(value[name] for value in values))

    step, bare, update = median(workers, "step"), median(loops, "bare"), median(loops, "update")
    wait = median(workers, "wait_share")
    marks = {name: median([worker["marks"] for worker in workers], name) for name in workers[0]["marks"]}
    names = sorted(marks, key=lambda name: marks[name])
    ends = [marks[name] for name in names]
    start = {name: end - before for name, end, before in zip(names, ends, [0.0, *ends[:-1]], strict=True)}
    return {
        "ratio": bare / step,
        "step_seconds": step,
        "shares": {
            "forward, backward, AdamW": bare / step,
            "clipping and moving average": (update - bare) / step,
            "waiting for the batch": wait,
            "metrics, log and the rest": 1 - update / step - wait,
        },
        "start_seconds": ends[-1],
        "start": start,
        "cores": os.cpu_count(),
    }


def show(figures: dict[str, Any]) -> None:
    table = Table(title=f"a step of {figures['step_seconds']:.3f} s, and the start of {figures['start_seconds']:.1f} s")
    table.add_column("part")
    table.add_column("share", justify="right")
    for name, share in figures["shares"].items():
        table.add_row(name, f"{share:.1%}")
    for name, seconds in figures["start"].items():
        table.add_row(f"start: {name}", f"{seconds:.1f} s")
    table.add_row("bare loop ÷ worker", f"{figures['ratio']:.3f} (at least {TARGET})")
    Console().print(table)


if __name__ == "__main__":
    main()
