"""The driver of a training run: it starts groups of workers with Ray Train, monitors them, and returns the result."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from labeling.dataset import Store, is_text, open_store
from model.inputs import InputError
from model.inputs.yaml_files import parse_yaml, to_yaml
from training.anomalies import SKIPPED
from training.checkpoint import (
    FOLDER,
    check_checkpoint,
    checkpoint_name,
    find_step,
    remove_checkpoint,
    whole_checkpoints,
)
from training.config import TrainingConfig, override_config, parse_config
from training.coordinator import ControlRequest, Coordinator, Progress, await_node_removal, monitor
from training.failures import FailureWatch
from training.memory import COMPILERS
from training.metrics_logger import read_metrics
from training.plan.manifest import FIRST_MANIFEST, Manifest
from training.plan.mixture import build_manifest, with_encoders
from training.rank_output import captured_output
from training.worker_settings import WorkerSettings

if TYPE_CHECKING:
    from training.ray_internals import StoppableTrainer

CONFIG = "config.yaml"


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended.

    checkpoint: address of the last one ("" where a run was stopped before its first); resumed_from: the step it
    started at this time; already_finished: there was nothing to do; rows: eligible rows of each task; metrics: the last
    record of metrics.jsonl; seconds: of this time, start to end.
    """

    run: str
    checkpoint: str
    step: int
    resumed_from: int
    already_finished: bool
    rows: dict[str, int]
    metrics: dict[str, Any]
    seconds: float


def run_training(
    config: TrainingConfig,
    run_uri: str,
    progress: Progress | None = None,
    control: Callable[[], ControlRequest] = ControlRequest,
    from_checkpoint: str | None = None,
) -> TrainingResult:
    """Train as configured, continuing from the run's newest whole checkpoint if it has one.

    run_uri: folder or s3:// address of the run. Ray must be running (`cluster.session.ray_session`).
    progress: called in this process with dicts that have an "event": "mixture" (rows: eligible rows of each task;
    empty: tasks without any, which are left out), "resume" (step), "step" (a record of metrics.jsonl, and steps),
    "checkpoint" (step, checkpoint: its address, when it is whole), "back" (step, removed: steps of checkpoints),
    "scale" (step, workers), "leave" (a node of the workers is being removed), "failure" (step that had begun or None,
    checkpoint: step of the newest, reason, times: so often at this step since that checkpoint).
    control: asked twice a second. To change the workers, the present ones write a checkpoint and others continue from
    it: which samples a step has does not depend on who computes it. A run that was stopped has a `step` below
    config.steps.
    from_checkpoint: name of the checkpoint to continue from, as in step-000500, when the newest one is not wanted;
    newer ones are removed, and their steps done again.
    Raises InputError for what a user can correct: datasets, configuration, a run of another configuration, a damaged
    checkpoint, S3.
    """
    began = time.monotonic()
    progress = progress or (lambda event: None)
    store = open_store(run_uri)
    checkpoints = whole_checkpoints(store)
    back = None if from_checkpoint is None else _sound_step(store, from_checkpoint)
    start = back if back is not None else checkpoints[-1] if checkpoints else 0
    finished = bool(checkpoints) and start >= config.steps
    if checkpoints:
        _check_same(config, store)
        if back is None and not finished:
            check_checkpoint(store, start)
    elif config.initialize:
        from training.checkpoint.state import initial_weights  # it imports torch

        initial_weights(config)
    pinned = _pin(config, store, resumes=bool(checkpoints))
    manifest, validation_manifest = pinned, None
    if config.validation.share:
        manifest, validation_manifest = pinned.split(config.validation.share, config.seed)
    # What is refused is refused by now, and has written nothing.
    if back is not None:
        _go_back(store, back, progress)
    _write(config, store, None if checkpoints else pinned)
    rows = manifest.counts()
    progress({"event": "mixture", "rows": rows, "empty": [task for task, count in rows.items() if not count]})
    if checkpoints and not finished:
        progress({"event": "resume", "step": start})
    step, request, failures = start, control(), FailureWatch(store)
    while step < config.steps and not request.stop:
        if request.workers is not None and request.ends(config):
            config = _scaled(config, request.workers)
            progress({"event": "scale", "step": step, "workers": request.workers})
        if not isinstance(config.workers.count, int):
            await_node_removal(control)
        request = _run_workers(config, store.uri, manifest, validation_manifest, progress, control, failures)
        step = next(iter(whole_checkpoints(store)[-1:]), 0)  # a run that ended before its first step has none
    return TrainingResult(
        run=store.uri,
        checkpoint=f"{store.uri}/{checkpoint_name(step)}" if whole_checkpoints(store) else "",
        step=step,
        resumed_from=start,
        already_finished=finished,
        rows=rows,
        metrics=next(iter(read_metrics(store)[-1:]), {}),
        seconds=time.monotonic() - began,
    )


def read_run(run_uri: str) -> tuple[TrainingConfig, Manifest]:
    """The configuration of a run, and the rows that it trains on, where its datasets are now.

    Raises InputError where there is no run, or its manifest is gone or damaged.
    """
    store = open_store(run_uri)
    place = f"{store.uri}/{CONFIG}"
    try:
        values: Mapping[str, Any] = parse_yaml(store.read(CONFIG).decode(), place)
    except FileNotFoundError:
        raise InputError(f"{place}: no such file; is this a run?") from None
    config = parse_config(values, place)
    datasets = {name: source.dataset for name, source in config.mixture.items()}
    manifest = Manifest.read(store).at_addresses(datasets)
    return config, manifest.split(config.validation.share, config.seed)[0] if config.validation.share else manifest


def _pin(config: TrainingConfig, store: Store, resumes: bool) -> Manifest:
    """The run's manifest: one that resumes keeps what it began with."""
    if not resumes:
        return build_manifest(config.mixture, config.size, config.lanes, config.text_encoder, config.codec)
    datasets = {name: source.dataset for name, source in config.mixture.items()}
    return with_encoders(Manifest.read(store).at_addresses(datasets), config)


def _write(config: TrainingConfig, store: Store, manifest: Manifest | None) -> None:
    """Write the run's configuration, and its manifest where it begins."""
    if manifest is not None:
        manifest.write(store)
        for name in (FIRST_MANIFEST, SKIPPED):  # of a run that began here and wrote no checkpoint
            store.delete(name)
    store.put(CONFIG, to_yaml(config.model_dump(mode="json")).encode())


def _sound_step(store: Store, name: str) -> int:
    """The step of the checkpoint of that name, whose every byte is compared. Raises InputError."""
    step = find_step(store, name)
    check_checkpoint(store, step, content=True)
    return step


def _go_back(store: Store, step: int, progress: Progress) -> None:
    """Remove the checkpoints after that of `step`, the newest first: killed meanwhile, it can go back again."""
    newer = [later for later in whole_checkpoints(store) if later > step]
    for later in reversed(newer):
        remove_checkpoint(store, later)
    progress({"event": "back", "step": step, "removed": newer})


def _scaled(config: TrainingConfig, workers: int | tuple[int, int]) -> TrainingConfig:
    """The configuration with another number of workers. Raises InputError for one that does not fit it."""
    return parse_config(override_config(config.model_dump(mode="json"), {"workers": {"count": workers}}), "workers")


def _run_workers(
    config: TrainingConfig,
    run: str,
    manifest: Manifest,
    validation_manifest: Manifest | None,
    progress: Progress,
    control: Callable[[], ControlRequest],
    failures: FailureWatch,
) -> ControlRequest:
    """Run one group of workers, to the last step or until a request ends it. Returns that request.

    Raises InputError where it fails again and again at the same step.
    """
    import ray
    from ray.exceptions import ActorDiedError
    from ray.train import TrainingFailedError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # On this process's node: of all nodes, the only one that the run cannot lose.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    coordinator = ray.remote(num_cpus=0, scheduling_strategy=here)(Coordinator).remote()
    readers = readers_per_worker(config, ray.cluster_resources().get("CPU", 0.0))
    codec, text_encoder = encoders(manifest, config)
    settings = WorkerSettings(
        config=config,
        run=run,
        folder=os.getcwd(),
        manifest=ray.put(manifest),
        coordinator=coordinator,
        codec=codec,
        text_encoder=text_encoder,
        tasks=_tasks(manifest),
        readers=readers,
        validation_manifest=ray.put(validation_manifest) if validation_manifest else None,
        validation_tasks=_tasks(validation_manifest) if validation_manifest else (),
    )
    requests = [ControlRequest()]
    # The workers write checkpoints themselves. Ray only needs a folder for its own state; other nodes do not read it.
    with tempfile.TemporaryDirectory(prefix="onediffusion-") as ray_state:
        trainer = _trainer(settings, ray_state)

        def watched(event: dict[str, Any]) -> None:
            if event["event"] == "failure":
                if ray.get(coordinator.failure.remote()):  # what the user has to correct is told in its own words
                    return
                event = failures.add(event["step"], event["reason"])
                if verdict := failures.verdict(event):
                    ray.get(coordinator.fail.remote(verdict))
                    trainer.end()
            progress(event)

        try:
            with monitor(coordinator, config, watched, control, requests, trainer.end):
                trainer.fit()
        except ActorDiedError:
            ended = trainer.ended
            # Gives back what its workers had; of a controller that was ended, what it still asked for at that moment.
            trainer.end()
            if not ended:
                raise
        except TrainingFailedError:
            failure = ray.get(coordinator.failure.remote())
            if failure is None:
                raise
            raise InputError(failure) from None
        except KeyboardInterrupt:
            trainer.end()
            raise
        failure = ray.get(coordinator.failure.remote())
        if failure is not None:
            raise InputError(failure)
    return requests[-1]


def _trainer(settings: WorkerSettings, ray_state: str) -> StoppableTrainer:
    """Ray's trainer of a group of workers. ray_state: a folder for what Ray keeps of them."""
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig

    # After Ray's start.
    from training.ray_internals import FailureReporter, ProcessGroup, ReasonReporter, StoppableTrainer

    config, workers = settings.config, settings.config.workers
    cpus = workers.cpus + settings.readers * config.reader.cpus * config.reader.beside
    resources = {"CPU": cpus, **({"GPU": workers.gpus} if workers.gpus else {})}
    return StoppableTrainer(
        coordinator=settings.coordinator,
        run=settings.run,
        train_loop_per_worker=_train_worker,
        train_loop_config={"settings": settings},
        backend_config=ProcessGroup("nccl" if workers.gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers.count, use_gpu=workers.gpus > 0, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=config.name,
            storage_path=ray_state,
            failure_config=FailureConfig(max_failures=workers.max_failures),
            logging_config=LoggingConfig(log_level="ERROR"),
            callbacks=[ReasonReporter(settings.coordinator), FailureReporter(settings.coordinator)],
        ),
    )


def _train_worker(values: dict[str, Any]) -> dict[str, Any]:
    """What Ray Train runs on each worker: only there training.worker, and with it torch, is imported."""
    from ray.train import get_context

    # Read when torch compiles for the first time.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(COMPILERS))

    settings: WorkerSettings = values["settings"]
    with captured_output(settings.run, get_context().get_world_rank()):
        from training.worker import train_worker

        return train_worker(settings)


def readers_per_worker(config: TrainingConfig, cpus: float) -> int:
    """How many processes that read each worker has and requests CPUs for: as configured, or fewer where `cpus` do not
    suffice.

    cpus: of the whole cluster. Which samples are read does not depend on the number.
    """
    workers, reader = config.workers, config.reader
    least = workers.count if isinstance(workers.count, int) else workers.count[0]
    if not reader.cpus or not reader.processes:
        return reader.processes
    fitting = int((cpus / least - workers.cpus) / reader.cpus + 1e-6)
    return max(1, min(fitting, reader.processes))


def _tasks(manifest: Manifest) -> tuple[str, ...]:
    """The tasks that have eligible rows, in order."""
    return tuple(task for task, count in manifest.counts().items() if count)


def encoders(manifest: Manifest, config: TrainingConfig) -> tuple[str, str]:
    """(codec, text encoder) that the latents and prompts are made with: the run's where it encodes some itself, else
    parameters of their labelers."""
    groups = [item for source in manifest.sources.values() for item in source.declarations.items()]
    codec = next(declared["parameters"]["codec"] for group, declared in groups if group.startswith("latents-"))
    encoder = next(declared["parameters"]["encoder"] for group, declared in groups if is_text(group))
    if any(source.latents == "online" for source in config.mixture.values()):
        codec = config.codec
    if any(source.text == "online" for source in config.mixture.values()):
        encoder = config.text_encoder
    return str(codec), str(encoder)


def _check_same(config: TrainingConfig, store: Store) -> None:
    """Raise InputError when the run was begun with a configuration that makes other numbers."""
    place = f"{store.uri}/{CONFIG}"
    before = parse_config(parse_yaml(store.read(CONFIG).decode(), place), place)
    changed = differences(before.fixed(), config.fixed())
    if changed:
        key, _, new = changed[0]
        old: Any = before.model_dump(mode="json")
        for part in key.split("."):  # `fixed` leaves out values that runs of before lack
            old = old.get(part) if isinstance(old, dict) else None
        raise InputError(
            f"{store.uri}: was begun with {key} {old!r}, the configuration now says {new!r}; keep to it "
            f"(--set '{key}={old if isinstance(old, str) else json.dumps(old)}'), take another run, or remove its "
            f"{FOLDER}/ to begin again"
        )


def differences(before: Any, now: Any, place: str = "") -> list[tuple[str, Any, Any]]:
    """(key, value before, value now) of each value that differs; keys of nested values are joined by dots."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            difference
            for key in dict.fromkeys([*before, *now])
            for difference in differences(before.get(key), now.get(key), f"{place}.{key}".strip("."))
        ]
    return [] if before == now else [(place, before, now)]
