"""Targets: small typed YAML files that say where jobs run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, Field, field_validator, model_validator

from model.inputs.schema import Section, validate
from model.inputs.yaml_files import example_names, read_yaml

TARGETS = Path(__file__).parent / "targets"

_SECRET = re.compile(
    r"(^|_)(SECRET|TOKEN|PASSWORD|PASSWD|PASS|PWD|PAT|CREDENTIALS?)(_|$)|(ACCESS|API|PRIVATE|SECRET)_?KEY|_KEY$"
)
_USERINFO = re.compile(r"://[^/@\s]*:[^/@\s]+@")
_PATHS = ("_FILE", "_PATH", "_DIR", "GOOGLE_APPLICATION_CREDENTIALS")
_WHERE_SECRETS_BELONG = (
    "leave it in the shell that submits (local, slurm), in the cluster's own environment (ray), or in a Secret that "
    "`credentials` names (kubernetes)"
)


def is_secret(variable: str) -> bool:
    """Whether an environment variable of this name holds a secret, not the path of a file with one."""
    name = variable.upper()
    return bool(_SECRET.search(name)) and not name.endswith(_PATHS)


def _in_form(pattern: str, how: str) -> AfterValidator:
    """Refuses a text that a pattern does not match whole; how: the right form, in words."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"write it as {how}")
        return value

    return AfterValidator(check)


DnsName = Annotated[
    str, _in_form(r"[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?", "Kubernetes names are: lower-case letters, digits and -")
]
MemoryQuantity = Annotated[str, _in_form(r"[1-9][0-9]*(Mi|Gi|Ti|M|G|T)", "a number and Mi, Gi or Ti, as 16Gi")]
FolderPath = Annotated[str, _in_form(r"/[^/].*", "an absolute path")]
ImageName = Annotated[str, _in_form(r"\S+", "REGISTRY/NAME:TAG")]


def _no_secrets(values: dict[str, str]) -> dict[str, str]:
    for name, value in values.items():
        _no_secret_in(f"{name}={value}")
    return values


def _no_secret_in(line: str) -> str:
    for name in re.findall(r"(\w+)=", line):
        if is_secret(name):
            raise ValueError(
                f"{name} looks like a secret, and targets are kept with the jobs sent to them; {_WHERE_SECRETS_BELONG}"
            )
    if _USERINFO.search(line):
        raise ValueError(
            f"a password in an address looks like a secret, and targets are kept with jobs; {_WHERE_SECRETS_BELONG}"
        )
    return line


Variables = Annotated[dict[str, str], AfterValidator(_no_secrets)]


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
    address: Annotated[str, AfterValidator(_no_secret_in)] = "http://127.0.0.1:8265"
    token_file: str | None = None
    working_dir: str | None = None
    install: Literal["none", "pip"] = "none"
    environment: Variables = {}


class Toleration(Section):
    """A taint of nodes that pods put up with: of this key, and of this value and effect where they are given."""

    key: str
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


class Pool(Section):
    """Nodes that workers run on, and how large a worker's pod is there.

    cpus, memory: of a pod; a job that asks for more CPUs, or names its memory, gets that instead. gpus: of a pod of a
    shared cluster (`cluster`); a job's own pods have what its workers ask for.
    shared_memory: of /dev/shm, a part of `memory`, where Ray keeps its objects; 40 % of it by default.
    gpu_type: value of the node label `gpu_label`, as "NVIDIA-A100-SXM4-80GB" (the label of NVIDIA's GPU operator; GKE
    has cloud.google.com/gke-accelerator, Karpenter karpenter.k8s.aws/instance-gpu-name).
    spot: nodes that may be taken away are welcome, and preferred (EKS, Karpenter, GKE, AKS). node_selector: labels that
    a node must have. tolerations: taints it may have.
    workers: least and most of a shared cluster; else the job says.
    """

    cpus: float = Field(default=4, gt=0)
    memory: MemoryQuantity = "16Gi"
    gpus: int = Field(default=0, ge=0)
    shared_memory: MemoryQuantity | None = None
    gpu_type: str | None = None
    gpu_label: str = "nvidia.com/gpu.product"
    spot: bool = False
    node_selector: dict[str, str] = {}
    tolerations: list[Toleration] = []
    workers: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=1)]] = (0, 4)


class Head(Section):
    """The pod of Ray's head and of the job's own process, which reads listings and waits for the workers.

    ray_cpus: CPUs on it that workers' tasks may use; none by default, so that work runs on the pools. It is not meant
    for spot nodes: without it the job begins again from its last checkpoint.
    """

    cpus: float = Field(default=2, gt=0)
    memory: MemoryQuantity = "8Gi"
    ray_cpus: int = Field(default=0, ge=0)
    node_selector: dict[str, str] = {}
    tolerations: list[Toleration] = []


class Volume(Section):
    """A disk that all pods share: the name of a PersistentVolumeClaim, and the folder that pods see it as."""

    claim: DnsName
    path: FolderPath
    read_only: bool = False


class KubernetesTarget(Section):
    """A Kubernetes cluster with the KubeRay operator (1.6 or later): a Ray cluster is made for each job, and removed.

    image: built by the project's Dockerfile. pull_policy, pull_secrets: how and with which Secrets it is pulled.
    context, kubeconfig: as kubectl has them; by default its current ones, and inside a pod the pod's own.
    namespace, service_account: of the pods. credentials: a Secret whose entries become variables of the pods
    (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY …); none where the service account or the nodes have a role of their own.
    environment: further variables, no secrets. volumes: shared disks; what a job reads and writes must lie on one or
    on S3.
    queue: a LocalQueue of Kueue, where jobs wait for their turn; their number of workers is then fixed, at the most
    that the job allows. priority: a WorkloadPriorityClass with a queue, else the pods' PriorityClass.
    cpu_pool, gpu_pool: where workers without and with GPUs run. head: the pod that leads them.
    idle_seconds: after which the autoscaler gives a worker back, where a job asks for between least and most workers.
    retries: how often a job that was lost or interrupted begins again, from its last checkpoint (a job on a shared
    cluster does not: KubeRay would remove the cluster). ttl_seconds: for which an ended job keeps its pods.
    deadline_seconds: after which it is ended. grace_seconds: for a checkpoint, when pods are taken away.
    suspend: send jobs that wait until someone resumes them.
    cluster: a shared RayCluster to send jobs to, instead of one made for each. Whoever runs it makes it once, from the
    manifest that `--dry-run` shows: it costs money until it is removed, so no job makes it unasked.
    labels, annotations: of everything made here. ray_version: of the image; by default the one installed here.
    """

    type: Literal["kubernetes"]
    image: ImageName
    pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    pull_secrets: list[DnsName] = []
    context: str | None = None
    kubeconfig: str | None = None
    namespace: DnsName = "default"
    service_account: DnsName | None = None
    credentials: DnsName | None = None
    environment: Variables = {}
    volumes: list[Volume] = []
    queue: DnsName | None = None
    priority: DnsName | None = None
    cpu_pool: Pool = Pool()
    gpu_pool: Pool = Pool(cpus=8, memory="32Gi", gpus=1)
    head: Head = Head()
    idle_seconds: int = Field(default=120, ge=1)
    retries: int = Field(default=2, ge=0)
    ttl_seconds: int = Field(default=60, ge=0)
    deadline_seconds: int | None = Field(default=None, ge=1)
    grace_seconds: int = Field(default=120, ge=15)
    suspend: bool = False
    cluster: DnsName | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    ray_version: str | None = None

    @field_validator("gpu_pool", mode="before")
    @classmethod
    def _gpu_sizes(cls, values: Any) -> Any:
        return {"cpus": 8, "memory": "32Gi", "gpus": 1} | values if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _shared(self) -> KubernetesTarget:
        for name in ("suspend", "deadline_seconds"):
            if self.cluster and getattr(self, name):
                raise ValueError(f"`{name}` needs a cluster made for the job; leave it out, or leave out `cluster`")
        return self


_Word = Annotated[str, Field(pattern=r"^[^\s\"'\\]+$")]


# Options of sbatch by which jobs are found, stopped and told to write a checkpoint, or that another key of the target
# stands for: the second of a kind would win. sbatch also takes the beginnings of names.
_OWN_OPTIONS = {
    **dict.fromkeys(("job-name", "array", "dependency", "output", "error", "input", "open-mode", "signal"), ""),
    **dict.fromkeys(("export", "export-file", "chdir", "wrap", "wait", "parsable", "test-only", "quiet"), ""),
    **dict.fromkeys(("nodes", "ntasks", "ntasks-per-node", "cpus-per-task"), "workers of the job, and cpus_per_node"),
    **dict.fromkeys(("gres", "gpus", "gpus-per-node", "gpus-per-task"), "gpus_per_node and gpu_type"),
    **dict.fromkeys(("mem", "mem-per-cpu", "mem-per-gpu"), "memory_gb_per_node"),
    **{name: name for name in ("partition", "account", "qos", "reservation", "constraint", "exclusive")},
    "time": "hours",
    "requeue": "requeue",
    "no-requeue": "requeue",
}


def _not_ours(option: str) -> str:
    name = re.split(r"[=\s]", option.removeprefix("--"))[0]
    for own, key in _OWN_OPTIONS.items():
        if own.startswith(name):
            remedy = f"; set {key}" if key else ""
            raise ValueError(f"--{name} is what jobs of this project are steered by{remedy}")
    return option


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
    options: list[
        Annotated[str, Field(pattern=r"^--[a-z][^\n]*$"), AfterValidator(_no_secret_in), AfterValidator(_not_ours)]
    ] = []
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
    setup: list[Annotated[str, AfterValidator(_no_secret_in)]] = []
    environment: Variables = {}

    @model_validator(mode="after")
    def _sound(self) -> SlurmTarget:
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
