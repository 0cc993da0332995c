"""What each training worker does: the step loop, under accelerate, on its own stream of packs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from labeling.storage import Store, open_store
from model.errors import InputError
from training.batch import StepBatch
from training.checkpoint import checkpoint_name, load_checkpoint, load_training, save_checkpoint, whole_checkpoints
from training.config import TrainingConfig
from training.held_out import HeldOut
from training.memory import keep_freed_memory
from training.objective import flow_matching_loss
from training.optimizer import MovingAverage, build_optimizer, learning_rate
from training.records import TENSORBOARD, Records
from training.stream import begun, stream_steps
from training.window import Window

if TYPE_CHECKING:
    from accelerate import Accelerator

    from model.transformer import NextDiT

_PREFIX = "transformer."
_WEIGHTLESS = ("input_size", "rotary_max_length", "rotary_max_length_t", "soft_capping")  # may differ from a checkpoint


@dataclass(frozen=True)
class Job:
    """What the driver gives every worker. manifest and board are a Ray reference and actor; tasks: names, in order.

    readers: of each worker. held_out: a reference to the manifest of what is held out, None where nothing is;
    held_out_tasks: its tasks.
    """

    config: TrainingConfig
    run: str
    manifest: Any
    board: Any
    codec: str
    text_encoder: str
    tasks: tuple[str, ...]
    readers: int
    held_out: Any = None
    held_out_tasks: tuple[str, ...] = ()


class PackedForward(nn.Module):
    """NextDiT with the packed form as its `forward`, which is what wrappers for several processes call."""

    def __init__(self, transformer: NextDiT) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, samples: list[Tensor], timesteps: list[Tensor], text: list[Tensor]) -> list[Tensor]:
        """Samples (F, C, h, w), timesteps (F,), text (L, Y) of each → velocities (F, C, h, w)."""
        return list(self.transformer.forward_packed(samples, timesteps, text))


def train_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """Train to the configured step from the newest whole checkpoint. Returns the last metrics (of rank 0)."""
    import ray

    job: Job = settings["job"]
    # A user's mistake must not be retried like a lost machine: the group that starts again stops at once.
    if ray.get(job.board.failure.remote()):
        return {}
    ray.get(job.board.join.remote(ray.get_runtime_context().get_node_id()))
    try:
        return _Worker(job).run()
    except InputError as error:
        ray.get(job.board.fail.remote(str(error)))
        raise


class _Worker:
    def __init__(self, job: Job) -> None:
        import ray.train

        self.job, self.config = job, job.config
        context = ray.train.get_context()
        self.rank, self.workers = context.get_world_rank(), context.get_world_size()
        self.store: Store = open_store(job.run)
        if not torch.cuda.is_available():
            keep_freed_memory()
        _set_threads(self.config.workers.threads or max(1, _cores() // context.get_local_world_size()))
        self.start = _from_rank_zero(whole_checkpoints(self.store)[-1:])
        # What is held out is read first: its readers are gone when those of the steps come.
        self.batches = None if job.held_out else begun(self._batches(self.start[0] if self.start else 0))
        self.records = Records(self.store, self.start[0] if self.start else 0) if self.rank == 0 else None
        self.accelerator = _accelerator(self.config, str(self.records.folder) if self.records else None)
        transformer = _build(self.config)
        self.transformer_config = dict(transformer.config)
        model = PackedForward(transformer)
        optimizer = build_optimizer(model, self.config.optimizer)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.average = MovingAverage(self.model, self.config.optimizer.ema)
        self._window = Window(job.tasks, self.accelerator.device)

    def run(self) -> dict[str, Any]:
        import ray
        import ray.train

        step = self._restore()
        config, job = self.config, self.job
        self.accelerator.init_trackers(TENSORBOARD, init_kwargs={"tensorboard": {"purge_step": step + 1}})
        if step == 0 and config.checkpoints.first and not self.start:
            job.board.pause.remote()
            self._save(0)
        held_out = HeldOut(job, self.rank, self.workers, self.accelerator.device) if job.held_out else None
        metrics: dict[str, Any] = {}
        began = waited_since = time.monotonic()
        answer = None  # to where the last step was announced
        for batch in self.batches or self._batches(step):
            waited = time.monotonic() - waited_since
            if answer is not None and (end := ray.get(answer)) is not None and batch.step >= end:
                if step % config.checkpoints.every:
                    job.board.pause.remote()
                    self._save(step)
                break
            answer = job.board.reach.remote(batch.step)
            norm = self._step(batch)
            step = batch.step + 1
            self._window.took(waited, time.monotonic() - waited_since)
            due = step % config.checkpoints.every == 0 or step == config.steps
            if due and self.rank == 0:
                job.board.pause.remote()
            measured = held_out.measure(self.model, self.average) if held_out and due else {}
            if step % config.log_every == 0 or step == config.steps:
                metrics = self._log(step, norm, time.monotonic() - began, measured)
            elif measured:
                self._keep({"step": step, **measured})
            if due:
                self._save(step)
                ray.train.report({"step": step, "loss": metrics.get("loss")})
            waited_since = time.monotonic()
        self.accelerator.end_training()
        if self.records:
            self.records.close()
        return metrics

    def _batches(self, step: int) -> Iterator[StepBatch]:
        job, steps = self.job, range(step, self.config.steps)
        return stream_steps(job.manifest, job.config, job.codec, self.rank, self.workers, job.readers, steps)

    def _step(self, batch: StepBatch) -> Tensor:
        """One update of the weights. Returns the norm of the gradient before clipping.

        Nothing here waits for a GPU: what is to be logged stays there until it is.
        """
        rate = learning_rate(batch.step, self.config.steps, self.config.optimizer)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        for number, pack in enumerate(batch.packs):
            last = number == len(batch.packs) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                loss, parts = flow_matching_loss(self.model, pack, self.accelerator.device)
                # Gradients are averaged over workers, the loss is a sum over them: hence × workers.
                self.accelerator.backward(loss * (self.workers / batch.frames_in_loss))
            self._window.add(pack, parts, batch.frames_in_loss)
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip)
        self.optimizer.step()
        self.average.update(batch.step)
        assert norm is not None
        return norm.detach()

    def _log(self, step: int, norm: Tensor, seconds: float, measured: dict[str, Any]) -> dict[str, Any]:
        values = self._window.close()
        rate = learning_rate(step - 1, self.config.steps, self.config.optimizer)
        record = {"step": step, **values, "learning_rate": rate, "gradient_norm": float(norm)}
        record |= {"seconds": round(seconds, 3), **measured}
        if not torch.isfinite(torch.tensor(values["loss"])):
            raise InputError(f"the loss is {values['loss']} at step {step}; lower optimizer.learning_rate")
        self._keep(record)
        if self.records:
            self.job.board.post.remote({"event": "step", "steps": self.config.steps, **record})
        return record

    def _keep(self, record: dict[str, Any]) -> None:
        """Add a record to metrics.jsonl, and to TensorBoard, where what is by task has a name for each."""
        flat = {name: value for name, value in record.items() if name != "step" and not isinstance(value, dict)}
        for name in ("losses", "held_out_losses"):
            kind = name.replace("losses", "loss")
            flat |= {f"{kind}/{task}": loss for task, loss in record.get(name, {}).items()}
        self.accelerator.log(flat, step=record["step"])
        if self.records:
            self.records.append(record)

    def _restore(self) -> int:
        """Load the newest checkpoint, or the weights to start from. Returns the steps done."""
        from torch.distributed.checkpoint.state_dict import (
            StateDictOptions,
            get_optimizer_state_dict,
            set_model_state_dict,
            set_optimizer_state_dict,
        )

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        if not self.start:
            if self.config.initialize:
                weights = _initial_weights(self.config)
                set_model_state_dict(self.model, weights, options=options)
            self.average.reset()
            return 0
        step = self.start[0]
        tensors = load_training(self.store, step)
        averaged, _ = load_checkpoint(f"{self.store.uri}/{checkpoint_name(step)}")
        set_model_state_dict(self.model, _prefixed(averaged.state_dict()), options=options)
        self.average.reset()
        live = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
        set_model_state_dict(self.model, _prefixed(live), options=options)
        optimizer = self.optimizer.optimizer
        states: dict[str, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                parameter, _, key = name.removeprefix("optimizer.").rpartition("/")
                states.setdefault(f"{_PREFIX}{parameter}", {})[key] = value
        groups = get_optimizer_state_dict(self.model, optimizer, options=StateDictOptions())["param_groups"]
        set_optimizer_state_dict(self.model, optimizer, {"state": states, "param_groups": groups}, options=options)
        return step

    def _save(self, step: int) -> None:
        from torch.distributed.checkpoint.state_dict import (
            StateDictOptions,
            get_model_state_dict,
            get_optimizer_state_dict,
        )

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        with self.average.applied():
            averaged = {
                name: value.clone() for name, value in get_model_state_dict(self.model, options=options).items()
            }
        live = get_model_state_dict(self.model, options=options)
        states = get_optimizer_state_dict(self.model, self.optimizer.optimizer, options=options)
        if self.rank == 0:
            tensors = {f"model.{name.removeprefix(_PREFIX)}": value for name, value in live.items()}
            if step:  # asking for the state of an optimizer that has done nothing makes it up
                for name, state in states["state"].items():
                    for key, value in state.items():
                        tensors[f"optimizer.{name.removeprefix(_PREFIX)}/{key}"] = torch.as_tensor(value)
            state = {
                "step": step,
                "config": self.config.model_dump(mode="json"),
                "codec": self.job.codec,
                "text_encoder": self.job.text_encoder,
            }
            transformer = self._export({name.removeprefix(_PREFIX): value for name, value in averaged.items()})
            tensors = {name: value.contiguous() for name, value in tensors.items()}
            address = save_checkpoint(self.store, transformer, tensors, state, self.config.checkpoints.keep)
            assert self.records is not None
            self.records.sync()
            self.job.board.post.remote({"event": "checkpoint", "step": step, "checkpoint": address})
        self.accelerator.wait_for_everyone()

    def _export(self, weights: dict[str, Tensor]) -> NextDiT:
        from model.transformer import NextDiT

        with torch.device("meta"):
            transformer = NextDiT.from_config(self.transformer_config)
        transformer.load_state_dict(weights, strict=True, assign=True)
        return transformer


def _accelerator(config: TrainingConfig, folder: str | None) -> Accelerator:
    from accelerate import Accelerator
    from accelerate.utils import FullyShardedDataParallelPlugin

    from model.transformer import NextDiT

    plugin = None
    if config.workers.fsdp:
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=list(NextDiT._no_split_modules),
        )
    return Accelerator(
        cpu=config.workers.gpus == 0,
        mixed_precision=config.workers.precision,
        fsdp_plugin=plugin,
        log_with="tensorboard" if folder else None,
        project_dir=folder,
    )


def _build(config: TrainingConfig) -> NextDiT:
    from model.transformer import NextDiT

    torch.manual_seed(config.seed)
    transformer = NextDiT(**config.model.model_dump())
    if config.workers.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    if config.workers.gpus:
        transformer.compile_blocks()
    return transformer


def _initial_weights(config: TrainingConfig) -> dict[str, Tensor]:
    assert config.initialize is not None
    transformer, _ = load_checkpoint(config.initialize)
    for name, value in config.model.model_dump().items():
        given = transformer.config.get(name)
        if name == "num_kv_heads":
            given = given or transformer.config["num_heads"]
        if name not in _WEIGHTLESS and _plain(given) != _plain(value):
            raise InputError(f"{config.initialize}: a model with {name} {given}, the configuration says {value}")
    return _prefixed(transformer.float().state_dict())


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _prefixed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{_PREFIX}{name}": value for name, value in weights.items()}


def _from_rank_zero(value: list[int]) -> list[int]:
    """What rank 0 has, on every worker."""
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
