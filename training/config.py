"""A training run as one typed, complete configuration; presets/ holds those that come with the project."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ModelWrapValidatorHandler, field_validator, model_validator

from model.constants import CAMERA_DISTANCE, LATENT_CHANNELS, PATCH_SIZE, SIZE_STEP
from model.inputs import InputError
from model.inputs.schema import Section, split_range, validate
from model.inputs.settings import override, parse_settings
from model.inputs.yaml_files import example_names, find_yaml, read_yaml
from model.prompts import RAYS, find_task
from training.lora import LoraConfig
from training.monitor_config import AnomalyConfig, ValidationConfig
from training.source_config import SourceConfig, views_of_sample

PRESETS = Path(__file__).parent / "presets"
# May change in a run.
_FREE = {"name", "log_every", "step_tokens", "workers", "checkpoints", "codec", "text_encoder", "anomalies", "trackers"}
_ADDED_KEYS = {
    "text": "stored",
    "latents": "stored",
    "degraded": "online",
    "where": None,
    "views": None,
    "window": None,
    "condition_dropout": 0,
}  # of a source
_OLD_KEYS = {"held_out": "validation"}  # in configurations that people have, and in config.yaml of their runs


_LONGEST_NAME = 200
_MOST_SAMPLES = 1 << 24  # of a step
_MOST_LANES = 1 << 16  # each has its place in memory
_LEAST_SHARE = 1e-5  # of a task: samples are shared out in blocks in which each is drawn twice


class ModelConfig(Section):
    """Arguments of NextDiT. The defaults are the released model's.

    soft_capping: of self-attention logits; null means as published, with bf16 but not in fp32.
    """

    input_size: tuple[int, int, int] = (1, 32, 32)
    patch_size: tuple[int, int, int] = (1, PATCH_SIZE, PATCH_SIZE)
    in_channels: int = LATENT_CHANNELS
    hidden_size: int = Field(default=3840, gt=0)
    depth: int = Field(default=16, gt=0)
    num_heads: int = Field(default=32, gt=0)
    num_kv_heads: int = Field(default=8, gt=0)
    multiple_of: int = Field(default=256, gt=0)
    ffn_dim_multiplier: float | None = None
    norm_eps: float = 1e-5
    caption_channels: int = Field(default=2048, gt=0)
    qk_norm: bool = True
    rotary_max_length: int = 128
    rotary_max_length_t: int = 128
    soft_capping: bool | None = None

    @model_validator(mode="after")
    def _check_heads(self) -> ModelConfig:
        if self.hidden_size % (6 * self.num_heads):
            raise ValueError(f"hidden_size {self.hidden_size} must divide by 6 × num_heads, {6 * self.num_heads}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} must divide by num_kv_heads, {self.num_kv_heads}")
        return self


class ObjectiveConfig(Section):
    """What is learned.

    known_frame_share: with this probability a sample of several frames has known (clean) ones, and the loss is on the
        others; 0 is the paper's rule, every frame with its own noise level and all of them in the loss.
    shift: of the noise levels, σ' = shift·σ / (1 + (shift − 1)·σ). caption_dropout: share of empty prompts.
    min_views, max_views: views of a set in one sample. c2w_scaling: first camera's distance (docs/model.md, Cameras).
    """

    known_frame_share: float = Field(default=0.0, ge=0, le=1)
    shift: float = Field(default=3.0, gt=0)
    caption_dropout: float = Field(default=0.1, ge=0, le=1)
    min_views: int = Field(default=4, ge=1)
    max_views: int = Field(default=12, ge=1)
    c2w_scaling: float = Field(default=CAMERA_DISTANCE, gt=0)

    @property
    def views(self) -> tuple[int, int]:
        """(min_views, max_views)."""
        return self.min_views, self.max_views

    @model_validator(mode="after")
    def _check_views(self) -> ObjectiveConfig:
        if self.min_views > self.max_views:
            raise ValueError(f"min_views {self.min_views} is more than max_views {self.max_views}")
        return self


class OptimizerConfig(Section):
    """AdamW, its schedule, and the moving average of the weights.

    kind: adamw8bit keeps the two moments in 8 bits (training/adamw8bit.py), 2.2 bytes a weight in place of 8.
    schedule: after `warmup` steps the rate stays, or falls to 0 at the last step, linearly or as a half cosine.
    ema: decay of the average, reached gradually: min(ema, (1 + step) / (10 + step)). clip: of the gradient's norm.
    """

    kind: Literal["adamw", "adamw8bit"] = "adamw"
    learning_rate: float = Field(default=5e-4, gt=0)
    warmup: int = Field(default=1000, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    clip: float = Field(default=1.0, gt=0)
    ema: float = Field(default=0.9999, ge=0, lt=1)


class ReaderConfig(Section):
    """How samples are read.

    threads: of each worker that read, and decode pictures; 0 takes as many as there is to wait for. processes: so many
    of Ray Data do it instead, fewer where CPUs are short: for pictures of degraded tasks that more CPUs than the
    worker's are to decode; cpus: of each process; beside: on its worker's machine, whose worker requests their CPUs;
    false lets them be on any, as on machines without GPUs; cache_mb: size of the cache of row groups;
    prefetch: steps read ahead;
    window: row groups shuffled together (more mixes better, fewer reads more locally).
    lanes: parts of a step that are read independently, each from its own shards; a new run's are by default a power of
    two, of about two samples each.
    """

    threads: int = Field(default=0, ge=0)
    processes: int = Field(default=0, ge=0)
    cpus: float = Field(default=1.0, ge=0)
    beside: bool = True
    cache_mb: int = Field(default=512, gt=0)
    window: int = Field(default=8, gt=0)
    lanes: int | None = Field(default=None, gt=0, le=_MOST_LANES)
    prefetch: int = Field(default=4, ge=1)


class WorkersConfig(Section):
    """The processes that compute.

    count: workers, or [least, most] for an elastic run. cpus, gpus: Ray's logical resources that each asks for.
    threads: of each worker on a CPU; 0 shares the machine's cores among its workers.
    fsdp: shard weights, gradients and the optimizer's state (FSDP2). shard: over all workers, or over those of a node,
    with a copy in every node, so that weights travel within nodes alone.
    gradient_checkpointing: compute each block again in the backward pass.
    pack_tokens: at most so many image tokens in one forward pass (a sample is never split).
    max_failures: times that a failed worker group starts again from the newest checkpoint; -1 is always. A failure that
    repeats at the same step, with no checkpoint between, ends the run after three times in any case.
    """

    count: int | tuple[int, int] = 1
    cpus: float = Field(default=1.0, ge=0)
    gpus: float = Field(default=0.0, ge=0)
    threads: int = Field(default=0, ge=0)
    precision: Literal["no", "bf16"] = "no"
    fsdp: bool = False
    shard: Literal["all", "node"] = "all"
    gradient_checkpointing: bool = False
    pack_tokens: int = Field(default=16384, gt=0)
    max_failures: int = Field(default=0, ge=-1)

    _split_range = field_validator("count", mode="before")(split_range)

    @property
    def most(self) -> int:
        return self.count if isinstance(self.count, int) else self.count[1]

    @model_validator(mode="after")
    def _check_workers(self) -> WorkersConfig:
        least = self.count if isinstance(self.count, int) else self.count[0]
        if not 1 <= least <= self.most:
            raise ValueError(f"count {self.count}: give 1 or more workers, or [least, most]")
        return self


class CheckpointConfig(Section):
    """every: steps between checkpoints (there is always one at the end); keep: how many of the newest stay.

    keep_hours: besides the newest, one stays for every so many hours; 0 keeps none for its age.
    first: also write one of step 0, which stays: what was learned is compared with it.
    """

    every: int = Field(default=1000, gt=0)
    keep: int = Field(default=3, gt=0)
    keep_hours: float = Field(default=0.0, ge=0)
    first: bool = False


class TrainingConfig(Section):
    """A run. `batch` is the number of samples of a step over all workers; `initialize` a checkpoint to start from: a
    run, one of its checkpoints, or a folder in diffusers layout.

    lora: train an adapter of `initialize` in place of its weights (training/lora.py).
    text_encoder: of sources with `text: online`, as for `model.text.load_text_encoder`; codec: of sources with
    `latents: online`, as for `model.codecs.load_codec`.
    step_tokens: at most so many image tokens in a step over all workers, on average; `batch` follows from them, and is
    given in their place otherwise. Each
    worker computes its part in passes of at most workers.pack_tokens, whose gradients are added up.
    """

    name: str
    seed: int = Field(default=0, ge=0, lt=1 << 64)
    steps: int = Field(gt=0)
    batch: int = Field(gt=0, le=_MOST_SAMPLES)
    step_tokens: int | None = Field(default=None, gt=0)
    size: int = Field(gt=0, multiple_of=SIZE_STEP)
    initialize: str | None = None
    lora: LoraConfig | None = None
    log_every: int = Field(default=50, gt=0)
    mixture: dict[str, SourceConfig] = Field(min_length=1)
    text_encoder: str | None = None
    codec: str | None = None
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    reader: ReaderConfig = ReaderConfig()
    workers: WorkersConfig = WorkersConfig()
    checkpoints: CheckpointConfig = CheckpointConfig()
    validation: ValidationConfig = ValidationConfig()
    anomalies: AnomalyConfig = AnomalyConfig()
    trackers: list[Literal["tensorboard", "wandb", "mlflow"]] = ["tensorboard"]

    @model_validator(mode="before")
    @classmethod
    def _rename_old_keys(cls, values: Any) -> Any:
        return rename_old_keys(values) if isinstance(values, Mapping) else values

    @model_validator(mode="wrap")
    @classmethod
    def _fill_batch(cls, values: Any, handler: ModelWrapValidatorHandler[TrainingConfig]) -> TrainingConfig:
        if not isinstance(values, Mapping) or values.get("step_tokens") is None:
            return handler(values)
        config = handler({**values, "batch": _MOST_SAMPLES})  # to know the mixture as it is read
        mean = sum(share * tokens for share, _, tokens in config.mean_sizes())
        tokens = config.step_tokens or 0
        batch = int(tokens / mean)
        if not config.workers.most <= batch <= _MOST_SAMPLES:
            least, most = round(mean * config.workers.most), round(mean * _MOST_SAMPLES)
            raise ValueError(f"step_tokens {tokens}: from {least}, a sample for each worker, to {most}")
        if values.get("batch", batch) != batch:
            raise ValueError(f"batch {values['batch']} and step_tokens {tokens}, which is {batch}: give one of them")
        return handler({**values, "batch": batch})

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        if not re.fullmatch(r"\w[\w. -]*", name):
            raise ValueError("a run's folder is named by it, so it has letters, digits, '.', '-', '_' and spaces only")
        if len(name.encode()) > _LONGEST_NAME:
            raise ValueError(f"a run's folder is named by it: give at most {_LONGEST_NAME} bytes")
        return name

    @model_validator(mode="after")
    def _check_encoders(self) -> TrainingConfig:
        for name, source in self.mixture.items():
            if source.text == "online" and not self.text_encoder:
                raise ValueError(f"mixture.{name}.text is online: name the `text_encoder`, as minilm or a path")
            if source.latents == "online" and not self.codec:
                raise ValueError(f"mixture.{name}.latents is online: name the `codec`, as dct or a path")
        return self

    @model_validator(mode="after")
    def _check_lora(self) -> TrainingConfig:
        if self.lora and self.initialize is None:
            raise ValueError("lora is an adapter of a trained model: name it, as `initialize: models/onediffusion`")
        return self

    @model_validator(mode="after")
    def _check_batch(self) -> TrainingConfig:
        if self.batch < self.workers.most:
            raise ValueError(f"batch {self.batch} leaves some of the {self.workers.most} workers without a sample")
        return self

    @model_validator(mode="after")
    def _check_weights(self) -> TrainingConfig:
        total = sum(sum(source.tasks.values()) for source in self.mixture.values())
        for name, source in self.mixture.items():
            for task, weight in source.tasks.items():
                if weight < _LEAST_SHARE * total:
                    key = f"mixture.{name}.tasks.{task}"
                    raise ValueError(f"{key}: weight {weight:g} of {total:g} is hardly ever drawn; leave it out")
        return self

    def mean_sizes(self) -> list[tuple[float, float, float]]:
        """(share of the samples, frames, image tokens) of each task; sets have the mean number of views."""
        sizes = []
        for source in self.mixture.values():
            for name, weight in source.tasks.items():
                task = find_task(name)
                views = sum(views_of_sample(name, source.views, self.objective.views)) / 2
                each = 2 if task.condition == RAYS else 1
                frames = each * views if task.is_of_sets else 1 if task.condition is None else 2
                sizes.append((weight, frames, frames * ((source.size or self.size) // SIZE_STEP) ** 2))
        total = sum(weight for weight, _, _ in sizes)
        return [(weight / total, frames, tokens) for weight, frames, tokens in sizes]

    @property
    def lanes(self) -> int:
        """Lanes of a run that begins with this configuration (docs/training.md, The plan)."""
        return self.reader.lanes or min(_MOST_LANES, 1 << max(0, (self.batch - 1).bit_length() - 1))

    def fixed(self) -> dict[str, Any]:
        """What must stay the same when a run resumes: all that decides which numbers come out.

        Datasets and encoders may have moved: their content is pinned by the run's manifest.
        """
        values = self.model_dump(mode="json", exclude=_FREE)
        for source in values["mixture"].values():
            del source["dataset"]
            for key, default in _ADDED_KEYS.items():
                if source[key] == default:  # configurations of before have no such keys
                    del source[key]
        for key in ("pictures", "denoise_steps", "guidance"):  # what is looked at changes no number
            del values["validation"][key]
        if self.lora is None:
            del values["lora"]
        if self.optimizer.kind == "adamw":
            del values["optimizer"]["kind"]
        values["reader"] = {"window": self.reader.window}
        if self.reader.lanes:  # else the run's manifest knows them
            values["reader"]["lanes"] = self.reader.lanes
        if self.optimizer.schedule == "constant":
            del values["steps"]  # then a finished run may be continued
        return values

    def digest(self) -> str:
        """Digest of what `fixed` returns. Dashboards have stored it, so it is taken with the keys' old names."""
        from labeling.dataset.digests import digest_json  # it imports pyarrow

        old = {new: old for old, new in _OLD_KEYS.items()}
        return digest_json({old.get(key, key): value for key, value in self.fixed().items()})


def rename_old_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values of a configuration with keys by their present names; of a key given twice the present one stays."""
    return {_OLD_KEYS.get(key, key): value for key, value in values.items() if _OLD_KEYS.get(key) not in values}


def presets() -> list[str]:
    """Names of the presets that come with the project."""
    return example_names(PRESETS)


def load_config(
    path_or_preset: str | Path, overrides: Sequence[str] | Mapping[str, Any] | None = None
) -> TrainingConfig:
    """The configuration in a YAML file, or the preset of that name, with overrides put over it.

    A file may name a preset or another file as its `base` and then gives only what differs; null removes an entry.
    overrides: "section.key=value" strings (values in YAML), or a nested mapping.
    Raises InputError for a file that is not there, an unknown key (named, with the nearest right one) or a wrong value.
    """
    origin = str(path_or_preset)
    values = _read(origin)
    for layer in [overrides] if isinstance(overrides, Mapping) else parse_settings(overrides or []):
        values = override_config(values, layer)
    return parse_config(values, origin)


def parse_config(values: Mapping[str, Any], origin: str) -> TrainingConfig:
    """The configuration that nested values state; `origin` is where they came from. Raises InputError."""
    return validate(TrainingConfig, values, origin)


def override_config(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values of a configuration with others put over them; a source's `tasks` are replaced as a whole."""
    below, above = rename_old_keys(below), rename_old_keys(above)
    for given, replaced in (("batch", "step_tokens"), ("step_tokens", "batch")):
        if above.get(given) is not None and replaced not in above:
            below.pop(replaced, None)
    return override(below, above, whole=("tasks",))


def _read(origin: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    path = find_yaml(origin, PRESETS)
    if str(path) in seen:
        raise InputError(f"{origin}: is its own base; remove one `base`")
    values = read_yaml(origin, PRESETS, "configuration")
    base = values.pop("base", None)
    if base is None:
        return values
    sibling = path.parent / str(base)
    return override_config(_read(str(sibling) if sibling.is_file() else str(base), (*seen, str(path))), values)
