"""What is sent to Kubernetes: a RayJob for an attempt at a job, and the RayCluster that several jobs may share.

The RayJob is submitted by KubeRay's operator itself (submissionMode HTTPMode). The usual K8sJobMode would start one
more pod for it, which pulls an image of several gigabytes on a node of its own, counts against quotas, can be evicted,
and passes the entrypoint through a shell and the kubelet's $(VARIABLES) on its way. In HTTPMode the entrypoint is one
JSON string that only Ray's `sh -c` reads, and a head that was lost gets its job again. What the driver printed last is
kept in the RayJob's status; the whole log is in the job's folder.
"""

from __future__ import annotations

import shlex
from pathlib import PurePosixPath

import yaml

from cluster.kubernetes.overlay import Manifest
from cluster.kubernetes.pods import Pods, common_labels
from cluster.kubernetes.shape import PodShape, machine_shape, pod_shape
from cluster.kubernetes_target import KubernetesTarget
from cluster.work import Work
from model.inputs import InputError

MAX_NAME = 47  # KubeRay appends to the name
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"


def to_yaml(manifest: Manifest) -> str:
    """Write manifests as kubectl takes them, one after the other."""
    return yaml.safe_dump(manifest, sort_keys=False, width=120, explicit_start=True)


def rayjob(target: KubernetesTarget, work: Work) -> Manifest:
    """The RayJob of an attempt.

    Raises InputError for an address that pods cannot see, a pool that is too small, and an overlay that contradicts.
    """
    assert len(work.name) <= MAX_NAME
    check_addresses(target, work)
    shape = pod_shape(target, work)
    labels = {**common_labels(target), "onediffusion/kind": work.kind}
    spec: Manifest = {
        "entrypoint": shlex.join(["python", "-m", "pipelines", *work.arguments]),
        "submissionMode": "HTTPMode",
    }
    if target.cluster:
        spec["clusterSelector"] = {"ray.io/cluster": target.cluster}
        spec["runtimeEnvYAML"] = yaml.safe_dump({"env_vars": dict(target.environment)})
    else:
        labels |= _queue_labels(target)
        pods = Pods(target, work.name)
        groups = [pods.group("gpu" if work.resources.gpus else "cpu", shape)]
        beside = pods_beside(target, work)
        if beside:
            groups.append(pods.group("cpu", beside))
        spec |= {
            "backoffLimit": target.retries,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": target.ttl_seconds,
            # Kueue resumes a queued job when its quota allows it.
            "suspend": bool(target.suspend or target.queue),
            **({"activeDeadlineSeconds": target.deadline_seconds} if target.deadline_seconds else {}),
            "rayClusterSpec": pods.cluster(groups, beside.cpus * beside.max_pods if beside else 0),
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
    """The RayCluster that a target's `cluster` names: machines of all pools, each from its least to its most."""
    assert target.cluster
    pods = Pods(target, target.cluster)
    groups = [
        pods.group(_group_name(key), machine_shape(key, pool, pool.workers, target.queue))
        for key, pool in target.pools.items()
    ]
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {
            "name": target.cluster,
            "namespace": target.namespace,
            "labels": common_labels(target) | _queue_labels(target),
            **({"annotations": target.annotations} if target.annotations else {}),
        },
        "spec": pods.cluster(groups),
    }


def pods_beside(target: KubernetesTarget, work: Work) -> PodShape | None:
    """Pods of the CPU pool that a job with GPUs has besides, None where it has none."""
    counts = target.cpu_pods if isinstance(target.cpu_pods, tuple) else (target.cpu_pods, target.cpu_pods)
    if not work.resources.gpus or not counts[1]:
        return None
    return machine_shape("cpu_pool", target.cpu_pool, counts, target.queue)


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


def _queue_labels(target: KubernetesTarget) -> dict[str, str]:
    """Labels by which Kueue knows what waits in its queue."""
    if not target.queue:
        return {}
    return {QUEUE_LABEL: target.queue, **({PRIORITY_LABEL: target.priority} if target.priority else {})}


def _group_name(key: str) -> str:
    """Of a pool's workers: cpu, gpu, gpu-NAME."""
    return key.replace("gpu_pools.", "gpu-").removesuffix("_pool")
