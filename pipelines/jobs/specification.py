"""Jobs: typed YAML files that say what to do, the same on every target."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import Field, model_validator

from cluster.work import Workers
from labeling.dataset import digest_json, open_store
from model.inputs.schema import Section, validate
from model.inputs.yaml_files import example_names, read_yaml

JOBS = Path(__file__).parent / "examples"


class WorkersSpec(Section):
    """How much a job may use.

    count: workers, or [least, most] where the target can add and remove them; cpus, gpus, memory_gb: of each.
    Training: a worker is one rank; its readers' CPUs (`reader` of the configuration) come on top.
    Labeling: a machine's share, on which the labelers' processes are spread.
    """

    count: Annotated[int, Field(ge=1)] | tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = 1
    cpus: float = Field(default=1.0, ge=0)
    gpus: float = Field(default=0.0, ge=0)
    memory_gb: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> WorkersSpec:
        if not isinstance(self.count, int) and self.count[0] > self.count[1]:
            raise ValueError(f"count {list(self.count)}: give [least, most]")
        return self

    def resources(self, beside: float = 0.0) -> Workers:
        """The same for a target. beside: CPUs of what runs beside each worker."""
        least, most = (self.count, self.count) if isinstance(self.count, int) else self.count
        return Workers(least, most, self.cpus + beside, self.gpus, self.memory_gb)


class LabelJob(Section):
    """`label`, after `ingest` where a source is given.

    groups: labelers or column groups; none refreshes all that are declared. parameters: by labeler or group.
    shards: [first, end) of the dataset's shards, in order; all by default.
    """

    kind: Literal["label"]
    dataset: str
    source: str | None = None
    groups: list[str] = []
    parameters: dict[str, dict[str, Any]] = {}
    shards: tuple[int, int] | None = None
    workers: WorkersSpec = WorkersSpec()

    @property
    def output(self) -> str:
        return self.dataset

    @property
    def places(self) -> list[str]:
        return [self.dataset, *([self.source] if self.source else [])]


class ViewsJob(Section):
    """`views`: view sets with cameras from meshes or transforms.json."""

    kind: Literal["views"]
    source: str
    dataset: str
    count: int = Field(default=8, ge=2, le=64)
    size: int = Field(default=256, ge=32)
    seed: int = Field(default=0, ge=0)
    workers: WorkersSpec = WorkersSpec()

    @property
    def output(self) -> str:
        return self.dataset

    @property
    def places(self) -> list[str]:
        return [self.source, self.dataset]


class TrainJob(Section):
    """`train`. config: a preset, a YAML file, or the configuration itself; overrides: put over it; run: its address.

    workers, where given, take the place of the configuration's count, cpus and gpus.
    """

    kind: Literal["train"]
    config: str | dict[str, Any]
    run: str
    overrides: dict[str, Any] = {}
    workers: WorkersSpec | None = None

    @property
    def output(self) -> str:
        return self.run

    @property
    def places(self) -> list[str]:
        if isinstance(self.config, str):
            return [self.run]
        start = self.config.get("initialize")
        datasets = [source["dataset"] for source in self.config["mixture"].values()]
        return [self.run, *datasets, *([start] if start else [])]


class EvaluateJob(Section):
    """`evaluate`: figures and samples of the newest checkpoint of a run."""

    kind: Literal["evaluate"]
    run: str
    workers: WorkersSpec = WorkersSpec()

    @property
    def output(self) -> str:
        return self.run

    @property
    def places(self) -> list[str]:
        return [self.run]


class ReportJob(Section):
    """`report`: the page of a dataset or a run."""

    kind: Literal["report"]
    of: str
    workers: WorkersSpec = WorkersSpec()

    @property
    def output(self) -> str:
        return self.of

    @property
    def places(self) -> list[str]:
        return [self.of]


Job = LabelJob | ViewsJob | TrainJob | EvaluateJob | ReportJob
AnyJob = Annotated[Job, Field(discriminator="kind")]


def examples() -> list[str]:
    """Names of the jobs that come with the project."""
    return example_names(JOBS)


def load_job(name: str) -> Job:
    """The job in a YAML file, or the example of that name, ready to be sent (`resolve`).

    Raises InputError for a file that is not there, an unknown key (with the nearest right one) or a wrong value.
    """
    return resolve(parse_job(read_yaml(name, JOBS, "job"), name))


def parse_job(values: dict[str, Any], place: str) -> Job:
    """The job that nested values state; `place` is where they came from. Raises InputError."""
    return cast(Job, validate(AnyJob, values, place))  # type: ignore[arg-type]  # a union is no class to mypy


def resolve(job: Job) -> Job:
    """The job as any machine can take it: whole addresses, and a training's configuration spelled out.

    Raises InputError for a configuration that is wrong: that is better found here than on a cluster.
    """
    if isinstance(job, LabelJob):
        return job.model_copy(
            update={"dataset": address(job.dataset), "source": address(job.source) if job.source else None}
        )
    if isinstance(job, ViewsJob):
        return job.model_copy(update={"dataset": address(job.dataset), "source": address(job.source)})
    if isinstance(job, EvaluateJob):
        return job.model_copy(update={"run": address(job.run)})
    if isinstance(job, ReportJob):
        return job.model_copy(update={"of": address(job.of)})
    return _resolve_training(job)


def _resolve_training(job: TrainJob) -> TrainJob:
    from training.config import load_config, override_config, parse_config

    if isinstance(job.config, str):
        config = load_config(job.config, job.overrides)
    else:
        config = parse_config(override_config(job.config, job.overrides), "config")
    values = config.model_dump(mode="json")
    for source in values["mixture"].values():
        source["dataset"] = address(source["dataset"])
    if values["initialize"]:
        values["initialize"] = address(values["initialize"])
    if job.workers:
        wanted = job.workers.model_dump(mode="json", include={"count", "cpus", "gpus"})
        values["workers"] |= wanted
    workers = parse_config(values, "workers").workers
    memory = job.workers.memory_gb if job.workers else 0.0
    spec = WorkersSpec(count=workers.count, cpus=workers.cpus, gpus=workers.gpus, memory_gb=memory)
    return TrainJob(kind="train", config=values, run=address(job.run), workers=spec)


def room(job: Job) -> Workers:
    """What a target is asked for. job: as `resolve` returns it."""
    beside = 0.0
    if isinstance(job, TrainJob) and isinstance(job.config, dict):
        reader = job.config["reader"]
        beside = reader["processes"] * reader["cpus"]
    return (job.workers or WorkersSpec()).resources(beside)


def address(place: str) -> str:
    """An s3:// address as it is, a local path whole. Raises InputError for another scheme."""
    return open_store(place).uri


def job_id(job: Job) -> str:
    """The same for the same job, however it is scaled; of a training, the run alone: two cannot share one."""
    if isinstance(job, TrainJob):
        return f"train-{digest_json(job.run)[:8]}"
    return f"{job.kind}-{digest_json(job.model_dump(mode='json', exclude={'workers'}))[:8]}"


def scaled(job: Job, workers: WorkersSpec) -> Job:
    """The job with other workers. Raises InputError when a training's configuration does not allow them."""
    return resolve(job.model_copy(update={"workers": workers}))
