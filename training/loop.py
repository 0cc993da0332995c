"""A training run from outside: start its workers with Ray Train, follow them, and pick up what they left."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml

from labeling.dataset import Store, open_store
from model.inputs import InputError
from training.checkpoint import FOLDER, checkpoint_name, whole_checkpoints
from training.config import TrainingConfig, parse_config
from training.coordinator import Board, Progress, Wish, await_departures, followed
from training.metrics_logger import read_metrics
from training.mixture import Manifest, build_manifest

CONFIG, MANIFEST = "config.yaml", "manifest.json"


@dataclass(frozen=True)
class TrainingResult:
    """What a run came to.

    checkpoint: address of the last one ("" where a run was stopped before its first); resumed_from: the step it began
    at; already_finished: there was nothing to do;
    rows: eligible rows of each task; metrics: the last record of metrics.jsonl; seconds: this time, start to end.
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
    wish: Callable[[], Wish] = Wish,
) -> TrainingResult:
    """Train as configured, continuing from the run's newest whole checkpoint if it has one.

    run_uri: folder or s3:// address of the run. Ray must be running (`cluster.session.ray_session`).
    progress: called in this process with dicts that have an "event": "mixture" (rows: eligible rows of each task;
    empty: tasks without any, which are left out), "resume" (step), "step" (a record of metrics.jsonl, and steps),
    "checkpoint" (step, checkpoint), "scale" (step, workers), "leave" (a node of theirs is taken away).
    wish: asked twice a second. For other workers they write a checkpoint, and others go on from it: which samples a
    step has does not depend on who computes it. A run that was stopped has a `step` below config.steps.
    Raises InputError for what a user can mend: datasets, configuration, a run of another configuration, S3.
    """
    began = time.monotonic()
    tell = progress or (lambda record: None)
    store = open_store(run_uri)
    done = whole_checkpoints(store)
    start = done[-1] if done else 0
    if done:
        _check_same(config, store)
        manifest = Manifest.from_json(store.read(MANIFEST)).moved(
            {name: source.dataset for name, source in config.mixture.items()}
        )
    else:
        manifest = build_manifest(config.mixture, config.size)
        store.put(MANIFEST, manifest.to_json().encode())
    store.put(CONFIG, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).encode())
    learned, held_out = _sides(config, manifest)
    rows = learned.counts()
    tell({"event": "mixture", "rows": rows, "empty": [task for task, count in rows.items() if not count]})
    finished = bool(done) and start >= config.steps
    if done and not finished:
        tell({"event": "resume", "step": start})
    step, wanted = start, wish()
    while step < config.steps and not wanted.stop:
        if wanted.workers is not None and wanted.ends(config):
            config = _scaled(config, wanted.workers)
            tell({"event": "scale", "step": step, "workers": wanted.workers})
        if not isinstance(config.workers.count, int):
            await_departures(wish)
        wanted = _train(config, store.uri, learned, held_out, tell, wish)
        step = next(iter(whole_checkpoints(store)[-1:]), 0)  # none of a run that ended before its first step
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


def _scaled(config: TrainingConfig, workers: int | tuple[int, int]) -> TrainingConfig:
    return parse_config(
        {**config.model_dump(mode="json"), "workers": {**config.workers.model_dump(mode="json"), "count": workers}},
        "workers",
    )


def _sides(config: TrainingConfig, manifest: Manifest) -> tuple[Manifest, Manifest | None]:
    """What is learned from, and what is held out, if anything is."""
    return manifest.split(config.held_out.share, config.seed) if config.held_out.share else (manifest, None)


def _train(
    config: TrainingConfig,
    run: str,
    manifest: Manifest,
    held_out: Manifest | None,
    tell: Progress,
    wish: Callable[[], Wish],
) -> Wish:
    """Run one group of workers, to the last step or until a wish ends it. Returns that wish."""
    import ray
    from ray.exceptions import ActorDiedError
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from training.trainer import EndableTrainer
    from training.worker import Job, train_worker

    # Where this process is: of all nodes, the only one that the run cannot lose.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = ray.remote(num_cpus=0, scheduling_strategy=here)(Board).remote()
    workers, readers = config.workers, readers_of_each(config, ray.cluster_resources().get("CPU", 0.0))
    codec, text_encoder = _encoders(manifest)
    job = Job(
        config=config,
        run=run,
        manifest=ray.put(manifest),
        board=board,
        codec=codec,
        text_encoder=text_encoder,
        tasks=_tasks(manifest),
        readers=readers,
        held_out=ray.put(held_out) if held_out else None,
        held_out_tasks=_tasks(held_out) if held_out else (),
    )
    cpus = workers.cpus + readers * config.reader.cpus
    resources = {"CPU": cpus, **({"GPU": workers.gpus} if workers.gpus else {})}
    wishes = [Wish()]
    # Checkpoints are ours; Ray only wants a folder for its own notes, which nobody has to share.
    with tempfile.TemporaryDirectory(prefix="onediffusion-") as notes:
        trainer = EndableTrainer(
            train_worker,
            train_loop_config={"job": job},
            scaling_config=ScalingConfig(
                num_workers=workers.count, use_gpu=workers.gpus > 0, resources_per_worker=resources
            ),
            run_config=RunConfig(
                name=config.name,
                storage_path=notes,
                failure_config=FailureConfig(max_failures=workers.max_failures),
                logging_config=LoggingConfig(log_level="ERROR"),
            ),
        )
        try:
            with followed(board, config, tell, wish, wishes, trainer.end):
                trainer.fit()
        except ActorDiedError:
            if not trainer.ended:
                raise
        except TrainingFailedError:
            failure = ray.get(board.failure.remote())
            if failure is None:
                raise
            raise InputError(failure) from None
        except KeyboardInterrupt:
            trainer.end()
            raise
        failure = ray.get(board.failure.remote())
        if failure is not None:
            raise InputError(failure)
    return wishes[-1]


def readers_of_each(config: TrainingConfig, cpus: float) -> int:
    """How many readers each worker has and holds CPUs for: as configured, or what `cpus` leave when they share them.

    What is read does not depend on it.
    """
    workers, reader = config.workers, config.reader
    least = workers.count if isinstance(workers.count, int) else workers.count[0]
    if not reader.cpus:
        return reader.processes
    room = int((cpus / least - workers.cpus) / reader.cpus + 1e-6)
    return max(1, min(room, reader.processes))


def _tasks(manifest: Manifest) -> tuple[str, ...]:
    return tuple(task for task, count in manifest.counts().items() if count)


def _encoders(manifest: Manifest) -> tuple[str, str]:
    """(codec, text encoder) that the latents and prompts were made with, as their labelers were told."""
    declarations = [item for source in manifest.sources.values() for item in source.declarations.items()]
    codec = next(found["parameters"]["codec"] for group, found in declarations if group.startswith("latents-"))
    encoder = next(found["parameters"]["encoder"] for group, found in declarations if group == "text")
    return str(codec), str(encoder)


def _check_same(config: TrainingConfig, store: Store) -> None:
    """A run continues only as what it began as."""
    before = TrainingConfig.model_validate(yaml.safe_load(store.read(CONFIG))).fixed()
    changed = _differences(before, config.fixed())
    if changed:
        key, old, new = changed[0]
        raise InputError(
            f"{store.uri}: was begun with {key} {old!r}, the configuration now says {new!r}; "
            f"take another run, or remove its {FOLDER}/ to begin again"
        )


def _differences(before: Any, now: Any, place: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            difference
            for key in dict.fromkeys([*before, *now])
            for difference in _differences(before.get(key), now.get(key), f"{place}.{key}".strip("."))
        ]
    return [] if before == now else [(place, before, now)]
