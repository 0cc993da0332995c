"""The target `kubernetes`: a RayJob for each attempt at a job, run by KubeRay's operator."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

from cluster.kubernetes.api import ApiServer
from cluster.kubernetes.manifests import check_addresses, raycluster, rayjob, to_yaml
from cluster.kubernetes.permissions import permissions
from cluster.kubernetes.pods import HEAD_CONTAINER, WORKER_CONTAINER, Pods
from cluster.kubernetes.shape import memory_lines, pod_shape, remarks
from cluster.kubernetes.state import cluster_name, describe, last_words
from cluster.kubernetes_target import KubernetesTarget
from cluster.work import Finding, TargetState, Work
from model.inputs import InputError, nearest


class KubernetesBackend:
    """RayJobs of one namespace; a RayJob has the work's name, which the API server refuses to take twice."""

    sees_all = True

    def __init__(self, target: KubernetesTarget) -> None:
        self.target = target
        self.server = ApiServer(target)

    def plan(self, work: Work) -> dict[str, str]:
        """The RayJob; of a shared cluster, also the RayCluster that must be there. See `Backend.plan`.

        Where the memory of a pod is known by arithmetic, its sum comes first, as comments.
        """
        plan = {}
        shape = pod_shape(self.target, work)
        if lines := memory_lines(shape):
            title = f"memory of a pod, with {shape.workers} of the workers ({shape.max_pods} pods)"
            plan[title] = "".join(f"#   {line}\n" for line in lines)
        plan[f"RayJob {work.name} (kubectl create -f)"] = to_yaml(rayjob(self.target, work))
        if self.target.cluster:
            plan[f"RayCluster {self.target.cluster} (once: kubectl apply -f)"] = to_yaml(raycluster(self.target))
        return plan

    def examine(self, work: Work) -> list[Finding]:
        """What the API server lets this user do, by SelfSubjectAccessReviews; see `Backend.examine`."""
        return permissions(self.server)

    def remarks(self, work: Work) -> list[str]:
        """See `Backend.remarks`."""
        return remarks(self.target, pod_shape(self.target, work))

    def submit(self, work: Work) -> None:
        """Create the RayJob. Raises ConnectionError when it is unknown whether it was; see `Backend.submit`."""
        manifest = rayjob(self.target, work)
        if self.target.cluster and not self.server.cluster(self.target.cluster):
            raise InputError(
                f"{self.target.cluster}: no such RayCluster in namespace {self.target.namespace}; make it once from "
                "the manifest that `--dry-run` shows, or leave out `cluster` in the target"
            )
        if self.target.queue and not self.target.cluster:
            self._check_queue(self.target.queue)
        for image in self.target.images:
            if re.search("[A-Z]", re.split(r"[:@](?=[^/]*$)", image)[0]):
                raise InputError(f"{image}: put what is yours in the place of the capitals in the target")
        self.server.create_job(manifest)

    def _check_queue(self, queue: str) -> None:
        """Raises InputError where Kueue has no such queue."""
        queues = self.server.queues()
        if queues is None:
            raise InputError(f"{queue}: Kueue is not installed in this cluster; leave out `queue` in the target")
        if queue not in queues:
            known = nearest(queue, queues) or ("; there are " + ", ".join(queues) if queues else "; there is none")
            namespace = f"namespace {self.target.namespace}"
            raise InputError(f"{queue}: no such LocalQueue in {namespace}{known}; correct `queue` in the target")

    def state(self, name: str) -> TargetState:
        """See `Backend.state`."""
        job = self.server.job(name)
        if job is None:
            return TargetState("absent")
        status = job.get("status") or {}
        cluster_of_job = cluster_name(job)
        over = status.get("jobDeploymentStatus") in ("Complete", "Failed")
        waits = bool((job.get("spec") or {}).get("suspend"))
        cluster = self.server.cluster(cluster_of_job) if cluster_of_job and not over and not waits else None
        pods = self.server.pods(cluster_of_job) if cluster and not self.target.cluster else []
        workload = self.server.workload(job["metadata"]["uid"]) if waits and self.target.queue else None
        warnings = []
        if not over and not waits and status.get("jobStatus") != "RUNNING":
            names = {name, cluster_of_job, *(pod.metadata.name for pod in pods)}
            warnings = self.server.warnings(names - {""})
        return describe(job, cluster, pods, warnings, workload)

    def stop(self, name: str) -> None:
        """Remove the RayJob, and wait until its cluster and pods are gone.

        KubeRay stops the Ray job by SIGTERM; the pods wait for its checkpoint (see cluster.kubernetes.drain).
        Foreground propagation keeps the RayJob until its cluster and its pods are gone: until then it can be found,
        and nothing is orphaned.
        """
        if not self.server.delete_job(name):
            return
        deadline = time.monotonic() + self.target.grace_seconds + 60
        pause = 0.2
        while self.server.job(name):
            if time.monotonic() > deadline:
                raise InputError(
                    f"{name}: still being removed; is KubeRay's operator running? "
                    f"(`kubectl get pods -A -l app.kubernetes.io/name=kuberay-operator`)"
                )
            time.sleep(pause)
            pause = min(2 * pause, 3.0)

    def scale(self, name: str, work: Work) -> bool:
        """Change the bounds of the worker group.

        They are changed in the RayCluster, since KubeRay does not look at a running RayJob again, and in the RayJob,
        from which it makes the cluster of a retry.
        False under Kueue, which admitted a fixed number; for other workers than there are; and to shrink a cluster
        without autoscaler, where KubeRay would choose the pods to remove by itself, busy or not.
        """
        if self.target.cluster:
            return True
        if self.target.queue:
            return False
        job = self.server.job(name)
        cluster = self.server.cluster(cluster_name(job)) if job and cluster_name(job) else None
        if not cluster:
            return False
        check_addresses(self.target, work)
        group = cluster["spec"]["workerGroupSpecs"][0]
        shape = pod_shape(self.target, work)
        if _size(Pods(self.target, name).worker(shape)) != _size(group["template"]):
            return False
        replicas = int(group.get("replicas") or group["minReplicas"])
        if cluster["spec"].get("enableInTreeAutoscaling"):
            # Busy workers are given back when they are idle, not before.
            bounds = {"minReplicas": shape.min_pods, "maxReplicas": max(shape.max_pods, replicas)}
        elif shape.max_pods < replicas:
            return False
        else:
            bounds = dict.fromkeys(("minReplicas", "maxReplicas", "replicas"), shape.max_pods)
        self.server.patch_cluster(cluster["metadata"]["name"], _bounds("/spec", group["groupName"], bounds))
        bounds_of_retry = {
            "minReplicas": shape.min_pods,
            "maxReplicas": shape.max_pods,
            "replicas": shape.min_pods,
        }
        self.server.patch_job(name, _bounds("/spec/rayClusterSpec", group["groupName"], bounds_of_retry))
        return True

    def logs(self, name: str) -> Iterator[str]:
        """What the pods printed, if they are there, and what the RayJob keeps of the driver; see `Backend.logs`."""
        job = self.server.job(name)
        if job is None:
            return
        cluster_of_job = cluster_name(job)
        for pod in self.server.pods(cluster_of_job) if cluster_of_job and not self.target.cluster else []:
            head = (pod.metadata.labels or {}).get("ray.io/node-type") == "head"
            for line in self.server.log(pod.metadata.name, HEAD_CONTAINER if head else WORKER_CONTAINER):
                yield f"{pod.metadata.name}: {line}"
        yield from last_words(job)


def _bounds(cluster: str, name: str, values: dict[str, int]) -> list[dict[str, Any]]:
    """JSON Patch operations on the first worker group of a cluster's spec, as long as it is the one of that name."""
    group = f"{cluster}/workerGroupSpecs/0"
    operations: list[dict[str, Any]] = [{"op": "test", "path": f"{group}/groupName", "value": name}]
    return operations + [{"op": "add", "path": f"{group}/{key}", "value": value} for key, value in values.items()]


def _size(template: dict[str, Any]) -> dict[str, str]:
    requests = template["spec"]["containers"][0]["resources"]["requests"]
    # Disk does not count: clusters that an earlier version made asked for none.
    return {name: str(value) for name, value in requests.items() if name != "ephemeral-storage"}
