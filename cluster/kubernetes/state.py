"""Puts what Kubernetes keeps of a job (RayJob, RayCluster, pods, events, Kueue's workload) into one readable line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from cluster.kubernetes.api import brief, quota
from cluster.kubernetes.manifests import QUEUE_LABEL
from cluster.work import TargetState

if TYPE_CHECKING:
    from kubernetes.client import CoreV1Event, V1ContainerStatus, V1Pod

SLOW_SECONDS = 60.0  # after which an operator that has done nothing is taken to be absent
OPERATOR = "is its operator running? (`kubectl get pods -A -l app.kubernetes.io/name=kuberay-operator`)"
NO_IMAGE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")
# What container runtimes and registries say of an image that cannot be had, and what helps.
IMAGE_CAUSES = (
    (r"no match for platform|exec format", "not built for this node's processor"),
    (
        r"unauthorized|denied|forbidden|authentication|no basic auth|\b40[13]\b",
        "not allowed; name a pull secret as `pull_secrets`",
    ),
    (r"not found|manifest unknown|does not exist|\b404\b", "not found; push it, or correct `image` in the target"),
    (r"no such host|timeout|timed out|connection refused|unreachable", "its registry cannot be reached from the nodes"),
    (r"invalid reference|couldn't parse image", "not a name of an image; correct `image` in the target"),
    (r"never pull|not present", "not on the node, and `pull_policy` is Never"),
)


def describe(
    job: dict[str, Any],
    cluster: dict[str, Any] | None,
    pods: Sequence[V1Pod],
    warnings: Sequence[CoreV1Event],
    workload: dict[str, Any] | None,
) -> TargetState:
    """The phase of a RayJob, and what it waits for or why it ended.

    cluster, pods: of the RayCluster made for it, where there are; warnings: events about any of these, the newest last;
    workload: Kueue's, where the job is suspended and in a queue.
    """
    metadata, spec, status = job["metadata"], job.get("spec") or {}, job.get("status") or {}
    deployment, ray = status.get("jobDeploymentStatus") or "", status.get("jobStatus") or ""
    if metadata.get("deletionTimestamp"):
        return TargetState("running", "being removed")
    if deployment == "Complete":
        return TargetState("ended", "" if ray == "SUCCEEDED" else _why_ended(status))
    if deployment in ("Failed", "ValidationFailed"):
        return TargetState("ended", _why_ended(status))
    if spec.get("suspend"):
        return TargetState("pending", _why_suspended(metadata, workload))
    trouble = _trouble(cluster, pods, warnings)
    if deployment == "Running" and ray == "RUNNING":
        return TargetState("running", trouble)
    if deployment == "Retrying":
        return TargetState("pending", "begins again, in a new cluster")
    if trouble:
        return TargetState("pending", trouble)
    invalid = next((event for event in reversed(warnings) if str(event.reason).startswith("Invalid")), None)
    if invalid:
        return TargetState("pending", f"KubeRay refuses it: {brief(invalid.message)}")
    if not deployment and _age(metadata) > SLOW_SECONDS:
        return TargetState("pending", f"KubeRay has not taken it up; {OPERATOR}")
    if not cluster:
        if spec.get("clusterSelector"):
            return TargetState("pending", f"waiting for the RayCluster {cluster_name(job)}")
        return TargetState("pending", "its Ray cluster is being made")
    waiting = [pod for pod in pods if not _ready(pod)]
    if waiting or not pods:
        return TargetState(
            "pending", f"{_count(cluster, pods, len(waiting))} starting" if pods else "pods are being made"
        )
    return TargetState("pending", "Ray is starting the job")


def cluster_name(job: dict[str, Any]) -> str:
    """The RayCluster that a RayJob runs on, or ""."""
    return (job.get("status") or {}).get("rayClusterName") or (job.get("spec") or {}).get("clusterSelector", {}).get(
        "ray.io/cluster", ""
    )


def last_words(job: dict[str, Any]) -> Iterator[str]:
    """The end of the driver's output, which Ray puts into the message of a job that failed."""
    message = (job.get("status") or {}).get("message") or ""
    yield from message.partition("last available logs")[2].partition("\n")[2].splitlines()


def _why_ended(status: dict[str, Any]) -> str:
    """Why it ended: the last line that the job printed, or KubeRay's own reason."""
    message, reason = status.get("message") or "", status.get("reason") or ""
    code = re.search(r"failed with exit code (-?\d+)", message)
    printed = [line for line in message.partition("last available logs")[2].splitlines()[1:] if line.strip()]
    if code and printed:
        return brief(f"exit code {code[1]}: {printed[-1]}")
    if reason == "DeadlineExceeded":
        return "it took longer than `deadline_seconds` in the target"
    return brief(": ".join(part for part in (reason, message) if part)) or str(status.get("jobStatus") or "")


def _why_suspended(metadata: dict[str, Any], workload: dict[str, Any] | None) -> str:
    """What a suspended job waits for: its queue, or someone who resumes it."""
    queue = (metadata.get("labels") or {}).get(QUEUE_LABEL)
    if not queue:
        return (
            f'suspended; `kubectl patch rayjob {metadata["name"]} --type merge -p \'{{"spec":{{"suspend":false}}}}\'`'
        )
    if workload is None:
        slow = _age(metadata) > SLOW_SECONDS
        return f"waiting in queue {queue}" + ("; Kueue has not taken it up, does it manage RayJobs?" if slow else "")
    conditions = {item["type"]: item for item in (workload.get("status") or {}).get("conditions", [])}
    for kind, status_when_waiting in (("Evicted", "True"), ("QuotaReserved", "False"), ("Admitted", "False")):
        condition = conditions.get(kind)
        if condition and condition["status"] == status_when_waiting and condition.get("message"):
            return f"waiting in queue {queue}: {brief(condition['message'])}"
    return f"waiting in queue {queue}"


def _trouble(cluster: dict[str, Any] | None, pods: Sequence[V1Pod], warnings: Sequence[CoreV1Event]) -> str:
    """The first reason why pods do not run, and of how many; "" when nothing is known to be wrong."""
    waiting = [pod for pod in pods if not _ready(pod)]
    for pod in sorted(waiting, key=lambda pod: not _is_head(pod)):
        about = [event for event in warnings if event.involved_object.name == pod.metadata.name]
        if reason := _pod_trouble(pod, about):
            alike = [other for other in waiting if _is_head(other) == _is_head(pod)]
            return f"{'head' if _is_head(pod) else _count(cluster, pods, len(alike))} pending: {reason}"
    own = {pod.metadata.name for pod in pods}
    missing = len(waiting) + max(_desired_workers(cluster) - sum(not _is_head(pod) for pod in pods), 0)
    for event in reversed(warnings):
        message = str(event.message or "")
        # Events about pods that the operator could not create name the RayCluster.
        if missing and event.involved_object.name not in own and re.search(r"forbidden|Failed to create", message):
            reason = quota(message) if "exceeded quota" in message else brief(message)
            some = any(_is_head(pod) for pod in pods)
            return f"{_count(cluster, pods, missing)} pending: {reason}" if some else reason
    return ""


def _pod_trouble(pod: V1Pod, warnings: Sequence[CoreV1Event]) -> str:
    status, messages = pod.status, [str(event.message or "") for event in warnings]
    for condition in status.conditions or []:
        if condition.type == "PodScheduled" and condition.status == "False":
            return _why_unscheduled(pod, condition.message or "")
    for container in [*(status.init_container_statuses or []), *(status.container_statuses or [])]:
        if reason := _container_trouble(pod, container, messages):
            return reason
    if status.phase == "Failed":
        return brief(f"{status.reason or 'failed'}: {status.message or 'no reason given'}")
    for event in reversed(warnings):
        if event.reason in ("FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox"):
            return brief(event.message)
    return ""


def _container_trouble(pod: V1Pod, container: V1ContainerStatus, messages: Sequence[str]) -> str:
    waiting, ended = container.state.waiting, container.state.terminated
    ended = ended or (container.last_state.terminated if container.last_state else None)
    if waiting and waiting.reason in NO_IMAGE:
        return f"cannot pull image {container.image}: {_image_cause([waiting.message or '', *messages[::-1]])}"
    if waiting and waiting.reason in ("CreateContainerConfigError", "CreateContainerError", "RunContainerError"):
        return f"{brief(waiting.message or waiting.reason)}; make it, or correct the target"
    if ended and ended.reason == "OOMKilled":
        size = next(
            item for item in pod.spec.containers + (pod.spec.init_containers or []) if item.name == container.name
        )
        return f"out of memory ({(size.resources.limits or {}).get('memory')}); give its pool more `memory`"
    if ended and ended.exit_code:
        return f"{container.name} ended with exit code {ended.exit_code}; `onediffusion logs` shows what it printed"
    return ""


def _image_cause(messages: Sequence[str]) -> str:
    for message in messages:
        for pattern, cause in IMAGE_CAUSES:
            if re.search(pattern, message, re.IGNORECASE):
                return cause
    return brief(messages[0]) or "no reason given"


def _why_unscheduled(pod: V1Pod, message: str) -> str:
    """What the nodes lack, from the scheduler's "0/5 nodes are available: …"."""
    if "persistentvolumeclaim" in message:
        return brief(message.partition("persistentvolumeclaim")[1] + message.partition("persistentvolumeclaim")[2])
    text = re.split(r"\.? ?preemption:", message)[0]
    lacking = list(dict.fromkeys(re.findall(r"Insufficient ([\w./-]+\w)", text)))
    devices = [name for name in lacking if "/" in name]
    if devices:
        return f"no node with {' and '.join(devices)} free"
    if lacking:
        return f"no node with enough {' and '.join(lacking)} free"
    if re.search(r"didn't match Pod's node (affinity|selector)", text):
        labels = ", ".join(f"{key}={value}" for key, value in (pod.spec.node_selector or {}).items())
        return f"no node labeled {labels}" if labels else "no node that its affinity allows"
    taints = list(dict.fromkeys(re.findall(r"untolerated taint\(?s?\)? ?\{([^:}]+)", text)))
    if taints:
        return f"nodes are tainted {', '.join(taints)}; allow it among the pool's `tolerations`"
    return brief(text) or "not scheduled yet"


def _count(cluster: dict[str, Any] | None, pods: Sequence[V1Pod], waiting: int) -> str:
    """Count workers, like "2 of 4 workers"."""
    workers = max(_desired_workers(cluster), sum(not _is_head(pod) for pod in pods))
    return f"{min(waiting, workers)} of {workers} workers"


def _desired_workers(cluster: dict[str, Any] | None) -> int:
    """How many workers the RayCluster is to have now."""
    if not cluster:
        return 0
    groups = cluster["spec"].get("workerGroupSpecs") or []
    desired = (cluster.get("status") or {}).get("desiredWorkerReplicas")
    return int(desired or sum(group.get("replicas") or group.get("minReplicas") or 0 for group in groups))


def _is_head(pod: V1Pod) -> bool:
    return (pod.metadata.labels or {}).get("ray.io/node-type") == "head"


def _ready(pod: V1Pod) -> bool:
    return any(item.type == "Ready" and item.status == "True" for item in pod.status.conditions or [])


def _age(metadata: dict[str, Any]) -> float:
    """Seconds since it was made."""
    created = metadata.get("creationTimestamp")
    return (datetime.now(UTC) - datetime.fromisoformat(created)).total_seconds() if created else 0.0
