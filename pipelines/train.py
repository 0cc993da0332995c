"""`onediffusion train`: a run from a configuration, with a progress bar."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cluster.session import cluster_has, own_ray, ray_session
from labeling.lease import lease
from labeling.storage import open_store
from model.errors import InputError
from pipelines.progress import progress
from training.checkpoint import FOLDER
from training.config import TrainingConfig
from training.loop import TrainingResult, Wish, run_training


def train(
    config: TrainingConfig, run: str, say: Callable[[str], None] = print, wish: Callable[[], Wish] = Wish
) -> TrainingResult:
    """Train with a bar on screen, saying what is resumed, left out or finished already.

    wish: see `training.loop.run_training`. Raises InputError when another job trains this run, or this machine has
    no room for its workers; a cluster may grow, so there they wait.
    """
    with lease(open_store(run), [FOLDER]), ray_session(), progress("train", config.steps, "steps") as advance:
        seen = 0
        _look_for_room(config, say)

        def tell(record: dict[str, Any]) -> None:
            nonlocal seen
            event = record["event"]
            if event == "mixture" and record["empty"]:
                say(f"train: no rows for {', '.join(record['empty'])}; these tasks are left out")
            elif event == "resume":
                say(f"train: continuing from step {record['step']}")
            elif event == "scale":
                say(f"train: going on from step {record['step']} with {record['workers']} workers")
            if event in ("resume", "step"):
                advance(record["step"] - seen)
                seen = record["step"]

        result = run_training(config, run, tell, wish)
        advance(result.step - seen)
    if result.already_finished:
        say(f"train: finished already, at step {result.step}")
    elif result.step < config.steps:
        say(f"train: stopped at step {result.step} of {config.steps} → {result.checkpoint or 'no checkpoint yet'}")
    else:
        say(f"train: {result.step - result.resumed_from} steps in {result.seconds:.0f} s → {result.checkpoint}")
    return result


def _look_for_room(config: TrainingConfig, say: Callable[[str], None]) -> None:
    """Say what is missing: Ray itself waits without a word for CPUs and GPUs that may never come."""
    workers, reader = config.workers, config.reader
    count = workers.count if isinstance(workers.count, int) else workers.count[0]
    # With one reader for each it is slower than with all, and goes on.
    needs = {"CPU": count * (workers.cpus + reader.cpus), "GPU": count * workers.gpus}
    for unit, needed in needs.items():
        there = cluster_has(unit)
        if needed <= there + 1e-6:
            continue
        who = "a worker and its reader ask" if count == 1 else f"{count} workers and a reader for each ask"
        asked = f"{who} for {needed:g} {unit}s, and Ray has {there:g}"
        less = f"workers.count, workers.{unit.lower()}s" + (", reader.cpus" if unit == "CPU" else "")
        if own_ray():
            raise InputError(f"train: {asked}: this machine's; ask for less ({less})")
        say(f"train: {asked}; waiting for nodes that may yet join (or stop it and ask for less: {less})")
