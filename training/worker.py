"""A training worker: it builds the model, restores it, and steps, logs, validates and saves to the last step."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from labeling.dataset import Store, open_store
from labeling.dataset.storage.errors import explained
from model.inputs import InputError
from training.anomalies import AnomalyWatch, Past, read_skipped, said
from training.batch import StepBatch
from training.checkpoint import checkpoint_name, load_state, whole_checkpoints
from training.checkpoint.index import AVERAGE, MODEL
from training.checkpoint.loading import TRANSFORMER_CONFIG
from training.config import TrainingConfig
from training.coordinator import StepAnnouncer
from training.dataloader import load_batches, prefetch
from training.device import DeviceBatches, pinned_array
from training.divergence import all_finite, diverged, unusable_checkpoint
from training.flops import FlopCounter
from training.lora import without_dropout
from training.memory import keep_freed_memory
from training.metrics_logger import TENSORBOARD, MetricsLogger, scalars
from training.optimizer import learning_rate
from training.packed_model import build_model
from training.parallel import distribute
from training.sample_names import SampleNames
from training.step_metrics import ComputedPack, StepMetrics, sample_losses
from training.trackers import start_trackers, trackers
from training.updates import Updates
from training.validation import Validation
from training.worker_settings import WorkerSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

_LOSSES = "recent_losses"  # in state.json, where steps are judged by the losses before them


def train_worker(settings: WorkerSettings) -> dict[str, Any]:
    """Train to the configured step from the newest whole checkpoint. Returns the last metrics (of rank 0)."""
    import ray

    coordinator = settings.coordinator
    # A user's mistake must not be retried like a lost machine: the group that starts again stops at once.
    if ray.get(coordinator.failure.remote()):
        return {}
    ray.get(coordinator.add_worker.remote(ray.get_runtime_context().get_node_id()))
    try:
        return _Worker(settings).run()
    except InputError as error:
        ray.get(coordinator.fail.remote(str(error)))
        raise


class _Worker:
    """The model, optimizer, batches and metrics of one process of a run."""

    def __init__(self, settings: WorkerSettings) -> None:
        import ray.train

        self.settings, self.config, self.coordinator = settings, settings.config, settings.coordinator
        context = ray.train.get_context()
        self.rank, self.workers = context.get_world_rank(), context.get_world_size()
        self.store: Store = open_store(settings.run)
        if not torch.cuda.is_available():
            keep_freed_memory()
        _set_threads(self.config.workers.threads or max(1, _cores() // context.get_local_world_size()))
        self.resumes, self.start, past = _from_rank_zero(_progress(self.store))
        # Reading begins while the model is built. Processes that read the steps start when those that read the rows of
        # validation have ended: both at once would need twice the CPUs.
        self.validation = Validation(settings, self.rank, self.workers) if settings.validation_manifest else None
        self.batches = None if self.validation and settings.readers else prefetch(self._load_batches())
        # With accelerate and diffusers these take 4 s, while readers start.
        from training.checkpoint.saving import CheckpointSaver
        from training.checkpoint.state import TrainingState

        self.logger = MetricsLogger(self.store, self.start) if self.rank == 0 else None
        self.accelerator = _accelerator(self.config, self.logger, self.start)
        model = build_model(self.config)
        self.transformer_config = dict(model.transformer.config)
        flops = FlopCounter(model.transformer, frozen=self.config.lora is not None)
        device = self.accelerator.device
        encoders = settings.resolve_path(settings.codec), settings.resolve_path(settings.text_encoder)
        self.device_batches = DeviceBatches(self.config, *encoders, device)
        self.model = distribute(model, self.config.workers, device, context.get_local_world_size())
        self.updates = Updates(self.model, self.config, device, self.workers, self.accelerator.autocast)
        self.average = self.updates.average
        self.state = TrainingState(self.model, self.updates.optimizer, self.average)
        # Metrics first: a run that goes on from a checkpoint needs all records before it.
        sync = self.logger.sync if self.logger else None
        self.saver = CheckpointSaver(self.store, self.state.tensors, self.config.checkpoints, sync)
        self.step_metrics = StepMetrics(settings.tasks, device, flops)
        self.step_metrics.step = self.start
        self.anomalies = AnomalyWatch(self.config.anomalies, self.store, device, past, self._name_samples)
        self.samples = self._fixed_samples() if self.config.validation.pictures else None
        # (step, norm of its gradient) since the last check; on the device, so that no step waits.
        self.norms: list[tuple[int, Tensor]] = []

    def run(self) -> dict[str, Any]:
        """Train to the last step, or until a stop is requested. Returns the last metrics."""
        try:
            return self._train()
        except InputError:
            with suppress(Exception):  # a checkpoint may be on its way, and is of steps before the mistake
                self.saver.wait()
            raise

    def _train(self) -> dict[str, Any]:
        config, step = self.config, self.start
        if self.resumes:
            self.state.restore(self.store, self.start, self.saver.group)
            if not self.state.is_finite():
                before = [step for step in whole_checkpoints(self.store) if step < self.start]
                address = f"{self.store.uri}/{checkpoint_name(self.start)}"
                raise InputError(unusable_checkpoint(address, f"step-{before[-1]:06d}" if before else None))
        else:
            weights = self.settings.resolve_path(config.initialize) if config.initialize else None
            self.state.initialize(config.model_copy(update={"initialize": weights}), self.saver.group)
        with explained(f"{self.store.uri}/{TENSORBOARD}"):
            start_trackers(self.accelerator, config)
        if config.checkpoints.first and not self.resumes:
            self._save(0)
        if self.validation:
            self.validation.read(self.device_batches)
        if self.samples:
            self.samples.read(self.device_batches)

        metrics: dict[str, Any] = {}
        announcer = StepAnnouncer(self.coordinator)
        began = step_began = time.monotonic()
        for batch in self.device_batches.ready(self.batches or self._load_batches()):
            wait_seconds = time.monotonic() - step_began
            self._report_saved()
            if announcer.stops_before(batch.step):
                if step % config.checkpoints.every:
                    self._save(step)
                break
            gradient_norm = self._update(batch)
            step = batch.step + 1
            if gradient_norm is not None:
                self.norms.append((batch.step, gradient_norm))
            log_due = step % config.log_every == 0 or step == config.steps
            if log_due:  # it waits for the device, so that the step's seconds are those of its work
                self._check_finite(step)
            self.step_metrics.end_step(wait_seconds, time.monotonic() - step_began, gradient_norm is None)

            checkpoint_due = step % config.checkpoints.every == 0 or step == config.steps
            validation = self._validate(step) if checkpoint_due else {}
            if log_due:
                metrics = self._log_step(step, gradient_norm, time.monotonic() - began, validation)
            elif validation:
                self._log({"step": step, **validation})
            if checkpoint_due:
                self._save(step)
            step_began = time.monotonic()
        self._begin_long_operation()
        self.saver.wait()
        self._report_saved()
        self.accelerator.end_training()
        if self.logger:
            self.logger.close()
        return metrics

    def _load_batches(self) -> Iterator[StepBatch]:
        settings, steps = self.settings, range(self.start, self.config.steps)
        allocate = pinned_array if self.config.workers.gpus and torch.cuda.is_available() else None
        return load_batches(
            settings.manifest, settings.config, self.rank, self.workers, settings.readers, steps, allocate
        )

    def _update(self, batch: StepBatch) -> Tensor | None:
        """Update the weights. Returns the norm of the gradient, None where the step is skipped."""
        step = batch.step + 1  # as people count
        if self.anomalies.was_skipped(step):
            return None

        accepted, metrics = True, self.step_metrics

        def accepts(norm: Tensor) -> bool:
            nonlocal accepted
            accepted = self.anomalies.accepts(
                step, metrics.step_loss(), norm, lambda: sample_losses(metrics.packs, batch.step)
            )
            return accepted

        judge = accepts if self.anomalies.watches else None
        norm = self.updates.update(batch, metrics.add_pack, self.saver.await_copies, judge)
        return norm if accepted else None

    def _validate(self, step: int) -> dict[str, Any]:
        """Measure the averaged weights on validation rows, and draw the fixed samples, as configured."""
        device = self.accelerator.device
        values: dict[str, Any] = {}
        if self.validation or self.samples:
            self._begin_long_operation()
        with without_dropout(self.model, self.config.lora), self.accelerator.autocast():
            if self.validation:
                values = self.validation.measure(self.model, self.average, device)
            if self.samples:
                self.samples.draw(step, self.model, self.average, device)
        return values

    def _fixed_samples(self) -> Any:
        import ray

        from training.fixed_samples import FixedSamples  # it imports diffusers

        manifest = ray.get(self.settings.validation_manifest or self.settings.manifest)
        return FixedSamples(manifest, self.config, self.store, writes=self.rank == 0)

    def _name_samples(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        import ray

        return SampleNames(ray.get(self.settings.manifest), self.config).named(indices)

    def _log_step(self, step: int, norm: Tensor | None, seconds: float, validation: dict[str, Any]) -> dict[str, Any]:
        """Log the steps since the last log. Returns the record."""
        values = self.step_metrics.reduce()
        rate = learning_rate(step - 1, self.config.steps, self.config.optimizer)
        record = {"step": step, **values, "learning_rate": rate}
        record |= {} if norm is None else {"gradient_norm": float(norm)}
        record |= {"seconds": round(seconds, 3), **validation}
        self._log(record)
        if self.rank == 0:
            self.coordinator.add_event.remote({"event": "step", "steps": self.config.steps, **record})
        return record

    def _log(self, record: dict[str, Any]) -> None:
        """Add a record to metrics.jsonl and TensorBoard. Raises InputError where the disk is full."""
        with explained(f"{self.store.uri}/{TENSORBOARD}"):
            self.accelerator.log(scalars(record), step=record["step"])
        if self.logger:
            self.logger.append(record)

    def _save(self, step: int) -> None:
        """Begin to write a checkpoint. Called by all workers together; a failure is raised here or at a later step.

        Weights or steps that are not finite are an InputError, and nothing of them is written.
        """
        self._begin_long_operation()  # the checkpoint before may not be written yet
        facts = {
            "step": step,
            "config": self.config.model_dump(mode="json"),
            "codec": self.settings.codec,
            "text_encoder": self.settings.text_encoder,
            TRANSFORMER_CONFIG: self.transformer_config,
            **self.state.facts(),
        }
        if self.anomalies.losses:
            facts[_LOSSES] = self.anomalies.losses
        norms, packs = dict(self.norms), list(self.step_metrics.packs)
        self.norms.clear()

        def check(copies: Mapping[str, Tensor], group: Any) -> None:
            weights = [value for name, value in copies.items() if name.startswith((MODEL, AVERAGE))]
            if not all_finite([*norms.values(), *weights], torch.device("cpu"), group):
                raise InputError(self._diverged(step, norms, packs, group))

        self.saver.save(facts, check)

    def _report_saved(self) -> None:
        """Report the checkpoints that have become whole as events. Raises what has gone wrong with one."""
        for step, address in self.saver.saved():
            if self.rank == 0:
                event = {"event": "checkpoint", "step": step, "checkpoint": address}
                self.coordinator.add_event.remote(event)

    def _check_finite(self, step: int) -> None:
        """Raise InputError, on all workers, where a step since the last check had no finite gradient."""
        norms = dict(self.norms)
        finite = all_finite(norms.values(), self.accelerator.device)
        self.norms.clear()
        if not finite:
            self.saver.wait()  # the message names the newest one that is sound
            raise InputError(self._diverged(step, norms, self.step_metrics.packs))

    def _diverged(
        self, step: int, norms: Mapping[int, Tensor], packs: Sequence[ComputedPack], group: Any = None
    ) -> str:
        """What to tell a person, with the samples of the first step whose gradient (`norms`) is not finite."""
        bad = next((step for step, norm in norms.items() if not bool(torch.isfinite(norm))), None)
        first = ""
        if bad is not None:
            first = f" (first in step {bad + 1}{said(self.anomalies.blame(sample_losses(packs, bad), group))})"
        sound = [f"{self.store.uri}/{checkpoint_name(step)}" for step in whole_checkpoints(self.store)]
        rate = self.config.optimizer.learning_rate
        return diverged(self.store.uri, step, rate, sound[-1] if sound else None, first)

    def _begin_long_operation(self) -> None:
        if self.rank == 0:
            self.coordinator.begin_long_operation.remote()


def _accelerator(config: TrainingConfig, logger: MetricsLogger | None, start: int) -> Accelerator:
    from accelerate import Accelerator

    return Accelerator(
        cpu=config.workers.gpus == 0,
        mixed_precision=config.workers.precision,
        log_with=trackers(config, logger, start) if logger else None,
    )


def _progress(store: Store) -> tuple[bool, int, Past]:
    """(whether the run has a checkpoint, the step to start at, what is known of the steps before)."""
    steps = whole_checkpoints(store)
    if not steps:
        return False, 0, Past(read_skipped(store))
    return True, steps[-1], Past(read_skipped(store), load_state(store, steps[-1]).get(_LOSSES, []))


def _from_rank_zero(value: tuple[bool, int, Past]) -> tuple[bool, int, Past]:
    """The value of rank 0 on every worker, since a store may answer each of them differently."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box)
    return box[0]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _set_threads(threads: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)  # accelerate takes it from here, and sets it again
    torch.set_num_threads(threads)
