"""What a Kubernetes cluster with KubeRay would hold of a job, for the stand-in of its API server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from api_server import ApiServer

from cluster.kubernetes.backend import KubernetesBackend
from cluster.kubernetes_target import KubernetesTarget
from cluster.target import parse_target
from cluster.work import ResourceRequest, Work

WORK = Work(
    "train-1a2b3c4d-1", "train", ("execute", "s3://b/j", "--attempt", "1"), "s3://b/j", ResourceRequest(4, 4, 6, 1)
)
CLUSTER = "train-1a2b3c4d-1-abcde"
IMAGE = "registry.example.com/od:1"


def backend_for(server: ApiServer, folder: Path, **keys: Any) -> KubernetesBackend:
    values = {
        "type": "kubernetes",
        "image": IMAGE,
        "kubeconfig": server.kubeconfig(folder / "config"),
    }
    target = parse_target(values | keys, "target")
    assert isinstance(target, KubernetesTarget)
    return KubernetesBackend(target)


def begin(server: ApiServer, **status: Any) -> dict[str, Any]:
    """Store the cluster of the job, as KubeRay makes it, and give the job this status."""
    job = server.objects["rayjobs", WORK.name]
    job["status"] = {"rayClusterName": CLUSTER, "jobDeploymentStatus": "Initializing"} | status
    metadata = {"name": CLUSTER, "namespace": "default"}
    server.put("rayclusters", {"kind": "RayCluster", "metadata": metadata, "spec": job["spec"]["rayClusterSpec"]})
    return job


def pod(number: int = 0, *, head: bool = False, ready: bool = False, **status: Any) -> dict[str, Any]:
    role = "head" if head else "worker"
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}, *status.pop("conditions", [])]
    container = {"name": f"ray-{role}", "resources": {"limits": {"memory": "32Gi"}}}
    return {
        "metadata": {"name": f"{role}-{number}", "labels": {"ray.io/cluster": CLUSTER, "ray.io/node-type": role}},
        "spec": {"containers": [container], "nodeSelector": {"nvidia.com/gpu.product": "A100"}},
        "status": {"phase": "Running" if ready else "Pending", "conditions": conditions, **status},
    }


def unscheduled(message: str) -> dict[str, Any]:
    return {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}]}


def container(name: str = "ray-worker", **state: Any) -> dict[str, Any]:
    item = {"name": name, "image": IMAGE, "imageID": "", "ready": False, "restartCount": 0, "state": state}
    return {"containerStatuses": [item]}


def event(name: str, message: str, reason: str = "Failed") -> dict[str, Any]:
    involved = {"name": name, "kind": "Pod", "namespace": "default"}
    return {
        "metadata": {"name": "e"},
        "involvedObject": involved,
        "type": "Warning",
        "reason": reason,
        "message": message,
    }


HEAD = pod(head=True, ready=True)
TRACE = "Job entrypoint command failed with exit code {}, last available logs (truncated to 20,000 chars):\n{}"
