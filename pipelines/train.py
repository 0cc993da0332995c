"""`onediffusion train`: a run from a configuration, with a progress bar."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cluster.ray_environment import starts_own_ray
from cluster.session import cluster_has, ray_session
from labeling.dataset import lease, open_store
from model.inputs import InputError
from pipelines.progress import progress
from training.checkpoint import FOLDER
from training.config import TrainingConfig
from training.coordinator import Wish
from training.loop import TrainingResult, run_training


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
            elif event == "leave":
                say("train: a node is taken away; its workers write a checkpoint and go on elsewhere")
            if event in ("resume", "step"):
                advance(record["step"] - seen)
                seen = record["step"]

        result = run_training(config, run, tell, _possible(wish, config, say))
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
    for asked, less in _missing(config, config.workers.count):
        if starts_own_ray():
            raise InputError(f"train: {asked}: this machine's; ask for less ({less})")
        say(f"train: {asked}; waiting for nodes that may yet join (or stop it and ask for less: {less})")


def _possible(wish: Callable[[], Wish], config: TrainingConfig, say: Callable[[str], None]) -> Callable[[], Wish]:
    """The same wishes, but for workers that this machine has no room for: it goes on with those it has, and says so."""
    refused: set[int | tuple[int, int]] = set()

    def wished() -> Wish:
        wanted = wish()
        if wanted.workers is None or not starts_own_ray() or not (missing := _missing(config, wanted.workers)):
            return wanted
        if wanted.workers not in refused:
            refused.add(wanted.workers)
            say(f"train: {missing[0][0]}: this machine's; it goes on with the workers it has")
        return Wish(wanted.stop)

    return wished


def _missing(config: TrainingConfig, workers: int | tuple[int, int]) -> list[tuple[str, str]]:
    """What so many workers need and Ray has not, in words, and what to ask less of."""
    each, reader = config.workers, config.reader
    count = workers if isinstance(workers, int) else workers[0]
    # With one reader for each it is slower than with all, and goes on.
    needs = {"CPU": count * (each.cpus + reader.cpus), "GPU": count * each.gpus}
    found = []
    for unit, needed in needs.items():
        there = cluster_has(unit)
        if needed > there + 1e-6:
            who = "a worker and its reader ask" if count == 1 else f"{count} workers and a reader for each ask"
            less = f"workers.count, workers.{unit.lower()}s" + (", reader.cpus" if unit == "CPU" else "")
            found.append((f"{who} for {needed:g} {unit}s, and Ray has {there:g}", less))
    return found
