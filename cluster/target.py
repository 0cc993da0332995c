"""Targets: small typed YAML files that say where jobs run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, Field, model_validator

from cluster.kubernetes_target import KubernetesTarget
from cluster.sbatch_options import checked_names, checked_option, checked_setup
from cluster.target_fields import Variables, no_secret_in
from model.inputs.schema import Section, validate
from model.inputs.yaml_files import example_names, read_yaml

TARGETS = Path(__file__).parent / "targets"


class LocalTarget(Section):
    """This machine, in the background: the job outlives the terminal.

    environment: further variables of the job, no secrets (what the shell has, it gets anyway).
    """

    type: Literal["local"]
    environment: Variables = {}


class RayTarget(Section):
    """A Ray cluster that runs already, through its Jobs API.

    address: of its dashboard, http://HOST:8265. token_file: of its token; by default ~/.ray/auth_token, where
    `ray get-auth-token` leaves it, or else the project's own.
    working_dir: the checkout to upload, without what git ignores; by default the one that runs.
    install: whether Ray installs the packages pinned in constraints.txt for the job ("pip"), or the cluster has them
    ("none"). environment: variables of the job, no secrets (S3 credentials are the cluster's own).
    """

    type: Literal["ray"]
    address: Annotated[str, AfterValidator(no_secret_in)] = "http://127.0.0.1:8265"
    token_file: str | None = None
    working_dir: str | None = None
    install: Literal["none", "pip"] = "none"
    environment: Variables = {}


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
    default the user's data folder. scratch: on a node's own disk, for Ray's files (short, since it has sockets there).
    shared_disk: whether the nodes see this machine's files. Without, all places of a job must be s3:// addresses.
    checkpoint_seconds: how long before its time limit a job is told to write a checkpoint, and how long a stopped one
    has for it. tasks_at_once: most tasks of a job array (`workers.tasks` of a job) that run at a time. requeue: whether
    a job that was interrupted (time limit, preemption, lost node) goes back to the queue by itself, and continues.
    start_seconds: how long the nodes have to join Ray. object_store_gb: of Ray's, on a node.
    container: an image that pyxis and enroot run everything in (a .sqsh on a disk of the nodes, or REGISTRY#NAME:TAG);
    `python` and `working_dir` are then those within it. container_mounts: HOST:INSIDE, besides `scratch` and the
    checkout, which are mounted: the folders of datasets and runs.
    setup: shell lines to begin with, as `module load …`. environment: variables of the job, no secrets: S3 credentials
    are those of the submitting shell, or the ones in ~/.aws on the nodes.
    """

    type: Literal["slurm"]
    partition: _Word | None = None
    account: _Word | None = None
    qos: _Word | None = None
    reservation: _Word | None = None
    constraint: _Word | None = None
    options: list[Annotated[str, AfterValidator(no_secret_in), AfterValidator(checked_option)]] = []
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
    tasks_at_once: int | None = Field(default=None, ge=1)
    requeue: bool = True
    start_seconds: int = Field(default=300, ge=10)
    object_store_gb: float | None = Field(default=None, ge=0.1)
    container: Annotated[str, Field(pattern=r"^[^\s,]+$")] | None = None
    container_mounts: list[Annotated[str, Field(pattern=r"^/[^\s,:]+:/[^\s,:]+(:[a-z+]+)?$")]] = []
    setup: list[Annotated[str, AfterValidator(no_secret_in), AfterValidator(checked_setup)]] = []
    environment: Annotated[Variables, AfterValidator(checked_names)] = {}

    @model_validator(mode="after")
    def _sound(self) -> SlurmTarget:
        if self.container and not self.python:
            raise ValueError("container needs `python`: the interpreter within the image, as /usr/bin/python3")
        if self.container_mounts and not self.container:
            raise ValueError("container_mounts has no effect without `container`; leave it out, or name an image")
        if self.hours is not None and self.hours * 3600 < self.checkpoint_seconds + 60:
            raise ValueError(
                f"hours {self.hours:g} leaves no time before the signal that comes {self.checkpoint_seconds} s "
                "(checkpoint_seconds) ahead of the limit"
            )
        return self


Target = Annotated[LocalTarget | RayTarget | KubernetesTarget | SlurmTarget, Field(discriminator="type")]


def targets() -> list[str]:
    """Names of the targets that come with the project."""
    return example_names(TARGETS)


def load_target(name: str) -> Target:
    """The target in a YAML file, or the one of that name that comes with the project.

    Raises InputError for a file that is not there, an unknown key (with the nearest right one) or a wrong value.
    """
    return parse_target(read_yaml(name, TARGETS, "target"), name)


def parse_target(values: dict[str, Any], origin: str) -> Target:
    """The target that nested values state; `origin` is where they came from. Raises InputError."""
    return cast(Target, validate(Target, values, origin))  # type: ignore[arg-type]  # a union is no class to mypy
