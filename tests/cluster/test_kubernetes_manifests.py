"""Manifests are what KubeRay and Kubernetes take, for every kind of target and work; no secret is in any of them."""

from __future__ import annotations

import copy
import itertools
import json
import shlex
import subprocess
import sys
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kuberay_schemas import pod_templates, ray_errors, validate_pod

from cluster.backend import open_backend
from cluster.kubernetes.manifests import QUEUE_LABEL, raycluster, rayjob
from cluster.kubernetes_target import KubernetesTarget
from cluster.target import load_target, parse_target, targets
from cluster.work import ResourceRequest, Work
from model.inputs import InputError

TARGETS: dict[str, dict[str, Any]] = {
    "plain": {},
    "everything": {
        "namespace": "lab",
        "pull_policy": "IfNotPresent",
        "pull_secrets": ["registry"],
        "service_account": "onediffusion",
        "credentials": "s3-credentials",
        "environment": {"AWS_ENDPOINT_URL": "https://s3.example.com"},
        "volumes": [{"claim": "data", "path": "/data"}, {"claim": "raw", "path": "/raw", "read_only": True}],
        "priority": "batch",
        "cpu_pool": {"cpus": 0.5, "node_selector": {"pool": "cpu"}, "tolerations": [{"key": "batch", "value": "yes"}]},
        "gpu_pool": {"gpus": 4, "gpu_type": "NVIDIA-A100-SXM4-80GB", "shared_memory": "64Gi", "spot": True},
        "head": {"cpus": 4, "ray_cpus": 2, "tolerations": [{"key": "system", "effect": "NoSchedule"}]},
        "deadline_seconds": 3600,
        "labels": {"team": "vision"},
        "annotations": {"example.com/cost": "42"},
    },
    "queue": {"queue": "lab-queue", "priority": "high", "gpu_pool": {"spot": True}},
    "suspended": {"suspend": True},
    "shared": {"cluster": "shared", "credentials": "s3-credentials", "environment": {"A": "b: 'c'"}},
    "shared, queue": {"cluster": "shared", "queue": "lab-queue"},
}
WORKS = {
    "label": Work("label-1a2b3c4d-1", "label", ("execute", "s3://b/d/jobs/l", "--attempt", "1"), "s3://b/d/jobs/l"),
    "label, many": Work(
        "label-2-1", "label", ("execute", "s3://b/j"), "s3://b/j", ResourceRequest(1, 8, 2.5, memory_gb=1.5)
    ),
    "train": Work(
        "train-1",
        "train",
        ("execute", "s3://b/j"),
        "s3://b/j",
        ResourceRequest(2, 4, 6, 1.0),
    ),
    "train without GPU": Work("train-2", "train", ("execute", "s3://b/j"), "s3://b/j", ResourceRequest(2, 2)),
}


def target_of(**keys: Any) -> KubernetesTarget:
    found = parse_target({"type": "kubernetes", "image": "registry.example.com/onediffusion:1"} | keys, "target")
    assert isinstance(found, KubernetesTarget)
    return found


@pytest.mark.parametrize(("target", "work"), itertools.product(TARGETS, WORKS))
def test_manifests_match_kuberay_schemas(target: str, work: str) -> None:
    plan = open_backend(target_of(**TARGETS[target])).plan(WORKS[work])
    manifests = [yaml.safe_load(text) for text in plan.values()]
    assert [manifest["kind"] for manifest in manifests] == ["RayJob", "RayCluster"][
        : 1 + ("cluster" in TARGETS[target])
    ]
    assert "&id" not in "".join(plan.values())  # YAML's references would be hard to read
    for manifest in manifests:
        assert ray_errors(manifest) == []
        if "clusterSelector" not in manifest["spec"]:
            for template in pod_templates(manifest):
                validate_pod(template)


def test_schema_validation_rejects_unknown_field() -> None:
    good = rayjob(target_of(), WORKS["train"])
    typo, missing, wrong, deep = (copy.deepcopy(good) for _ in range(4))
    typo["spec"]["sutdownAfterJobFinishes"] = True
    del missing["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["groupName"]
    wrong["spec"]["backoffLimit"] = "three"
    deep["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"][0]["path"] = (
        "/x"
    )
    assert ray_errors(good) == []
    assert ["sutdownAfterJobFinishes" in error for error in ray_errors(typo)] == [True]
    assert ["'groupName' is a required property" in error for error in ray_errors(missing)] == [True]
    assert ["'three' is not of type 'integer'" in error for error in ray_errors(wrong)] == [True]
    assert ["'path' was unexpected" in error for error in ray_errors(deep)] == [True]
    template = pod_templates(good)[0]
    for change in ({"restartPolice": "Never"}, {"terminationGracePeriodSeconds": "long"}):
        broken = copy.deepcopy(template)
        broken["spec"] |= change
        with pytest.raises(kubernetes_validate.ValidationError):
            validate_pod(broken)


@pytest.mark.parametrize("name", [name for name in targets() if isinstance(load_target(name), KubernetesTarget)])
def test_example_targets_give_valid_manifests(name: str) -> None:
    """KubeRay and Kubernetes would take what is sent for 64 ranks, on one machine or many."""
    target = load_target(name)
    assert isinstance(target, KubernetesTarget)
    manifest = rayjob(target, Work("train-1", "train", (), "s3://b/j", ResourceRequest(64, 64, 1.0, 1.0)))
    assert ray_errors(manifest) == []
    for template in pod_templates(manifest):
        validate_pod(template)
    pods = 64 // target.gpu_pool.gpus
    assert group(manifest)["replicas"] == pods
    assert requests_of_gpus(manifest) == 64
    assert parse_target(target.model_dump(mode="json"), name) == target  # as the job's folder keeps it


def requests_of_gpus(manifest: dict[str, Any]) -> int:
    container = group(manifest)["template"]["spec"]["containers"][0]
    return group(manifest)["replicas"] * container["resources"]["requests"]["nvidia.com/gpu"]


def group(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]


def requests(template: dict[str, Any]) -> dict[str, Any]:
    """What a pod asks for. Of disk it asks for some, and may take more."""
    resources = template["spec"]["containers"][0]["resources"]
    disk = {"ephemeral-storage": "10Gi"}
    assert resources["requests"] == resources["limits"] | disk
    return resources["limits"]


def test_work_goes_to_its_pool_and_size() -> None:
    target = target_of(**TARGETS["everything"])
    label, train = rayjob(target, WORKS["label, many"]), rayjob(target, WORKS["train"])
    assert (group(label)["groupName"], group(train)["groupName"]) == ("cpu", "gpu")
    assert requests(group(label)["template"]) == {"cpu": "2500m", "memory": "1.5G"}
    assert requests(group(train)["template"]) == {"cpu": "32", "memory": "128Gi", "nvidia.com/gpu": 4}
    assert group(label)["template"]["spec"]["nodeSelector"] == {"pool": "cpu"}
    assert group(train)["template"]["spec"]["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"}
    tolerated = {item["key"] for item in group(train)["template"]["spec"]["tolerations"]}
    assert tolerated >= {"nvidia.com/gpu", "cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority"}
    volumes = {item["name"]: item for item in group(train)["template"]["spec"]["volumes"]}
    assert volumes["shared-memory"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "64Gi"}
    assert volumes["volume-1"]["persistentVolumeClaim"] == {"claimName": "raw", "readOnly": True}
    head = train["spec"]["rayClusterSpec"]["headGroupSpec"]
    assert head["rayStartParams"] == {"num-cpus": "2"} and requests(head["template"]) == {"cpu": "4", "memory": "8Gi"}
    no_gpu = rayjob(target, WORKS["train without GPU"])
    assert group(no_gpu)["groupName"] == "cpu" and "nvidia.com/gpu" not in json.dumps(no_gpu)


def test_worker_bounds_follow_job_and_are_fixed_under_kueue() -> None:
    free, queued = (rayjob(target_of(**TARGETS[name]), WORKS["train"]) for name in ("plain", "queue"))
    keys = ("minReplicas", "maxReplicas", "replicas")
    assert [group(free)[key] for key in keys] == [2, 4, 2]
    assert [group(queued)[key] for key in keys] == [4, 4, 4]
    elastic = [manifest["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] for manifest in (free, queued)]
    assert elastic == [True, False]
    labels = queued["metadata"]["labels"]
    assert (labels[QUEUE_LABEL], labels["kueue.x-k8s.io/priority-class"]) == ("lab-queue", "high")
    assert (free["spec"]["suspend"], queued["spec"]["suspend"]) == (False, True)
    fixed = rayjob(target_of(), WORKS["train without GPU"])["spec"]["rayClusterSpec"]
    assert "autoscalerOptions" not in fixed and not fixed["enableInTreeAutoscaling"]


def test_shared_cluster_is_used_and_never_removed() -> None:
    target = target_of(**TARGETS["shared"])
    spec = rayjob(target, WORKS["train"])["spec"]
    assert spec["clusterSelector"] == {"ray.io/cluster": "shared"}
    assert not {"rayClusterSpec", "backoffLimit", "shutdownAfterJobFinishes", "suspend"} & set(spec)
    assert yaml.safe_load(spec["runtimeEnvYAML"]) == {"env_vars": {"A": "b: 'c'"}}
    cluster = raycluster(target_of(**TARGETS["shared, queue"]))
    assert cluster["metadata"]["labels"][QUEUE_LABEL] == "lab-queue"
    cpu, gpu = raycluster(target_of(cluster="shared", gpu_pool={"gpus": 4}))["spec"]["workerGroupSpecs"]
    assert (cpu["groupName"], gpu["groupName"]) == ("cpu", "gpu")
    assert (requests(cpu["template"]).get("nvidia.com/gpu"), requests(gpu["template"])["nvidia.com/gpu"]) == (None, 4)


NASTY = (
    "s3://b/a b",
    "s3://b/it's $HOME `id` $(id)",
    's3://b/"x"; false \\ \n #',
    "s3://b/ä*?[a]{b,c}~!",
    "--attempt",
    "",
)


def test_entrypoint_survives_shell() -> None:
    work = Work("x-1", "label", NASTY, "s3://b/j")
    entrypoint = rayjob(target_of(), work)["spec"]["entrypoint"]
    assert shlex.split(entrypoint) == ["python", "-m", "pipelines", *NASTY]
    # Ray runs it by `sh -c`; here a Python that prints its arguments takes the place of the command.
    shown = entrypoint.replace(
        "python -m pipelines", f"{sys.executable} -c 'import json, sys; print(json.dumps(sys.argv))'"
    )
    printed = subprocess.run(shown, shell=True, capture_output=True, text=True, check=True).stdout
    assert json.loads(printed)[1:] == list(NASTY)


@pytest.mark.parametrize("target", TARGETS)
def test_manifest_holds_no_secret(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {
        "AWS_SECRET_ACCESS_KEY": "wJalr-secret",
        "AWS_ACCESS_KEY_ID": "AKIA-secret",
        "RAY_AUTH_TOKEN": "t-secret",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    plan = "".join(open_backend(target_of(**TARGETS[target])).plan(WORKS["train"]).values())
    assert not [name for name, value in secrets.items() if value in plan or name in plan]
    if "credentials" in TARGETS[target]:
        assert "secretRef:\n" in plan and "name: s3-credentials" in plan


def test_address_that_pods_cannot_see_is_refused() -> None:
    def check(*places: str, **keys: Any) -> None:
        rayjob(target_of(**keys), Work("x-1", "label", (), "s3://b/j", data=places))

    check("s3://b/d")
    check("/data/x", "/data", volumes=[{"claim": "data", "path": "/data"}])
    with pytest.raises(InputError, match=r"^/home/me/d: pods cannot see this folder; use an s3:// address") as error:
        check("s3://b/d", "/home/me/d")
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"^/database: .* `volumes` \(/data\)$"):
        check("/database", volumes=[{"claim": "data", "path": "/data"}])
    with pytest.raises(InputError, match=r"^/home/job: pods cannot see"):
        rayjob(target_of(), Work("x-1", "label", (), "/home/job"))


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"gpu_pool": {"gpuz": 1}}, r"no key 'gpu_pool.gpuz' \(did you mean 'gpus'\?\)"),
        ({"cpu_pool": {"tolerations": [{"key": "a", "efect": "b"}]}}, "did you mean 'effect'"),
        ({"cpu_pool": {"memory": "16"}}, "cpu_pool.memory: write it as a number and Mi, Gi or Ti"),
        ({"namespace": "My_Lab"}, "namespace: write it as Kubernetes names are"),
        ({"volumes": [{"claim": "data", "path": "data"}]}, "volumes.0.path: write it as an absolute path"),
        ({"cluster": "shared", "suspend": True}, "`suspend` needs a cluster made for the job"),
        ({"image": "two words"}, "image: write it as REGISTRY/NAME:TAG"),
    ],
)
def test_wrong_target_is_one_line(keys: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError, match=line) as error:
        target_of(**keys)
    assert "\n" not in str(error.value)
