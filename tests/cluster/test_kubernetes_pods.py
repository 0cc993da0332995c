"""Pods are machines: how workers are laid out on them, and what each key of a pool becomes in the manifest."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from kuberay_schemas import pod_templates, ray_errors, validate_pod

from cluster.kubernetes.manifests import raycluster, rayjob
from cluster.kubernetes.shape import memory_lines, pod_shape, remarks
from cluster.kubernetes_target import KubernetesTarget
from cluster.target import parse_target
from cluster.work import MORE_CPUS, MachineNeeds, ResourceRequest, Work
from model.inputs import InputError

GIB = 1 << 30
MACHINE = {"gpus": 8, "cpus": 180}


def target_of(**keys: Any) -> KubernetesTarget:
    found = parse_target({"type": "kubernetes", "image": "registry.example.com/onediffusion:1"} | keys, "target")
    assert isinstance(found, KubernetesTarget)
    return found


def work(least: int, most: int = 0, kind: str = "train", **each: Any) -> Work:
    request = ResourceRequest(least, most or least, **({"cpus": 6.0, "gpus": 1.0} | each))
    return Work(f"{kind}-1", kind, ("execute", "s3://b/j"), "s3://b/j", request)


def needing(memory: float, together: int = 8, **more: Any) -> Work:
    """Work of 64 ranks that needs so many GiB on a machine with `together` of them."""

    def needs(workers: int) -> MachineNeeds:
        share = workers / together
        parts = {"copies of a checkpoint": memory * share * GIB * 0.75, "processes": memory * share * GIB * 0.25}
        values = {"object_store": 2.0 * GIB, "shared_memory": 10.0 * GIB, "disk": {"logs": 30.0 * GIB}} | more
        return MachineNeeds(memory=parts, **values)

    plain = work(64)
    return Work(plain.name, plain.kind, plain.arguments, plain.address, plain.resources, needs=needs)


def groups(target: KubernetesTarget, job: Work) -> list[dict[str, Any]]:
    """The worker groups of a job's manifest, which KubeRay and Kubernetes would take."""
    manifest = rayjob(target, job)
    assert ray_errors(manifest) == []
    for template in pod_templates(manifest):
        validate_pod(template)
    return manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"]


def worker(target: KubernetesTarget, job: Work | None = None) -> dict[str, Any]:
    return groups(target, job or work(64))[0]["template"]


def requested(template: dict[str, Any]) -> dict[str, Any]:
    return template["spec"]["containers"][0]["resources"]["requests"]


@pytest.mark.parametrize(
    ("pool", "job", "pods", "gpus", "cpus"),
    [
        (MACHINE, work(64), (8, 8), 8, "180"),
        (MACHINE, work(32, 64), (4, 8), 8, "180"),
        (MACHINE, work(4, 64), (1, 8), 8, "180"),
        (MACHINE, work(12), (2, 2), 6, "135"),  # evenly, as sharding within a node asks for
        (MACHINE, work(2), (1, 1), 2, "45"),
        (MACHINE, work(1, cpus=60.0), (1, 1), 1, "60"),
        (MACHINE, work(16, kind="label", gpus=0.5, cpus=2.0), (1, 1), 8, "180"),
        (MACHINE, work(3, kind="label", gpus=0.4, cpus=2.0), (1, 1), 2, "45"),
        (MACHINE, work(64, kind="label", cpus=45.0), (16, 16), 4, "180"),  # CPUs are what fills a machine
        ({"gpus": 8}, work(64), (8, 8), 8, "64"),  # 8 CPUs for each GPU, where nobody says
        ({}, work(4), (4, 4), 1, "8"),
        ({}, work(4, kind="label", gpus=0.5, cpus=1.0), (2, 2), 1, "8"),
        ({"cpus": 12}, work(2, cpus=16.0), (2, 2), 1, "16"),  # a pod of its own size
        ({"cpus": 12}, work(2, gpus=2.0), (2, 2), 2, "12"),
    ],
)
def test_workers_fill_machines(pool: dict[str, Any], job: Work, pods: tuple[int, int], gpus: int, cpus: str) -> None:
    group = groups(target_of(gpu_pool=pool), job)[0]
    assert (group["minReplicas"], group["maxReplicas"]) == pods and group["replicas"] == pods[0]
    asked = requested(group["template"])
    assert (asked["nvidia.com/gpu"], asked["cpu"]) == (gpus, cpus)


@pytest.mark.parametrize(
    ("pool", "job", "words"),
    [
        (MACHINE, work(2, gpus=16.0), r"a worker needs 16 GPUs, and the machines of gpu_pool have 8 \(gpu_pool.gpus\)"),
        (MACHINE, work(2, cpus=200.0), r"a worker needs 200 CPUs, .* have 180 \(gpu_pool.cpus\)"),
        (MACHINE, work(64, cpus=30.0), r"gpu_pool.cpus 180 .* 8 workers on a machine need 240; .*reader.processes"),
        (MACHINE | {"memory": "1000Gi"}, work(64, memory_gb=200.0), r"gpu_pool.memory 1000Gi .* ask for 1600G"),
        (
            {"shared_memory": "1Gi"},
            needing(20, 1),
            r"gpu_pool.shared_memory 1Gi .* Ray's objects and NCCL; 10Gi would do",
        ),
        ({"disk": "20Gi"}, needing(20, 1), r"gpu_pool.disk 20Gi .* 30 GiB \(30 for logs\); 30Gi would do"),
    ],
)
def test_pool_that_is_too_small_is_one_line(pool: dict[str, Any], job: Work, words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        rayjob(target_of(gpu_pool=pool), job)
    assert "\n" not in str(error.value)


def test_memory_is_what_the_run_needs_and_too_little_is_refused_with_the_figure() -> None:
    open_pool = target_of(gpu_pool=MACHINE)
    template = worker(open_pool, needing(150.3))
    assert requested(template)["memory"] == "151Gi"
    assert requested(template)["ephemeral-storage"] == "30Gi"
    shared = next(item for item in template["spec"]["volumes"] if item["name"] == "shared-memory")
    assert shared["emptyDir"]["sizeLimit"] == "61849Mi"  # 40 %, or what is needed where that is more
    assert groups(open_pool, needing(150.3))[0]["rayStartParams"] == {"object-store-memory": str(2 * GIB)}
    lines = memory_lines(pod_shape(open_pool, needing(150.3)))
    assert lines[-2:] == ["together                150.3 GiB", "asked for               151Gi (by this sum)"]
    with pytest.raises(InputError) as error:
        worker(target_of(gpu_pool=MACHINE | {"memory": "100Gi"}), needing(150.3))
    assert str(error.value) == (
        "gpu_pool.memory 100Gi of the target is too little: a pod with 8 workers needs 150 GiB (113 for copies of a "
        "checkpoint, 38 for processes); 151Gi would do, or leave it out"
    )
    enough = target_of(gpu_pool=MACHINE | {"memory": "151Gi"})
    assert requested(worker(enough, needing(150.3)))["memory"] == "151Gi"
    # Half of a machine has half of its memory.
    half = Work("train-1", "train", (), "s3://b/j", ResourceRequest(4, 4, 6.0, 1.0), needs=needing(150.3).needs)
    assert requested(worker(enough, half))["memory"] == f"{151 * 1024 // 2}Mi"
    with pytest.raises(InputError, match=r"50% of a machine, needs 75 GiB .* 151Gi would do"):
        worker(target_of(gpu_pool=MACHINE | {"memory": "140Gi"}), half)
    # What the job names is taken, and said to be too little.
    named = Work(
        "train-1", "train", (), "s3://b/j", ResourceRequest(64, 64, 6.0, 1.0, 10.0), needs=needing(150.3).needs
    )
    shape = pod_shape(open_pool, named)
    assert shape.memory == "80G" and any("need 151Gi by arithmetic" in line for line in remarks(open_pool, shape))


def test_devices_of_a_machine_go_to_whole_machines() -> None:
    devices = {"vpc.amazonaws.com/efa": 32, "hugepages-2Mi": "5120Mi"}
    target = target_of(gpu_pool=MACHINE | {"extra_resources": devices})
    assert requested(worker(target)).items() >= devices.items()
    assert not devices.keys() & requested(worker(target, work(4))).keys()


def test_network_of_the_pool_reaches_its_pods_alone() -> None:
    pool = MACHINE | {
        "nccl": {"NCCL_IB_HCA": "ibp", "NCCL_CROSS_NIC": 0},
        "ipc_lock": True,
        "host_network": True,
        "disk": "200Gi",
        "shared_memory": "64Gi",
    }
    target = target_of(gpu_pool=pool, environment={"A": "$(HOME)"}, user=0)
    template = worker(target)
    spec, container = template["spec"], template["spec"]["containers"][0]
    variables = {item["name"]: item["value"] for item in container["env"]}
    assert (variables["NCCL_IB_HCA"], variables["NCCL_CROSS_NIC"], variables["A"]) == ("ibp", "0", "$$(HOME)")
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["IPC_LOCK"]}
    assert (spec["securityContext"]["runAsUser"], spec["securityContext"]["runAsNonRoot"]) == (0, False)
    assert (spec["hostNetwork"], spec["dnsPolicy"]) == (True, "ClusterFirstWithHostNet")
    (apart,) = spec["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert apart["topologyKey"] == "kubernetes.io/hostname"
    assert apart["labelSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    for kind in ("requests", "limits"):
        assert container["resources"][kind]["ephemeral-storage"] == "200Gi"
    assert next(iter(spec["volumes"]))["emptyDir"]["sizeLimit"] == "64Gi"
    head = rayjob(target, work(64))["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    assert "NCCL" not in json.dumps(head) and "hostNetwork" not in head["spec"]


@pytest.mark.parametrize("required", [True, False])
def test_pods_of_a_job_are_near_each_other(required: bool) -> None:
    pool = MACHINE | {"topology": {"key": "topology.kubernetes.io/zone", "required": required}, "spot": True}
    template = worker(target_of(gpu_pool=pool))
    near = template["spec"]["affinity"]["podAffinity"]
    when = "required" if required else "preferred"
    (term,) = near[f"{when}DuringSchedulingIgnoredDuringExecution"]
    term = term if required else term["podAffinityTerm"]
    assert term["topologyKey"] == "topology.kubernetes.io/zone"
    assert term["labelSelector"]["matchLabels"] == {"onediffusion/work": "train-1"}
    assert template["metadata"]["labels"]["onediffusion/work"] == "train-1"
    assert "nodeAffinity" in template["spec"]["affinity"]  # to spot nodes
    queued = worker(target_of(gpu_pool=pool, queue="lab"))
    assert queued["metadata"]["annotations"] == {f"kueue.x-k8s.io/podset-{when}-topology": pool["topology"]["key"]}
    assert "podAffinity" not in queued["spec"]["affinity"]


def test_kueue_admits_all_pods_together() -> None:
    """It admits nothing that asks for what its queue has no quota of, so disk is asked for where the target says it."""
    target = target_of(queue="lab", gpu_pool=MACHINE, cpu_pods=(1, 4))
    manifest = rayjob(target, work(32, 64))
    assert manifest["spec"]["suspend"] and manifest["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "lab"
    spec = manifest["spec"]["rayClusterSpec"]
    assert not spec["enableInTreeAutoscaling"]
    assert [group["replicas"] for group in spec["workerGroupSpecs"]] == [8, 4]
    assert "ephemeral-storage" not in json.dumps(manifest)
    stated = target_of(queue="lab", gpu_pool=MACHINE | {"disk": "99Gi"})
    assert requested(worker(stated))["ephemeral-storage"] == "99Gi"


def test_job_chooses_its_pool_of_gpus() -> None:
    target = target_of(
        gpu_pool=MACHINE, gpu_pools={"l4": {"cpus": 10, "gpu_type": "nvidia-l4"}, "a100": {"gpus": 4, "cpus": 48}}
    )
    small = worker(target, work(4, kind="label", gpu_type="l4"))
    assert requested(small)["cpu"] == "10" and "nvidia-l4" in small["spec"]["nodeSelector"].values()
    (group,) = groups(target, work(8, gpu_type="a100"))
    assert (group["replicas"], requested(group["template"])["nvidia.com/gpu"]) == (2, 4)
    with pytest.raises(InputError, match=r"workers.gpu_type a10: .* `gpu_pools` \(did you mean 'a100'\?\)"):
        rayjob(target, work(4, gpu_type="a10"))
    with pytest.raises(InputError, match=r"workers.gpu_type a100: names GPUs, and workers.gpus asks for none"):
        rayjob(target, work(4, gpus=0.0, gpu_type="a100"))
    shared = raycluster(target.model_copy(update={"cluster": "lab"}))
    assert ray_errors(shared) == []
    assert [group["groupName"] for group in shared["spec"]["workerGroupSpecs"]] == ["cpu", "gpu", "gpu-l4", "gpu-a100"]


@pytest.mark.parametrize(
    ("job", "pods"),
    [
        (work(1, 4, kind="label", gpus=0.0, cpus=1.0), (1, 4)),  # as a job file has it that says `count: 1:4` alone
        (work(20, kind="ingest", gpus=0.0, cpus=2.0), (3, 3)),
        (work(20, kind="train", gpus=0.0, cpus=1.0), (2, 2)),
    ],
)
def test_workers_without_gpus_fill_machines_where_a_job_says_what_is_on_each(job: Work, pods: tuple[int, int]) -> None:
    (group,) = groups(target_of(cpu_pool={"cpus": 14}), job)
    assert (group["minReplicas"], group["maxReplicas"], requested(group["template"])["cpu"]) == (*pods, "14")


def test_machines_without_gpus_stand_beside_a_job_with_gpus() -> None:
    target = target_of(gpu_pool=MACHINE, cpu_pool={"cpus": 14, "memory": "56Gi"}, cpu_pods=(0, 3))
    gpu, cpu = groups(target, work(64, kind="label"))
    assert (gpu["groupName"], cpu["groupName"]) == ("gpu", "cpu")
    assert (cpu["minReplicas"], cpu["maxReplicas"], requested(cpu["template"])["cpu"]) == (0, 3, "14")
    assert "nvidia.com/gpu" not in requested(cpu["template"])
    manifest = rayjob(target, work(64, kind="label"))["spec"]["rayClusterSpec"]
    assert manifest["enableInTreeAutoscaling"]
    head = manifest["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert {"name": MORE_CPUS, "value": "42"} in head["env"]  # by which labeling knows of them
    assert len(groups(target, work(4, kind="label", gpus=0.0))) == 1


def test_spot_nodes_that_leave_no_time_for_a_checkpoint_are_remarked() -> None:
    def said(seconds: float, **keys: Any) -> list[str]:
        target = target_of(gpu_pool=MACHINE | {"spot": True}, **keys)
        return remarks(target, pod_shape(target, needing(100, checkpoint_seconds=seconds)))

    assert said(100) == [] and said(19, grace_seconds=30) == []
    (line,) = said(40, grace_seconds=30)
    assert "a checkpoint takes about 40 s" in line and "lower checkpoints.every" in line


@pytest.mark.parametrize(("image", "moves"), [("r/x", True), ("r/x:latest", True), ("r:5000/x:1", False)])
def test_image_that_may_move_is_remarked(image: str, moves: bool) -> None:
    target = target_of(image=image)
    assert any("may move" in line for line in remarks(target, pod_shape(target, work(1)))) == moves


def test_image_by_digest_goes_to_every_pod() -> None:
    image = "registry.example.com:5000/lab/onediffusion@sha256:" + "0" * 64
    manifest = rayjob(target_of(image=image, pull_secrets=["registry"]), work(8))
    for template in pod_templates(manifest):
        assert template["spec"]["containers"][0]["image"] == image
        assert template["spec"]["imagePullSecrets"] == [{"name": "registry"}]


def test_pods_without_gpus_may_have_the_smaller_image() -> None:
    small = "registry.example.com/onediffusion:1-cpu"
    target = target_of(cpu_pool={"image": small}, head={"image": small}, cpu_pods=1)
    templates = pod_templates(rayjob(target, work(8)))  # head, GPUs, CPUs
    images = [template["spec"]["containers"][0]["image"] for template in templates]
    assert images == [small, target.image, small]
    newest = target_of(head={"image": "registry.example.com/onediffusion:latest"})
    assert len(remarks(newest, pod_shape(newest, work(8)))) == 1


OVERLAY = {
    "metadata": {"annotations": {"example.com/a": "b"}},
    "spec": {
        "runtimeClassName": "nvidia",
        "containers": [
            {"name": "ray-worker", "volumeMounts": [{"name": "libs", "mountPath": "/libs"}]},
            {"name": "daemon", "image": "registry.example.com/daemon:1"},
        ],
        "volumes": [{"name": "libs", "hostPath": {"path": "/opt/libs"}}],
        "tolerations": [{"key": "lab", "operator": "Exists"}],
    },
}


def test_overlay_is_merged_by_field_and_by_name() -> None:
    plain, laid = worker(target_of(gpu_pool=MACHINE)), worker(target_of(gpu_pool=MACHINE | {"pod_overlay": OVERLAY}))
    assert laid["metadata"] == plain["metadata"] | OVERLAY["metadata"]
    assert laid["spec"]["runtimeClassName"] == "nvidia"
    ours, daemon = laid["spec"]["containers"]
    assert daemon == OVERLAY["spec"]["containers"][1]
    assert ours["image"] == plain["spec"]["containers"][0]["image"]
    assert [mount["mountPath"] for mount in ours["volumeMounts"]] == ["/dev/shm", "/libs"]
    assert [volume["name"] for volume in laid["spec"]["volumes"]] == ["shared-memory", "libs"]
    assert [item["key"] for item in laid["spec"]["tolerations"]] == ["nvidia.com/gpu", "lab"]
    head = rayjob(target_of(head={"pod_overlay": {"spec": {"schedulerName": "lab"}}}), work(1))
    assert pod_templates(head)[0]["spec"]["schedulerName"] == "lab"
    assert "schedulerName" not in pod_templates(head)[1]["spec"]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"terminationGracePeriodSeconds": 5},
         r"terminationGracePeriodSeconds: is 120 already, and not 5; set `grace_seconds`"),
        ({"containers": [{"name": "ray-worker", "image": "other"}]},
         r"spec.containers.ray-worker.image: .*; set `image`"),
        ({"containers": [{"name": "ray-worker", "env": [{"name": "OMP_NUM_THREADS", "value": "8"}]}]},
         r"spec.containers.ray-worker.env.OMP_NUM_THREADS.value: is '1' already, and not '8'; leave it out"),
        ({"containers": [{"name": "ray-worker", "lifecycle": {"preStop": {"exec": {"command": ["true"]}}}}]},
         r"lifecycle.preStop.exec.command: is \['python'"),
        ({"volumes": [{"name": "shared-memory", "emptyDir": {"sizeLimit": "1Gi"}}]},
         r"sizeLimit: .*; set `shared_memory`"),
        ({"restartPolicy": "Always"}, r"restartPolicy: is 'Never' already"),
    ],
)  # fmt: skip
def test_overlay_that_contradicts_is_refused_by_its_field(spec: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=rf"^gpu_pool\.pod_overlay\..*{words}") as error:
        worker(target_of(gpu_pool=MACHINE | {"pod_overlay": {"spec": spec}}))
    assert "\n" not in str(error.value)


def test_overlay_leaves_the_target_as_it_is() -> None:
    before = copy.deepcopy(OVERLAY)
    target = target_of(gpu_pool=MACHINE | {"pod_overlay": OVERLAY})
    assert worker(target) == worker(target) and before == OVERLAY


# As an earlier version kept the target of a job with its attempt, with the defaults of then.
_RECORDED_POOL = {
    "cpus": 4.0, "memory": "16Gi", "gpus": 0, "shared_memory": None, "gpu_type": None, "spot": False,
    "gpu_label": "nvidia.com/gpu.product", "node_selector": {}, "tolerations": [], "workers": [0, 4],
}  # fmt: skip
RECORDED = {
    "type": "kubernetes", "image": "registry.example.com/onediffusion:1", "pull_policy": None, "pull_secrets": [],
    "context": None, "kubeconfig": None, "namespace": "default", "service_account": None, "credentials": None,
    "environment": {"A": "b"}, "volumes": [], "queue": None, "priority": None, "cpu_pool": _RECORDED_POOL,
    "gpu_pool": _RECORDED_POOL | {"cpus": 8.0, "memory": "32Gi", "gpus": 1},
    "head": {"cpus": 2.0, "memory": "8Gi", "ray_cpus": 0, "node_selector": {}, "tolerations": []},
    "idle_seconds": 120, "retries": 2, "ttl_seconds": 60, "deadline_seconds": None, "grace_seconds": 120,
    "suspend": False, "cluster": None, "labels": {"team": "x"}, "annotations": {}, "ray_version": None,
}  # fmt: skip


def test_recorded_targets_give_the_pods_that_they_gave() -> None:
    target = parse_target(RECORDED, "target.yaml")
    assert isinstance(target, KubernetesTarget)
    (group,) = groups(target, work(4))
    asked = requested(group["template"])
    assert (group["replicas"], asked["cpu"], asked["memory"], asked["nvidia.com/gpu"]) == (4, "8", "32Gi", 1)
    (group,) = groups(target, work(1, kind="label", gpus=0.0, cpus=16.0))
    assert (requested(group["template"])["cpu"], requested(group["template"])["memory"]) == ("16", "16Gi")
