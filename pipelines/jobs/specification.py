"""Specifications of jobs: typed YAML files that say what to do, the same on every target."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import ConfigDict, Field, field_validator, model_validator

from cluster.work import ResourceRequest
from labeling.resources import Resources
from labeling.sets.options import OPTIONS
from labeling.sources.addresses import policy
from model.inputs.schema import Section, split_range, validate
from model.inputs.yaml_files import example_names, read_yaml

EXAMPLES = Path(__file__).parent / "examples"


class WorkersSpec(Section):
    """How much a job may use.

    count: workers, or [least, most] where the target can add and remove them; cpus, gpus, memory_gb: of each.
    gpu_type: which of a Kubernetes target's `gpu_pools`; by default its `gpu_pool`.
    tasks: on Slurm, of a job that labels: so many tasks of a job array, each with a range of the shards and `count`
    workers of its own. They begin as nodes get free, and one that fails leaves the others alone.
    Training: a worker is one rank; its readers' CPUs (`reader` of the configuration) come on top.
    Labeling: a machine's share, on which the labelers' processes are spread.
    """

    count: Annotated[int, Field(ge=1)] | tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = 1
    cpus: float = Field(default=1.0, ge=0)
    gpus: float = Field(default=0.0, ge=0)
    memory_gb: float = Field(default=0.0, ge=0)
    gpu_type: str = ""
    tasks: int = Field(default=1, ge=1, le=1000)

    _split_range = field_validator("count", mode="before")(split_range)

    @model_validator(mode="after")
    def _ordered(self) -> WorkersSpec:
        if not isinstance(self.count, int) and self.count[0] > self.count[1]:
            raise ValueError(f"count {list(self.count)}: give [least, most]")
        return self

    def resources(self, cpus_beside: float = 0.0) -> ResourceRequest:
        """What a target is asked for. cpus_beside: what runs beside each worker needs them."""
        least, most = (self.count, self.count) if isinstance(self.count, int) else self.count
        return ResourceRequest(least, most, self.cpus + cpus_beside, self.gpus, self.memory_gb, self.gpu_type)


class IngestSpec(Section):
    """Options of `ingest`, as on the command line; those from `url` on are for lists of addresses."""

    text: str = ""
    image: str = ""
    update: bool = False
    prune: bool = False
    url: str = ""
    retry_failed: bool = False
    connections: int = Field(default=policy.CONNECTIONS, ge=1)
    host_connections: int = Field(default=policy.HOST_CONNECTIONS, ge=1)
    host_rate: float = Field(default=0.0, ge=0)
    timeout: float = Field(default=policy.SECONDS, gt=0)
    retries: int = Field(default=policy.RETRIES, ge=0)
    max_mb: float = Field(default=policy.MAX_MIB, gt=0)
    contact: str = ""
    robots_name: str = policy.USER_AGENT
    directives: str = ",".join(policy.DIRECTIVES)
    allow_private: list[str] = []

    @model_validator(mode="after")
    def _can_be_fetched_by(self) -> IngestSpec:
        self.fetching()
        return self

    def fetching(self) -> policy.FetchPolicy:
        """How addresses are fetched. Raises InputError for what is no network, or cannot be told to servers."""
        names = set(inspect.signature(policy.FetchPolicy.of).parameters)
        return policy.FetchPolicy.of(**self.model_dump(include=names))


class LabelJob(Section):
    """`label`, after `ingest` where a source is given.

    groups: labelers or column groups; none refreshes all that are declared. parameters: by labeler or group.
    shards: [first, end) of the dataset's shards, in order; all by default. resources: of each labeler or group.
    only_errors: only rows that are in error, once more. where: SQL that is true of the rows to label. ingest: its
    options.
    """

    kind: Literal["label"]
    dataset: str
    source: str | None = None
    groups: list[str] = []
    parameters: dict[str, dict[str, Any]] = {}
    shards: tuple[int, int] | None = None
    resources: dict[str, Resources] = {}
    only_errors: bool = False
    where: str | None = None
    ingest: IngestSpec = IngestSpec()
    workers: WorkersSpec = WorkersSpec()

    @property
    def output(self) -> str:
        return self.dataset

    @property
    def data(self) -> list[str]:
        return [self.dataset, *([self.source] if self.source else [])]


class ViewsJob(Section):
    """`views`: view sets with cameras from photographs, files of cameras or meshes. gpus: that a scene's task holds."""

    kind: Literal["views"]
    source: str
    dataset: str
    count: int = Field(default=8, ge=2, le=64)
    size: int = Field(default=256, ge=32)
    seed: int = Field(default=0, ge=0)
    path: Literal["orbit", "turntable", "random"] = "orbit"
    photographs: bool | None = None
    pile: bool = False
    lens: Literal["SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "OPENCV_FISHEYE"] = "SIMPLE_RADIAL"
    gpus: float = Field(default=0, ge=0)
    workers: WorkersSpec = WorkersSpec()

    @property
    def output(self) -> str:
        return self.dataset

    @property
    def data(self) -> list[str]:
        return [self.source, self.dataset]


class SetsJob(Section):
    """`sets`: sets without cameras. of: their kind; options: of that kind, as in `labeling.sets.options`."""

    kind: Literal["sets"]
    of: Literal["identity", "subject", "editing"]
    sources: list[str] = Field(min_length=1)
    dataset: str
    options: dict[str, Any] = {}
    workers: WorkersSpec = WorkersSpec()

    @model_validator(mode="after")
    def _has_known_options(self) -> SetsJob:
        validate(OPTIONS[self.of], self.options, f"options of {self.of}")
        return self

    @property
    def output(self) -> str:
        return self.dataset

    @property
    def data(self) -> list[str]:
        return [*self.sources, self.dataset]


class TrainJob(Section):
    """`train`. config: a preset, a YAML file, or the configuration itself; overrides: put over it; run: its address.

    workers, where given, take the place of the configuration's count, cpus and gpus.
    from_checkpoint: as on the command line. A job goes back once: submitted again with the same name, it goes on.
    """

    kind: Literal["train"]
    config: str | dict[str, Any]
    run: str
    overrides: dict[str, Any] = {}
    from_checkpoint: str | None = None
    workers: WorkersSpec | None = None

    @property
    def output(self) -> str:
        return self.run

    @property
    def data(self) -> list[str]:
        if isinstance(self.config, str):
            return [self.run]
        from training.checkpoint.files import is_model_name

        start = self.config.get("initialize")
        datasets = [source["dataset"] for source in self.config["mixture"].values()]
        return [self.run, *datasets, *([start] if start and not is_model_name(start) else [])]


class EvaluateJob(Section):
    """`evaluate`: figures and samples of the newest checkpoint of a run."""

    kind: Literal["evaluate"]
    run: str
    workers: WorkersSpec = WorkersSpec()

    @property
    def output(self) -> str:
        return self.run

    @property
    def data(self) -> list[str]:
        return [self.run]


class ReportJob(Section):
    """`report`: the page of a dataset or a run.

    where: SQL that is true of the rows of a dataset to show. beside, `with` in a file: a run to compare a run with.
    replay_step: the page is about the samples of this step of a run.
    """

    model_config = ConfigDict(serialize_by_alias=True)

    kind: Literal["report"]
    of: str
    where: str | None = None
    beside: str | None = Field(default=None, alias="with")
    replay_step: int | None = Field(default=None, ge=1)
    workers: WorkersSpec = WorkersSpec()

    @model_validator(mode="after")
    def _about_one_thing(self) -> ReportJob:
        if self.replay_step is not None and (self.where is not None or self.beside is not None):
            raise ValueError("replay_step shows the samples of one step alone; leave where and with out")
        return self

    @property
    def output(self) -> str:
        return self.of

    @property
    def data(self) -> list[str]:
        return [self.of, *([self.beside] if self.beside else [])]


JobSpecification = LabelJob | ViewsJob | SetsJob | TrainJob | EvaluateJob | ReportJob
AnyKind = Annotated[JobSpecification, Field(discriminator="kind")]


def examples() -> list[str]:
    """Names of the jobs that come with the project."""
    return example_names(EXAMPLES)


def load_specification(name: str) -> JobSpecification:
    """The specification in a YAML file, or the example of that name.

    Raises InputError for a file that is not there, an unknown key (with the nearest right one) or a wrong value.
    """
    return parse_specification(read_yaml(name, EXAMPLES, "job"), name)


def parse_specification(values: dict[str, Any], origin: str) -> JobSpecification:
    """The specification that nested values state; `origin` is where they came from. Raises InputError."""
    return cast(JobSpecification, validate(AnyKind, values, origin))  # type: ignore[arg-type]  # a union is no class to mypy
