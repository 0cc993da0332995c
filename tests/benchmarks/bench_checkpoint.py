"""`make bench-checkpoint`: what a checkpoint costs training: seconds, memory, and how long it holds up steps.

The debug preset's model trains on made-up packs with and without saves, in turn; then a model of 300 million weights is
saved and loaded by one process and by two with FSDP2 (gloo), beside a plain file of as many bytes. Memory is what a
process takes beyond what it had before; the copies of its shard are most of it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from labeling.dataset import open_store
from training.batch import Sample, StepBatch
from training.checkpoint.saving import CheckpointSaver
from training.checkpoint.state import TrainingState
from training.config import CheckpointConfig, TrainingConfig, load_config
from training.packed_model import build_model
from training.parallel import distribute
from training.updates import Updates

OUT = Path("runs/bench/checkpoint.json")
LARGE = {"hidden_size": 1152, "depth": 12, "num_heads": 12, "num_kv_heads": 12, "caption_channels": 2048}
EVERY, ROUNDS = 15, 8  # steps between saves of the small model, and of those between in turn none
GB = 1e9
MOST_STALL = 0.05  # of a step's time, for each save
MOST_MEMORY = 1.0  # GB beyond the shard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="a large model of a tenth of the size")
    parser.add_argument("--folder", help="on the disk to write to, or s3://bucket/prefix; default: of temporary files")
    options = parser.parse_args()
    large = {**LARGE, "depth": 1} if options.small else LARGE
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=None if _is_s3(options.folder) else options.folder) as scratch:
        place = options.folder if _is_s3(options.folder) else scratch
        figures["debug"] = measure_stall(f"{place}/debug")
        show(figures)
        for count in (1, 2):
            reports = measure_memory(count, large, f"{place}/{count}")
            figures[f"{count} process{'es' * (count > 1)}"] = reports
    show(figures)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(figures, indent=1) + "\n")
    missed = []
    if figures["debug"]["stall_of_a_step"] > MOST_STALL:
        missed.append("stall_of_a_step")
    for name, reports in figures.items():
        missed += [f"{name}: {key}" for key, value in reports.items() if "beyond" in key and value > MOST_MEMORY]
    if missed:
        sys.exit(f"missed: {', '.join(missed)}")


def _is_s3(folder: str | None) -> bool:
    return bool(folder) and str(folder).startswith("s3://")


def show(figures: dict[str, dict[str, float]]) -> None:
    table = Table("what", "figure", "value", "target")
    targets = {"stall_of_a_step": f"≤ {MOST_STALL}"}
    for name, values in figures.items():
        for key, value in values.items():
            target = f"≤ {MOST_MEMORY}" if "beyond" in key else targets.get(key, "")
            table.add_row(name, key, f"{value:.3g}", target)
    Console().print(table)


def measure_stall(run: str) -> dict[str, float]:
    """Steps of the debug preset's model with saves and without, in turn."""
    torch.set_num_threads(1)
    values = load_config("debug").model_dump(mode="json")
    values["mixture"] = {"a": {"dataset": "none", "tasks": ["text2image"]}}
    config = TrainingConfig(**values)
    model = build_model(config)
    updates = Updates(model, config, torch.device("cpu"), 1)
    state = TrainingState(model, updates.optimizer, updates.average)
    saver = CheckpointSaver(open_store(run), state.tensors, CheckpointConfig(keep=1))
    batch = StepBatch(0, [[_sample(config, seed) for seed in range(8)]], 16)

    def steps(saves: bool) -> tuple[list[float], float]:
        """(seconds of each step, seconds held up by a save)."""
        waited, seconds = saver.waited, []
        for step in range(EVERY):
            began = time.perf_counter()
            updates.update(batch, None, saver.await_copies)
            if saves and step == 0:
                saver.save({"step": 1 + len(plain) * EVERY})
            seconds.append(time.perf_counter() - began)
        held = saver.waited - waited
        saver.wait()
        return seconds, held

    plain: list[list[float]] = []
    saving: list[list[float]] = []
    stalls = []
    for number in range(ROUNDS + 1):
        seconds, stall = steps(saves=True)
        others, _ = steps(saves=False)
        if number:  # the first one makes the optimizer's state and the copies' memory
            saving.append(seconds)
            stalls.append(stall)
            plain.append(others)
    step = statistics.median(second for round_ in plain for second in round_)
    return {
        "weights_millions": sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        "step_seconds": step,
        "stall_seconds": statistics.median(stalls),
        "stall_of_a_step": statistics.median(stalls) / step,
        "slower_while_written": sum(map(sum, saving)) / sum(map(sum, plain)),
    }


def _sample(config: TrainingConfig, seed: int) -> Sample:
    draws = np.random.default_rng(seed)
    latents = draws.standard_normal((2, 16, 16, 16)).astype(np.float16)
    text = draws.standard_normal((20, config.model.caption_channels)).astype(np.float16)
    return Sample("edges", latents, text, draws.random(2).astype(np.float32), np.ones(2, bool), seed)


def measure_memory(count: int, model: dict[str, Any], run: str) -> dict[str, float]:
    """Saves and loads of that many processes; of each figure the most that one has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    with context.Pool(count) as pool:
        reports = pool.starmap(save_and_load, [(rank, count, port, model, run) for rank in range(count)], chunksize=1)
    return {name: max(report[name] for report in reports) for name in reports[0]}


def save_and_load(rank: int, count: int, port: int, model_settings: dict[str, Any], run: str) -> dict[str, float]:
    """What one process of `count` does."""
    torch.set_num_threads(1)
    if count > 1:
        torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=count)
    config = TrainingConfig(
        name="checkpoint",
        steps=1,
        batch=8,
        size=64,
        mixture={"a": {"dataset": "none", "tasks": ["text2image"]}},
        model=model_settings,
        workers={"fsdp": count > 1},
    )
    model = distribute(build_model(config), config.workers, torch.device("cpu"), count)
    updates = Updates(model, config, torch.device("cpu"), count)
    for parameter in model.parameters():  # as a step leaves them
        moments = {key: torch.rand_like(parameter.detach()) for key in ("exp_avg", "exp_avg_sq")}
        updates.optimizer.state[parameter] = {"step": torch.tensor(1.0), **moments}
    state = TrainingState(model, updates.optimizer, updates.average)
    store = open_store(run)
    saver = CheckpointSaver(store, state.tensors, CheckpointConfig(keep=1))
    shard = sum(value.nbytes for value in _shards(state)) / GB
    sums = _sums(state)
    figures = {"shard_gb": shard}

    memory = _Memory()
    began = time.perf_counter()
    saver.save({"step": 1})
    saver.await_copies()
    figures["first_copy_seconds"] = time.perf_counter() - began
    saver.wait()
    figures["save_seconds"] = time.perf_counter() - began
    figures["save_gb_beyond_shard"] = memory.most() - shard
    began = time.perf_counter()
    saver.save({"step": 2})  # into memory that is there
    saver.await_copies()
    figures["copy_seconds"] = time.perf_counter() - began
    saver.wait()
    figures["second_save_seconds"] = time.perf_counter() - began
    if not _is_s3(run):
        figures["plain_file_seconds"] = _write_plain(_shards(state), run)
        figures["save_of_plain_file"] = figures["second_save_seconds"] / figures["plain_file_seconds"]

    updates.optimizer.state.clear()
    for value in _shards(state):
        value.zero_()
    memory = _Memory()
    began = time.perf_counter()
    state.restore(store, 2, saver.group)
    figures["load_seconds"] = time.perf_counter() - began
    figures["load_gb_beyond_moments"] = memory.most() - shard / 2  # which it makes
    assert _sums(state) == sums, "what was loaded differs from what was saved"
    if count > 1:
        torch.distributed.destroy_process_group()
    return figures


def _shards(state: TrainingState) -> list[torch.Tensor]:
    return [(v.to_local() if hasattr(v, "to_local") else v).detach() for v in state.tensors().values()]


def _sums(state: TrainingState) -> dict[str, float]:
    """Of each tensor's shard."""
    return {name: float(shard.double().sum()) for name, shard in zip(state.tensors(), _shards(state), strict=True)}


def _write_plain(shards: list[torch.Tensor], run: str) -> float:
    """Seconds for a file of the same bytes: the floor of a save."""
    path = Path(run, f"plain-{os.getpid()}")
    began = time.perf_counter()
    with path.open("wb") as file:
        for value in shards:
            file.write(memoryview(value.detach().reshape(-1).numpy()).cast("B"))
        os.fsync(file.fileno())
    seconds = time.perf_counter() - began
    path.unlink()
    return seconds


class _Memory:
    """What this process takes beyond what it has now, watched by a thread."""

    def __init__(self) -> None:
        self._before = self._highest = _resident()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(0.01):
            self._highest = max(self._highest, _resident())

    def most(self) -> float:
        """In GB."""
        self._over.set()
        self._thread.join()
        return (max(self._highest, _resident()) - self._before) / GB


def _resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
