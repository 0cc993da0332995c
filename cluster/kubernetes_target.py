"""The target of type `kubernetes`: a cluster with the KubeRay operator, its pools of machines and their network."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from cluster.target_fields import (
    ClusterName,
    DnsName,
    FolderPath,
    ImageName,
    LabelKey,
    LabelValue,
    MemoryQuantity,
    Namespace,
    QueueName,
    ResourceAmount,
    ResourceName,
    ShellName,
    Variables,
    in_form,
)
from model.inputs import nearest
from model.inputs.schema import Section

USER = 1000  # the image's, who must be able to write to volumes
PoolName = Annotated[str, in_form(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", "lower-case letters, digits, -, as h100", 20)]


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class Toleration(Section):
    """A taint of nodes that pods put up with: of this key, and of this value and effect where they are given."""

    key: LabelKey
    value: LabelValue | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


class Topology(Section):
    """Pods of a job are kept near each other: on nodes that have the same value of the label `key`.

    key: as topology.kubernetes.io/zone, cloud.google.com/gce-topology-block or backend.coreweave.cloud/leafgroup.
    required: wait rather than run on nodes that are not. Under Kueue it becomes an annotation of its topology-aware
    scheduling.
    """

    key: LabelKey
    required: bool = False


def _has_pod_fields(overlay: dict[str, Any]) -> dict[str, Any]:
    for name, value in overlay.items():
        if name not in ("metadata", "spec"):
            known = nearest(name, ["metadata", "spec"]) or "; a pod has metadata and spec"
            raise ValueError(f"no field {name!r} of a pod{known}")
        if not isinstance(value, dict):
            raise ValueError(f"{name}: write the fields that it has")
    return overlay


class Pod(Section):
    """What pods of one kind have besides the usual.

    image: another than the target's, as the smaller one for CPUs alone (`docker build --build-arg DEVICE=cpu`).
    disk: of a node's own disk (ephemeral-storage); by default as much as the job is known to need is asked for.
    node_selector: labels that a node must have. tolerations: taints it may have.
    pod_overlay: any other fields of a pod, `metadata` and `spec` as Kubernetes has them, merged with ours field by
    field and items of lists by their name; one that contradicts ours is refused. Items without a name are added.
    """

    image: ImageName | None = None
    disk: MemoryQuantity | None = None
    node_selector: dict[LabelKey, LabelValue] = {}
    tolerations: list[Toleration] = []
    pod_overlay: dict[str, Any] = {}

    _pod_fields = field_validator("pod_overlay")(_has_pod_fields)


class Pool(Pod):
    """Machines that workers run on. A pod is a machine, or the part of one that a job needs.

    cpus, memory, gpus: what a pod may have of a machine. As many workers share a pod as fit; a job that does not fill a
    machine asks for its share. memory: by default as much as the run needs by arithmetic (`--dry-run` shows the sum),
    else 4Gi for each CPU, at least 16Gi. A pool with at most one GPU gives a worker that needs more CPUs or GPUs a pod
    of its own size.
    shared_memory: of /dev/shm, a part of the memory, where Ray keeps its objects; by default 40 % of the memory, or
    what the run needs where that is more.
    gpu_type: value of the node label `gpu_label`, as "NVIDIA-A100-SXM4-80GB" (the label of NVIDIA's GPU operator; GKE
    has cloud.google.com/gke-accelerator, Karpenter karpenter.k8s.aws/instance-gpu-name).
    spot: nodes that may be taken away are welcome, and preferred (EKS, Karpenter, GKE, AKS).
    extra_resources: other devices of a whole machine, as {vpc.amazonaws.com/efa: 32, hugepages-2Mi: 5120Mi} or
    {rdma/ib: 1}; pods with a part of one do without. nccl: variables of NCCL, and of libfabric and UCX below it.
    host_network: pods use the node's network, one on each node. ipc_lock: pods may lock memory for RDMA; the capability
    counts for root (`user`), others have the node's limit.
    topology: how near each other the pods of a job are. workers: least and most pods of a shared cluster.
    """

    cpus: float = Field(default=4, gt=0)
    memory: MemoryQuantity | None = None
    gpus: int = Field(default=0, ge=0)
    shared_memory: MemoryQuantity | None = None
    gpu_type: LabelValue | None = None
    gpu_label: LabelKey = "nvidia.com/gpu.product"
    spot: bool = False
    extra_resources: dict[ResourceName, Annotated[ResourceAmount, BeforeValidator(_as_text)]] = {}
    nccl: dict[ShellName, Annotated[str, BeforeValidator(_as_text)]] = {}
    host_network: bool = False
    ipc_lock: bool = False
    topology: Topology | None = None
    workers: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=1)]] = (0, 4)


def _with_gpus(values: Any) -> Any:
    """A pool of GPUs by its defaults: one GPU, and 8 CPUs for each."""
    if not isinstance(values, dict):
        return values
    gpus = values.get("gpus", 1)
    return {"cpus": 8 * gpus if isinstance(gpus, int) and gpus > 0 else 8, "gpus": 1} | values


GpuPool = Annotated[Pool, BeforeValidator(_with_gpus)]


class Head(Pod):
    """The pod of Ray's head and of the job's own process, which reads listings and waits for the workers.

    ray_cpus: CPUs on it that workers' tasks may use; none by default, so that work runs on the pools. It is not meant
    for spot nodes: without it the job begins again from its last checkpoint.
    """

    cpus: float = Field(default=2, gt=0)
    memory: MemoryQuantity = "8Gi"
    ray_cpus: int = Field(default=0, ge=0)


class Volume(Section):
    """A disk that all pods share: the name of a PersistentVolumeClaim, and the folder that pods see it as."""

    claim: DnsName
    path: FolderPath
    read_only: bool = False


class KubernetesTarget(Section):
    """A Kubernetes cluster with the KubeRay operator (1.6 or later): a Ray cluster is made for each job, and removed.

    image: built by the project's Dockerfile; by its digest (NAME@sha256:…) all pods have the same one for sure.
    pull_policy, pull_secrets: how and with which Secrets it is pulled. user: number of the one that pods run as.
    context, kubeconfig: as kubectl has them; by default its current ones, and inside a pod the pod's own.
    namespace, service_account: of the pods. credentials: a Secret whose entries become variables of the pods
    (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY …); none where the service account or the nodes have a role of their own.
    environment: further variables, no secrets. volumes: shared disks; what a job reads and writes must lie on one or
    on S3.
    queue: a LocalQueue of Kueue, where jobs wait for their turn; all pods of a job then start together or none, and
    their number is fixed, at the most that the job allows. priority: a WorkloadPriorityClass with a queue, else the
    pods' PriorityClass.
    cpu_pool, gpu_pool: where workers without and with GPUs run. gpu_pools: others with GPUs by a name of their own, by
    which a job asks for one (`workers.gpu_type`). head: the pod that leads them.
    cpu_pods: pods of the CPU pool that a job with GPUs has besides, for what needs none, as ingest and CPU labelers;
    a number, or [least, most].
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
    user: int = Field(default=USER, ge=0)
    context: str | None = None
    kubeconfig: str | None = None
    namespace: Namespace = "default"
    service_account: DnsName | None = None
    credentials: DnsName | None = None
    environment: Variables = {}
    volumes: list[Volume] = []
    queue: QueueName | None = None
    priority: DnsName | None = None
    cpu_pool: Pool = Pool()
    gpu_pool: GpuPool = Pool(cpus=8, gpus=1)
    gpu_pools: dict[PoolName, GpuPool] = {}
    cpu_pods: Annotated[int, Field(ge=0)] | tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=1)]] = 0
    head: Head = Head()
    idle_seconds: int = Field(default=120, ge=1)
    retries: int = Field(default=2, ge=0)
    ttl_seconds: int = Field(default=60, ge=0)
    deadline_seconds: int | None = Field(default=None, ge=1)
    grace_seconds: int = Field(default=120, ge=15)
    suspend: bool = False
    cluster: ClusterName | None = None
    labels: dict[LabelKey, LabelValue] = {}
    annotations: dict[LabelKey, str] = {}
    ray_version: Annotated[str, in_form(r"[0-9]+(\.[0-9]+)+\w*", "Ray's versions are, as 2.60.0")] | None = None

    @model_validator(mode="after")
    def _shared(self) -> KubernetesTarget:
        for name in ("suspend", "deadline_seconds"):
            if self.cluster and getattr(self, name):
                raise ValueError(f"`{name}` needs a cluster made for the job; leave it out, or leave out `cluster`")
        return self

    @model_validator(mode="after")
    def _one_place(self) -> KubernetesTarget:
        for name, pool in self.pools.items():
            for variable in pool.nccl.keys() & self.environment.keys():
                raise ValueError(f"{variable} is in `environment` and in `{name}.nccl`; leave one of them out")
        if isinstance(self.cpu_pods, tuple) and self.cpu_pods[0] > self.cpu_pods[1]:
            raise ValueError(f"cpu_pods {list(self.cpu_pods)}: give [least, most]")
        return self

    @property
    def images(self) -> list[str]:
        """All images that its pods may have, each once."""
        own = [pod.image for pod in (self.head, *self.pools.values()) if pod.image]
        return list(dict.fromkeys([self.image, *own]))

    @property
    def pools(self) -> dict[str, Pool]:
        """Every pool by the key of the target that states it."""
        others = {f"gpu_pools.{name}": pool for name, pool in self.gpu_pools.items()}
        return {"cpu_pool": self.cpu_pool, "gpu_pool": self.gpu_pool, **others}
