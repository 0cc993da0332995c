"""`onediffusion train`: a run from a configuration, with a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

from cluster.own_ray import NodeLost
from cluster.ray_environment import starts_own_ray
from cluster.session import cluster_has, ray_session
from labeling.dataset import lease, open_store
from model.inputs import InputError, WorkFailed, causes, one_line, require
from pipelines.progress import progress
from training.checkpoint import FOLDER, whole_checkpoints
from training.config import TrainingConfig
from training.coordinator import ControlRequest
from training.run import TrainingResult, run_training

Workers = int | tuple[int, int]


def train(
    config: TrainingConfig,
    run: str,
    say: Callable[[str], None] = print,
    control: Callable[[], ControlRequest] = ControlRequest,
    from_checkpoint: str | None = None,
    went_back: Callable[[], None] = lambda: None,
) -> TrainingResult:
    """Train with a bar on screen, saying what is resumed, left out or finished already.

    control, from_checkpoint: see `training.run.run_training`. went_back: called when the checkpoints after
    `from_checkpoint` are removed. Raises InputError when another job trains this run, a tracker is not installed, or
    this machine has too few CPUs or GPUs for its workers; a cluster may grow, so there they wait.
    """
    require(*(name for name in config.trackers if name != "tensorboard"))
    store = open_store(run)
    finished = from_checkpoint is None and any(step >= config.steps for step in whole_checkpoints(store))
    session = nullcontext() if finished else ray_session()  # to say so needs no Ray
    bar = progress("train", config.steps, "steps")
    with _rank_named(run), lease(store, [FOLDER]), session, bar as advance:
        step = 0
        if not finished:
            _check_resources(config, say)

        def show(event: dict[str, Any]) -> None:
            nonlocal step
            kind = event["event"]
            if kind == "mixture" and event["empty"]:
                say(f"train: no rows for {', '.join(event['empty'])}; these tasks are left out")
            elif kind == "resume":
                say(f"train: continuing from step {event['step']}")
            elif kind == "back":
                went_back()
                removed = ", ".join(f"step-{later:06d}" for later in event["removed"]) or "nothing"
                say(f"train: back to step {event['step']}; removed {removed}")
            elif kind == "scale":
                say(f"train: going on from step {event['step']} with {event['workers']} workers")
            elif kind == "failure":
                place = "before their first step" if event["step"] is None else f"at step {event['step']}"
                again = f", {event['times']} times in a row" if event["times"] > 1 else ""
                say(f"train: the workers failed {place}{again} ({event['reason'] or 'no reason given'})")
            elif kind == "leave":
                say("train: a node is taken away; its workers write a checkpoint and go on elsewhere")
            if kind in ("resume", "step"):
                advance(event["step"] - step, before=kind == "resume")
                step = event["step"]

        result = run_training(config, run, show, refuse_impossible(control, config, say), from_checkpoint)
        advance(result.step - step)
    if result.already_finished:
        say(f"train: finished already, at step {result.step}")
    elif result.step < config.steps:
        say(f"train: stopped at step {result.step} of {config.steps} → {result.checkpoint or 'no checkpoint yet'}")
    else:
        say(f"train: {result.step - result.resumed_from} steps in {result.seconds:.0f} s → {result.checkpoint}")
    if config.lora and result.step >= config.steps:
        say(f"train: adapter → {write_adapter(run)}")
    if speed := speed_line(result.metrics):
        say(f"train: {speed}")
    return result


def write_adapter(run: str) -> str:
    """Write the averaged adapter of a run's newest checkpoint beside its checkpoints, where `load_lora_weights` looks
    for one in the run's folder. Returns the file's address."""
    from training.checkpoint.loading import packed_adapter
    from training.lora import LORA_FILE

    store = open_store(run)
    store.put(LORA_FILE, packed_adapter(run))
    return f"{store.uri}/{LORA_FILE}"


@contextmanager
def _rank_named(run: str) -> Iterator[None]:
    """Say of a process that died which rank it was, and where what it printed last is; a lost node is said already."""
    try:
        yield
    except NodeLost:
        raise
    except WorkFailed as error:
        ranks = [rank for one in causes(error) for rank in getattr(one, "worker_failures", None) or ()]
        if not ranks:
            raise
        printed = f"`onediffusion logs {run} --rank {min(ranks)}` shows what it printed last"
        raise WorkFailed(f"train: rank {min(ranks)} died, {printed} ({one_line(error, 200)})") from error


def speed_line(metrics: Mapping[str, Any]) -> str:
    """How fast a run was when it logged last: its tokens, FLOP, and what share of the GPUs' peak; "" where unknown."""
    if not metrics.get("tflop_per_step"):
        return ""
    parts = [
        f"{metrics['tokens_per_second']:,.0f} image tokens/s",
        f"{metrics['tflop_per_step']:.3g} TFLOP a step",
        f"{metrics['tflops_per_second']:.3g} TFLOP/s",
        f"{metrics['wait_share']:.0%} of the time waiting for data",
    ]
    return ", ".join(parts + ([f"MFU {metrics['mfu']:.0%}"] if "mfu" in metrics else []))


def refuse_impossible(
    control: Callable[[], ControlRequest], config: TrainingConfig, say: Callable[[str], None]
) -> Callable[[], ControlRequest]:
    """Leave out requests for workers that this machine has too few resources for, and say so once."""
    refused: set[Workers] = set()

    def possible() -> ControlRequest:
        request = control()
        if request.workers is None or not starts_own_ray() or not (shortages := _shortages(config, request.workers)):
            return request
        if request.workers not in refused:
            refused.add(request.workers)
            say(f"train: {shortages[0][0]}: this machine's; it goes on with the workers it has")
        return ControlRequest(request.stop)

    return possible


def _check_resources(config: TrainingConfig, say: Callable[[str], None]) -> None:
    """Say what is missing: Ray itself waits without a word for CPUs and GPUs that may never come."""
    for shortage, settings in _shortages(config, config.workers.count):
        if starts_own_ray():
            raise InputError(f"train: {shortage}: this machine's; ask for less ({settings})")
        say(f"train: {shortage}; waiting for nodes that may yet join (or stop it and ask for less: {settings})")


def _shortages(config: TrainingConfig, workers: Workers) -> list[tuple[str, str]]:
    """What so many workers need and Ray does not have: (in words, the settings that ask for it)."""
    count = workers if isinstance(workers, int) else workers[0]
    cpus, gpus = config.workers.cpus, config.workers.gpus
    # One process that reads for each worker is enough to run, more slowly than with all of them.
    reads = config.reader.processes > 0
    needs = {"CPU": count * (cpus + config.reader.cpus * reads), "GPU": count * gpus}
    shortages = []
    for unit, needed in needs.items():
        available = cluster_has(unit)
        if needed > available + 1e-6:
            who = "a worker asks" if count == 1 else f"{count} workers ask"
            if reads:
                who = "a worker and its reader ask" if count == 1 else f"{count} workers and a reader for each ask"
            settings = f"workers.count, workers.{unit.lower()}s" + (", reader.cpus" if reads and unit == "CPU" else "")
            shortages.append((f"{who} for {needed:g} {unit}s, and Ray has {available:g}", settings))
    return shortages
