"""Targets: small typed YAML files that say where jobs run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from model.errors import InputError, nearest

TARGETS = Path(__file__).parent / "targets"


class Section(BaseModel):
    """A part of a target; a key it does not have is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class LocalTarget(Section):
    """This machine, in the background: the job outlives the terminal.

    environment: further variables of the job, no secrets (what the shell has, it gets anyway).
    """

    type: Literal["local"]
    environment: dict[str, str] = {}


class RayTarget(Section):
    """A Ray cluster that runs already, through its Jobs API.

    address: of its dashboard, http://HOST:8265. token_file: of its token; by default the project's own.
    working_dir: the checkout to upload, without what git ignores; by default the one that runs.
    install: whether Ray installs the packages pinned in constraints.txt for the job ("pip"), or the cluster has them
    ("none"). environment: variables of the job, no secrets
    (S3 credentials are the cluster's own).
    """

    type: Literal["ray"]
    address: str = "http://127.0.0.1:8265"
    token_file: str | None = None
    working_dir: str | None = None
    install: Literal["none", "pip"] = "none"
    environment: dict[str, str] = {}


class KubernetesTarget(Section):
    """A Kubernetes cluster with the KubeRay operator."""

    type: Literal["kubernetes"]
    image: str
    namespace: str = "default"
    environment: dict[str, str] = {}


SECRETS = re.compile("SECRET|PASSWORD|ACCESS_KEY|TOKEN$", re.IGNORECASE)  # in names of variables
_Word = Annotated[str, Field(pattern=r"^[^\s\"'\\]+$")]


class SlurmTarget(Section):
    """A Slurm site, from a machine where sbatch, squeue, scancel and scontrol work.

    partition, account, qos, reservation, constraint: as the site names them; by default as it chooses.
    options: further ones of sbatch, as "--mail-type=FAIL". hours: time limit; by default the partition's.
    cpus_per_node, gpus_per_node, memory_gb_per_node: what a job may take of a node. They and a worker's needs decide
    how many workers share a node, and so how many nodes a job asks for; one that fills no node asks for its share.
    gpu_type: as in the site's gres (gpu:TYPE:COUNT). exclusive: take whole nodes.
    python: interpreter on the nodes, with the packages of constraints.txt; by default this one. working_dir: checkout
    on the nodes; by default this one. folder: on this machine, for scripts and, on a shared disk, their output; by
    default the user's data folder. scratch: folder of a node's own disk for Ray's files (short: Unix sockets are in it).
    shared_disk: whether the nodes see this machine's files. Without, all places of a job must be s3:// addresses.
    checkpoint_seconds: how long before its time limit a job is told to write a checkpoint, and how long a stopped one
    has for it. requeue: whether a job that was interrupted (time limit, preemption, lost node) goes back to the queue
    by itself, and continues. start_seconds: how long the nodes have to join Ray. object_store_gb: of Ray's, on a node.
    setup: shell lines to begin with, as `module load …`. environment: variables of the job, no secrets: S3 credentials
    are those of the submitting shell, or the ones in ~/.aws on the nodes.
    """

    type: Literal["slurm"]
    partition: _Word | None = None
    account: _Word | None = None
    qos: _Word | None = None
    reservation: _Word | None = None
    constraint: _Word | None = None
    options: list[Annotated[str, Field(pattern=r"^--[a-z][^\n]*$")]] = []
    hours: float | None = Field(default=None, gt=0)
    cpus_per_node: int = Field(ge=1)
    gpus_per_node: int = Field(default=0, ge=0)
    gpu_type: _Word | None = None
    memory_gb_per_node: float | None = Field(default=None, gt=0)
    exclusive: bool = False
    python: str | None = None
    working_dir: str | None = None
    folder: str | None = None
    scratch: str = Field(default="/tmp", pattern=r"^/\S+$", max_length=32)  # noqa: S108 - folders in it are made by mktemp
    shared_disk: bool = True
    checkpoint_seconds: int = Field(default=300, ge=1, le=65535)
    requeue: bool = True
    start_seconds: int = Field(default=300, ge=10)
    object_store_gb: float | None = Field(default=None, ge=0.1)
    setup: list[str] = []
    environment: dict[str, str] = {}

    @model_validator(mode="after")
    def _sound(self) -> SlurmTarget:
        if self.hours is not None and self.hours * 3600 < self.checkpoint_seconds + 60:
            raise ValueError(
                f"hours {self.hours:g} leaves no time before the signal that comes {self.checkpoint_seconds} s "
                "(checkpoint_seconds) ahead of the limit"
            )
        for name in self.environment:
            if SECRETS.search(name):
                raise ValueError(f"environment.{name}: no secrets here; set it in the shell that submits")
        return self


Target = Annotated[LocalTarget | RayTarget | KubernetesTarget | SlurmTarget, Field(discriminator="type")]


def targets() -> list[str]:
    """Names of the targets that come with the project."""
    return sorted(path.stem for path in TARGETS.glob("*.yaml"))


def load_target(name: str) -> Target:
    """The target in a YAML file, or the one of that name that comes with the project.

    Raises InputError for a file that is not there, an unknown key (with the nearest right one) or a wrong value.
    """
    path = TARGETS / f"{name}.yaml" if name in targets() else Path(name).expanduser()
    try:
        values = yaml.safe_load(path.read_text())
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(
            f"{name}: no such target file{nearest(name, targets())}; targets here are {', '.join(targets())}"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{name}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InputError(f"{name}: a target is `key: value` lines, with a `type`")
    return parse_target(values, name)


def parse_target(values: dict[str, Any], place: str) -> Target:
    """The target that nested values state; `place` is where they came from. Raises InputError."""
    try:
        return TypeAdapter[Target](Target).validate_python(values)
    except ValidationError as error:
        raise InputError(f"{place}: {_explain(error, values)}") from None


def _explain(error: ValidationError, values: dict[str, Any]) -> str:
    """The first thing that is wrong, in one line."""
    problem = error.errors()[0]
    kinds: dict[str, type[Section]] = {
        "local": LocalTarget,
        "ray": RayTarget,
        "kubernetes": KubernetesTarget,
        "slurm": SlurmTarget,
    }
    if problem["type"].startswith("union_tag"):
        given = values.get("type")
        known = ", ".join(kinds)
        return f"`type` is one of {known}, not {given!r}" if given else f"`type` is missing; it is one of {known}"
    where = ".".join(str(part) for part in problem["loc"][1:])
    if problem["type"] == "extra_forbidden":
        fields = list(kinds[values["type"]].model_fields)
        return f"no key {where!r}{nearest(where, fields) or '; there are ' + ', '.join(fields)}"
    if problem["type"] == "missing":
        return f"key {where!r} is missing"
    shown = f", got {problem['input']!r}" if isinstance(problem["input"], str | int | float | bool) else ""
    return f"{where}: {problem['msg'].removeprefix('Value error, ')}{shown}"
