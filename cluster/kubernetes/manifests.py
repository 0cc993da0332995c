"""What is sent to Kubernetes: a RayJob for an attempt at a job, and the RayCluster that several jobs may share.

The RayJob is submitted by KubeRay's operator itself (submissionMode HTTPMode). The usual K8sJobMode would start one
more pod for it, which pulls an image of several gigabytes on a node of its own, counts against quotas, can be evicted,
and passes the entrypoint through a shell and the kubelet's $(VARIABLES) on its way. In HTTPMode the entrypoint is one
JSON string that only Ray's `sh -c` reads, and a head that was lost gets its job again. What the driver printed last is
kept in the RayJob's status; the whole log is in the job's folder.
"""

from __future__ import annotations

import math
import shlex
from dataclasses import replace
from importlib.metadata import version
from pathlib import PurePosixPath
from typing import Any, Literal

import yaml

from cluster.ray_environment import RAY_ENVIRONMENT, stopping_environment
from cluster.target import Head, KubernetesTarget, MemoryQuantity, Pool, Toleration
from cluster.work import ResourceRequest, Work
from model.inputs import InputError

Manifest = dict[str, Any]

USER = 1000  # the image's, who must be able to write to volumes
MAX_NAME = 47  # KubeRay appends to the name
UNITS = {"M": 10**6, "G": 10**9, "T": 10**12, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"
HEAD_CONTAINER = "ray-head"
WORKER_CONTAINER = "ray-worker"
GPU = "nvidia.com/gpu"

# (label, value) of nodes that may be taken away; some clusters use it as a taint, too.
SPOT_LABELS = (
    ("eks.amazonaws.com/capacityType", "SPOT"),
    ("karpenter.sh/capacity-type", "spot"),
    ("cloud.google.com/gke-spot", "true"),
    ("kubernetes.azure.com/scalesetpriority", "spot"),
)


def to_yaml(manifest: Manifest) -> str:
    """Write manifests as kubectl takes them, one after the other."""
    return yaml.safe_dump(manifest, sort_keys=False, width=120, explicit_start=True)


def rayjob(target: KubernetesTarget, work: Work) -> Manifest:
    """The RayJob of an attempt. Raises InputError for an address that pods cannot see."""
    assert len(work.name) <= MAX_NAME
    check_addresses(target, work)
    variables = dict(target.environment)
    labels = {**_labels(target), "onediffusion/kind": work.kind}
    spec: Manifest = {
        "entrypoint": shlex.join(["python", "-m", "pipelines", *work.arguments]),
        "submissionMode": "HTTPMode",
    }
    if target.cluster:
        spec["clusterSelector"] = {"ray.io/cluster": target.cluster}
        spec["runtimeEnvYAML"] = yaml.safe_dump({"env_vars": variables})
    else:
        labels |= _queue_labels(target)
        pool, group = (target.gpu_pool, "gpu") if work.resources.gpus else (target.cpu_pool, "cpu")
        request = fixed(work.resources) if target.queue else work.resources
        workers = _worker_group(target, pool, group, request, variables)
        spec |= {
            "backoffLimit": target.retries,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": target.ttl_seconds,
            # Kueue resumes a queued job when its quota allows it.
            "suspend": bool(target.suspend or target.queue),
            **({"activeDeadlineSeconds": target.deadline_seconds} if target.deadline_seconds else {}),
            "rayClusterSpec": _cluster_spec(target, [workers], variables),
        }
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {
            "name": work.name,
            "namespace": target.namespace,
            "labels": labels,
            "annotations": {**target.annotations, "onediffusion/address": work.address},
        },
        "spec": spec,
    }


def raycluster(target: KubernetesTarget) -> Manifest:
    """The RayCluster that a target's `cluster` names: both pools, each from its least to its most workers."""
    assert target.cluster
    groups = []
    for name, pool in (("cpu", target.cpu_pool), ("gpu", target.gpu_pool)):
        request = ResourceRequest(*pool.workers, pool.cpus, pool.gpus)
        request = fixed(request) if target.queue else request
        groups.append(_worker_group(target, pool, name, request, target.environment))
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {
            "name": target.cluster,
            "namespace": target.namespace,
            "labels": _labels(target) | _queue_labels(target),
            **({"annotations": target.annotations} if target.annotations else {}),
        },
        "spec": _cluster_spec(target, groups, target.environment),
    }


def fixed(request: ResourceRequest) -> ResourceRequest:
    """Fix the number of workers at the largest: Kueue admits a job with a quota that must not change."""
    return replace(request, min_workers=request.max_workers)


def check_addresses(target: KubernetesTarget, work: Work) -> None:
    """Raises InputError for the first address that a pod cannot see: neither on S3 nor on a volume."""
    mounts = [PurePosixPath(volume.path) for volume in target.volumes]
    for address in (*work.data, work.address):
        if not address.startswith("s3://") and not any(
            PurePosixPath(address).is_relative_to(mount) for mount in mounts
        ):
            mounted_at = f" ({', '.join(str(mount) for mount in mounts)})" if mounts else ""
            raise InputError(
                f"{address}: pods cannot see this folder; use an s3:// address, or a path on one of the target's "
                f"`volumes`{mounted_at}"
            )


def _labels(target: KubernetesTarget) -> dict[str, str]:
    """Labels of everything made here."""
    return {**target.labels, "app.kubernetes.io/part-of": "onediffusion"}


def _queue_labels(target: KubernetesTarget) -> dict[str, str]:
    """Labels by which Kueue knows what waits in its queue."""
    if not target.queue:
        return {}
    return {QUEUE_LABEL: target.queue, **({PRIORITY_LABEL: target.priority} if target.priority else {})}


def _cluster_spec(target: KubernetesTarget, groups: list[Manifest], environment: dict[str, str]) -> Manifest:
    elastic = any(group["minReplicas"] < group["maxReplicas"] for group in groups)
    autoscaler = {
        "version": "v2",
        "idleTimeoutSeconds": target.idle_seconds,
        "securityContext": _security_context(),
    }
    return {
        "rayVersion": target.ray_version or version("ray"),
        # The operator makes the token and hands it to every container by reference to its Secret.
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": elastic,
        **({"autoscalerOptions": autoscaler} if elastic else {}),
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": str(target.head.ray_cpus)},
            "template": _head_template(target, target.head, environment),
        },
        "workerGroupSpecs": groups,
    }


def _head_template(target: KubernetesTarget, head: Head, environment: dict[str, str]) -> Manifest:
    variables = {**stopping_environment(target.grace_seconds), **environment}
    size = {"cpu": _cpu_quantity(head.cpus), "memory": head.memory}
    template = _template(target, "head", size, _default_shared_memory(head.memory), variables)
    template["spec"]["containers"][0]["ports"] = [
        {"containerPort": port, "name": name} for name, port in (("gcs-server", 6379), ("dashboard", 8265))
    ]
    return _with_placement(template, head.node_selector, [_toleration(toleration) for toleration in head.tolerations])


def _worker_group(
    target: KubernetesTarget, pool: Pool, name: str, request: ResourceRequest, environment: dict[str, str]
) -> Manifest:
    return {
        "groupName": name,
        "replicas": request.min_workers,
        "minReplicas": request.min_workers,
        "maxReplicas": request.max_workers,
        "rayStartParams": {},
        "template": worker_template(target, pool, request, environment),
    }


def worker_template(
    target: KubernetesTarget, pool: Pool, request: ResourceRequest, environment: dict[str, str]
) -> Manifest:
    """The pod of one worker of a job, as large as the pool says or the job asks."""
    memory = f"{request.memory_gb:g}G" if request.memory_gb else pool.memory
    gpus = math.ceil(request.gpus)
    size: dict[str, Any] = {"cpu": _cpu_quantity(max(pool.cpus, request.cpus)), "memory": memory}
    if gpus:
        size[GPU] = gpus
    template = _template(target, "worker", size, pool.shared_memory or _default_shared_memory(memory), environment)
    selector = dict(pool.node_selector)
    if gpus and pool.gpu_type:
        selector[pool.gpu_label] = pool.gpu_type
    tolerations = [_toleration(toleration) for toleration in pool.tolerations]
    if gpus:  # nodes with GPUs are commonly kept free for pods that need one
        tolerations.append(_toleration(Toleration(key=GPU, effect="NoSchedule")))
    if pool.spot:
        tolerations += [_toleration(Toleration(key=key, value=value)) for key, value in SPOT_LABELS]
        template["spec"]["affinity"] = {
            "nodeAffinity": {
                "preferredDuringSchedulingIgnoredDuringExecution": [
                    {
                        "weight": 100,
                        "preference": {"matchExpressions": [{"key": key, "operator": "In", "values": [value]}]},
                    }
                    for key, value in SPOT_LABELS
                ]
            }
        }
    return _with_placement(template, selector, tolerations)


def _template(
    target: KubernetesTarget,
    role: Literal["head", "worker"],
    size: dict[str, Any],
    shared_memory: MemoryQuantity,
    environment: dict[str, str],
) -> Manifest:
    drain = ["python", "-m", "cluster.kubernetes.drain", role, "--seconds", str(target.grace_seconds - 10)]
    container: Manifest = {
        "name": HEAD_CONTAINER if role == "head" else WORKER_CONTAINER,
        "image": target.image,
        **({"imagePullPolicy": target.pull_policy} if target.pull_policy else {}),
        "env": [{"name": name, "value": value} for name, value in {**RAY_ENVIRONMENT, **environment}.items()],
        **({"envFrom": [{"secretRef": {"name": target.credentials}}]} if target.credentials else {}),
        # Requests and limits agree, so that Ray counts on exactly what the pod has.
        "resources": {"requests": dict(size), "limits": dict(size)},
        # This asks for a checkpoint, and whatever takes the pod away (a spot node, Kueue, `stop`) waits for it.
        "lifecycle": {"preStop": {"exec": {"command": drain}}},
        "securityContext": _security_context(),
        "volumeMounts": [
            {"name": "shared-memory", "mountPath": "/dev/shm"},  # noqa: S108 — the folder that Ray uses
            *({"name": f"volume-{i}", "mountPath": v.path, "readOnly": v.read_only} for i, v in _volumes(target)),
        ],
    }
    spec: Manifest = {
        "containers": [container],
        "restartPolicy": "Never",  # the operator replaces pods; Ray would not know one that restarted in place
        "terminationGracePeriodSeconds": target.grace_seconds,
        "securityContext": {"runAsNonRoot": True, **({"fsGroup": USER} if target.volumes else {})},
        "volumes": [
            {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": shared_memory}},
            *(
                {"name": f"volume-{i}", "persistentVolumeClaim": {"claimName": v.claim, "readOnly": v.read_only}}
                for i, v in _volumes(target)
            ),
        ],
    }
    if target.service_account:
        spec["serviceAccountName"] = target.service_account
    if target.pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in target.pull_secrets]
    if target.priority and not target.queue:
        spec["priorityClassName"] = target.priority
    metadata: Manifest = {"labels": _labels(target)}
    if target.annotations:
        metadata["annotations"] = dict(target.annotations)
    return {"metadata": metadata, "spec": spec}


def _volumes(target: KubernetesTarget) -> list[tuple[int, Any]]:
    return list(enumerate(target.volumes))


def _with_placement(template: Manifest, selector: dict[str, str], tolerations: list[Manifest]) -> Manifest:
    """The template with the labels that nodes must have, and the taints that they may have."""
    if selector:
        template["spec"]["nodeSelector"] = dict(selector)
    if tolerations:
        template["spec"]["tolerations"] = tolerations
    return template


def _toleration(toleration: Toleration) -> Manifest:
    entry: Manifest = {"key": toleration.key, "operator": "Exists" if toleration.value is None else "Equal"}
    if toleration.value is not None:
        entry["value"] = toleration.value
    if toleration.effect:
        entry["effect"] = toleration.effect
    return entry


def _security_context() -> Manifest:
    """What namespaces under the "restricted" Pod Security Standard ask of every container."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _default_shared_memory(memory: MemoryQuantity) -> MemoryQuantity:
    """40 % of the pod's: Ray's objects take 30 %, workers of training the rest."""
    unit = memory.lstrip("0123456789.")
    return f"{int(float(memory.removesuffix(unit)) * UNITS[unit] * 0.4) >> 20}Mi"


def _cpu_quantity(cpus: float) -> str:
    return str(int(cpus)) if cpus == int(cpus) else f"{round(cpus * 1000)}m"
