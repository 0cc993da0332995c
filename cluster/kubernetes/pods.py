"""The pods of a Ray cluster on Kubernetes: its head, and groups of workers, each of them a machine of a pool."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, Literal

from cluster.kubernetes.overlay import Manifest, overlaid
from cluster.kubernetes.shape import DISK, PodShape, default_shared_memory
from cluster.kubernetes_target import USER, KubernetesTarget, Pod, Toleration
from cluster.ray_environment import RAY_ENVIRONMENT, stopping_environment
from cluster.target_fields import MemoryQuantity
from cluster.work import MORE_CPUS

HEAD_CONTAINER = "ray-head"
WORKER_CONTAINER = "ray-worker"
GPU = "nvidia.com/gpu"
HOST_NETWORK_LABEL = "onediffusion/host-network"
TOGETHER_LABEL = "onediffusion/work"  # on pods that belong together
HOSTNAME = "kubernetes.io/hostname"

# (label, value) of nodes that may be taken away; some clusters use it as a taint, too.
SPOT_LABELS = (
    ("eks.amazonaws.com/capacityType", "SPOT"),
    ("karpenter.sh/capacity-type", "spot"),
    ("cloud.google.com/gke-spot", "true"),
    ("kubernetes.azure.com/scalesetpriority", "spot"),
)


def common_labels(target: KubernetesTarget) -> dict[str, str]:
    """Labels of everything made here."""
    return {**target.labels, "app.kubernetes.io/part-of": "onediffusion"}


class Pods:
    """Makes the parts of one Ray cluster's manifest. All raise InputError for an overlay that contradicts them."""

    def __init__(self, target: KubernetesTarget, name: str) -> None:
        """name: of the work, or of the shared cluster, by which its pods are known as belonging together."""
        self.target, self.name = target, name

    def cluster(self, groups: list[Manifest], more_cpus: float = 0) -> Manifest:
        """The spec of the Ray cluster. more_cpus: of pods beside those that the job's own workers are on."""
        target = self.target
        elastic = any(group["minReplicas"] < group["maxReplicas"] for group in groups)
        autoscaler = {
            "version": "v2",
            "idleTimeoutSeconds": target.idle_seconds,
            "securityContext": _security_context(target.user),
        }
        return {
            "rayVersion": target.ray_version or version("ray"),
            # The operator makes the token and hands it to every container by reference to its Secret.
            "authOptions": {"mode": "token"},
            "enableInTreeAutoscaling": elastic,
            **({"autoscalerOptions": autoscaler} if elastic else {}),
            "headGroupSpec": {
                "rayStartParams": {"num-cpus": str(target.head.ray_cpus)},
                "template": self._head(more_cpus),
            },
            "workerGroupSpecs": groups,
        }

    def group(self, name: str, shape: PodShape) -> Manifest:
        """A group of workers; under Kueue of a fixed number, which it has admitted with a quota."""
        least = shape.max_pods if self.target.queue else shape.min_pods
        store = {"object-store-memory": str(int(shape.needs.object_store))} if shape.needs else {}
        return {
            "groupName": name,
            "replicas": least,
            "minReplicas": least,
            "maxReplicas": shape.max_pods,
            "rayStartParams": store,
            "template": self.worker(shape),
        }

    def worker(self, shape: PodShape) -> Manifest:
        """The pod of one machine, or of the part of one."""
        pool = shape.pool
        size: dict[str, Any] = {"cpu": _cpu_quantity(shape.cpus), "memory": shape.memory}
        if shape.gpus:
            size[GPU] = shape.gpus
        if shape.is_machine:
            size |= {name: _number(amount) for name, amount in pool.extra_resources.items()}
        variables = {**self.target.environment, **pool.nccl}
        template = self._template("worker", pool, size, shape.disk, shape.shared_memory, variables)
        spec = template["spec"]
        if pool.ipc_lock:
            spec["containers"][0]["securityContext"]["capabilities"]["add"] = ["IPC_LOCK"]
        selector = dict(pool.node_selector)
        if shape.gpus and pool.gpu_type:
            selector[pool.gpu_label] = pool.gpu_type
        tolerations = [_toleration(toleration) for toleration in pool.tolerations]
        if shape.gpus:  # nodes with GPUs are commonly kept free for pods that need one
            tolerations.append(_toleration(Toleration(key=GPU, effect="NoSchedule")))
        if pool.spot:
            tolerations += [_toleration(Toleration(key=key, value=value)) for key, value in SPOT_LABELS]
        _place(template, selector, tolerations)
        self._keep_apart_or_near(template, shape)
        return overlaid(template, pool.pod_overlay, f"{shape.pool_key}.pod_overlay")

    def _head(self, more_cpus: float) -> Manifest:
        target, head = self.target, self.target.head
        variables = {**stopping_environment(target.grace_seconds), **target.environment}
        if more_cpus:
            variables[MORE_CPUS] = f"{more_cpus:g}"
        size = {"cpu": _cpu_quantity(head.cpus), "memory": head.memory}
        disk = 0 if target.queue else DISK
        template = self._template("head", head, size, disk, default_shared_memory(head.memory), variables)
        template["spec"]["containers"][0]["ports"] = [
            {"containerPort": port, "name": name} for name, port in (("gcs-server", 6379), ("dashboard", 8265))
        ]
        _place(template, head.node_selector, [_toleration(toleration) for toleration in head.tolerations])
        return overlaid(template, head.pod_overlay, "head.pod_overlay")

    def _keep_apart_or_near(self, template: Manifest, shape: PodShape) -> None:
        """Affinities: to spot nodes, away from pods that would take the same ports, near pods of the same work."""
        pool, metadata = shape.pool, template["metadata"]
        affinity: Manifest = {}
        if pool.spot:
            terms = [{"key": key, "operator": "In", "values": [value]} for key, value in SPOT_LABELS]
            affinity["nodeAffinity"] = {
                "preferredDuringSchedulingIgnoredDuringExecution": [
                    {"weight": 100, "preference": {"matchExpressions": [term]}} for term in terms
                ]
            }
        if pool.host_network:
            metadata["labels"][HOST_NETWORK_LABEL] = "true"
            template["spec"] |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
            affinity["podAntiAffinity"] = {
                "requiredDuringSchedulingIgnoredDuringExecution": [_of_same({HOST_NETWORK_LABEL: "true"}, HOSTNAME)]
            }
        if pool.topology and self.target.queue:
            need = "required" if pool.topology.required else "preferred"
            metadata.setdefault("annotations", {})[f"kueue.x-k8s.io/podset-{need}-topology"] = pool.topology.key
        elif pool.topology:
            metadata["labels"][TOGETHER_LABEL] = self.name
            term = _of_same({TOGETHER_LABEL: self.name}, pool.topology.key)
            affinity["podAffinity"] = (
                {"requiredDuringSchedulingIgnoredDuringExecution": [term]}
                if pool.topology.required
                else {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]}
            )
        if affinity:
            template["spec"]["affinity"] = affinity

    def _template(
        self,
        role: Literal["head", "worker"],
        pod: Pod,
        size: dict[str, Any],
        disk: int,
        shared_memory: MemoryQuantity,
        environment: dict[str, str],
    ) -> Manifest:
        target = self.target
        drain = ["python", "-m", "cluster.kubernetes.drain", role, "--seconds", str(target.grace_seconds - 10)]
        # Requests and limits agree, so that Ray counts on exactly what the pod has; a pod that takes more disk than was
        # foreseen goes on as long as the node has some, unless the target says how much it may take.
        limits = size | ({"ephemeral-storage": pod.disk} if pod.disk else {})
        requests = limits | ({"ephemeral-storage": f"{-(-disk >> 30)}Gi"} if disk and not pod.disk else {})
        container: Manifest = {
            "name": HEAD_CONTAINER if role == "head" else WORKER_CONTAINER,
            "image": pod.image or target.image,
            **({"imagePullPolicy": target.pull_policy} if target.pull_policy else {}),
            "env": [
                {"name": name, "value": _unexpanded(value)}
                for name, value in {**RAY_ENVIRONMENT, **environment}.items()
            ],
            **({"envFrom": [{"secretRef": {"name": target.credentials}}]} if target.credentials else {}),
            "resources": {"requests": requests, "limits": limits},
            # This asks for a checkpoint, and whatever takes the pod away (a spot node, Kueue, `stop`) waits for it.
            "lifecycle": {"preStop": {"exec": {"command": drain}}},
            "securityContext": _security_context(target.user),
            "volumeMounts": [
                {"name": "shared-memory", "mountPath": "/dev/shm"},  # noqa: S108 — the folder that Ray uses
                *(
                    {"name": f"volume-{number}", "mountPath": volume.path, "readOnly": volume.read_only}
                    for number, volume in enumerate(target.volumes)
                ),
            ],
        }
        spec: Manifest = {
            "containers": [container],
            "restartPolicy": "Never",  # the operator replaces pods; Ray would not know one that restarted in place
            "terminationGracePeriodSeconds": target.grace_seconds,
            "securityContext": {
                "runAsNonRoot": target.user != 0,
                **({"runAsUser": target.user} if target.user != USER else {}),
                **({"fsGroup": target.user} if target.volumes and target.user else {}),
            },
            "volumes": [
                {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": shared_memory}},
                *(
                    {
                        "name": f"volume-{number}",
                        "persistentVolumeClaim": {"claimName": volume.claim, "readOnly": volume.read_only},
                    }
                    for number, volume in enumerate(target.volumes)
                ),
            ],
        }
        if target.service_account:
            spec["serviceAccountName"] = target.service_account
        if target.pull_secrets:
            spec["imagePullSecrets"] = [{"name": name} for name in target.pull_secrets]
        if target.priority and not target.queue:
            spec["priorityClassName"] = target.priority
        metadata: Manifest = {"labels": common_labels(target)}
        if target.annotations:
            metadata["annotations"] = dict(target.annotations)
        return {"metadata": metadata, "spec": spec}


def _place(template: Manifest, selector: dict[str, str], tolerations: list[Manifest]) -> None:
    """Give the template the labels that nodes must have, and the taints that they may have."""
    if selector:
        template["spec"]["nodeSelector"] = dict(selector)
    if tolerations:
        template["spec"]["tolerations"] = tolerations


def _of_same(labels: dict[str, str], topology_key: str) -> Manifest:
    """A term of an affinity: pods with these labels, in the same place of a topology."""
    return {"labelSelector": {"matchLabels": labels}, "topologyKey": topology_key}


def _toleration(toleration: Toleration) -> Manifest:
    entry: Manifest = {"key": toleration.key, "operator": "Exists" if toleration.value is None else "Equal"}
    if toleration.value is not None:
        entry["value"] = toleration.value
    if toleration.effect:
        entry["effect"] = toleration.effect
    return entry


def _security_context(user: int) -> Manifest:
    """What namespaces under the "restricted" Pod Security Standard ask of every container."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": user != 0,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _unexpanded(value: str) -> str:
    """A variable's value as the kubelet leaves it: it would replace $(NAME)."""
    return value.replace("$(", "$$(")


def _number(amount: str) -> int | str:
    return int(amount) if amount.isdecimal() else amount


def _cpu_quantity(cpus: float) -> str:
    return str(int(cpus)) if cpus == int(cpus) else f"{round(cpus * 1000)}m"
