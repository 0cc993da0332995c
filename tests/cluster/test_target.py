"""Target files: what all kinds of them refuse."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.target import parse_target
from model.inputs import InputError

KINDS = {
    "local": {},
    "ray": {},
    "kubernetes": {"image": "registry/onediffusion:1"},
    "slurm": {"cpus_per_node": 8},
}


@pytest.mark.parametrize("kind", KINDS)
def test_secret_in_environment_is_refused(kind: str) -> None:
    def given(**environment: str) -> Any:
        return parse_target({"type": kind, **KINDS[kind], "environment": environment}, "target.yaml")

    for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "DB_PASSWORD", "AZURE_STORAGE_KEY", "S3_SECRETKEY", "DB_PASS"):
        with pytest.raises(InputError, match=f"{name} looks like a secret.*leave it in the shell") as error:
            given(**{name: "wJalr"})
        assert "wJalr" not in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="a password in an address looks like a secret") as error:
        given(HTTPS_PROXY="http://me:wJalr@proxy:3128")
    assert "wJalr" not in str(error.value)
    paths = {
        "HTTPS_PROXY": "http://proxy:3128",
        "AWS_WEB_IDENTITY_TOKEN_FILE": "/var/token",
        "TOKENIZERS_PARALLELISM": "false",
    }
    assert given(**paths).environment == paths


def test_secret_in_slurm_lines_is_refused() -> None:
    for values in ({"setup": ["export AWS_SECRET_ACCESS_KEY=wJalr"]}, {"options": ["--export=ALL,HF_TOKEN=wJalr"]}):
        with pytest.raises(InputError, match=r"looks like a secret.*leave it in the shell") as error:
            parse_target({"type": "slurm", "cpus_per_node": 8, **values}, "target.yaml")
        assert "wJalr" not in str(error.value)
    lines = {"setup": ["module load cuda/12.8", "export NCCL_DEBUG=INFO"], "options": ["--mail-type=FAIL"]}
    assert parse_target({"type": "slurm", "cpus_per_node": 8, **lines}, "target.yaml").setup == lines["setup"]


LONG = "a" * 54


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"cluster": LONG}, "cluster: it has 54 letters; write it with at most 53"),
        ({"cluster": "2024-lab"}, "cluster: write it as KubeRay takes it: a lower-case letter, then"),
        ({"cluster": "lab.shared"}, "cluster: write it as KubeRay takes it"),
        ({"namespace": "lab.team"}, "namespace: write it as Kubernetes names are, and without dots"),
        ({"labels": {"my team": "x"}}, "labels: the name: write it as Kubernetes names labels"),
        ({"labels": {"team": "computer vision"}}, "labels.team: write it as Kubernetes takes values of labels"),
        ({"labels": {"/team": "x"}}, "labels: the name: write it as Kubernetes names labels"),
        ({"labels": {"team": "x" * 64}}, "labels.team: it has 64 letters; write it with at most 63"),
        ({"labels": {"x" * 64: "x"}}, "labels: the name: write it as Kubernetes names labels"),
        ({"annotations": {"a/b/c": "x"}}, "annotations: the name: write it as Kubernetes names labels"),
        ({"cpu_pool": {"node_selector": {"pool": "a/b"}}}, "cpu_pool.node_selector.pool: write it as Kubernetes takes"),
        (
            {"head": {"node_selector": {"a b": "c"}}},
            "head.node_selector: the name: write it as Kubernetes names labels",
        ),
        ({"gpu_pool": {"gpu_type": "NVIDIA A100"}}, "gpu_pool.gpu_type: write it as Kubernetes takes values of labels"),
        ({"gpu_pool": {"gpu_label": "gpu type"}}, "gpu_pool.gpu_label: write it as Kubernetes names labels"),
        ({"gpu_pool": {"tolerations": [{"key": "a b"}]}}, "gpu_pool.tolerations.0.key: write it as Kubernetes names"),
        ({"gpu_pool": {"topology": {"key": "a b"}}}, "gpu_pool.topology.key: write it as Kubernetes names labels"),
        ({"gpu_pools": {"H100": {}}}, "gpu_pools: the name: write it as lower-case letters, digits"),
        ({"gpu_pool": {"extra_resources": {"efa": 32}}}, "gpu_pool.extra_resources: the name: write it as Kubernetes"),
        ({"gpu_pool": {"extra_resources": {"rdma/ib": 0}}}, "gpu_pool.extra_resources.rdma/ib: write it as a whole"),
        ({"gpu_pool": {"nccl": {"NCCL-DEBUG": "INFO"}}}, "gpu_pool.nccl: the name: write it as shells name variables"),
        ({"gpu_pool": {"pod_overlay": {"speck": {}}}}, "no field 'speck' of a pod (did you mean 'spec'?)"),
        ({"gpu_pool": {"pod_overlay": {"spec": 3}}}, "gpu_pool.pod_overlay: spec: write the fields that it has"),
        ({"environment": {"MY-VAR": "x"}}, "environment: the name: write it as shells name variables"),
        ({"environment": {"X;touch y": "x"}}, "environment: the name: write it as shells name variables"),
        ({"environment": {"A": "1"}, "gpu_pool": {"nccl": {"A": "2"}}}, "A is in `environment` and in `gpu_pool.nccl`"),
        ({"image": "r/x@sha256:12"}, "image: write it as REGISTRY/NAME:TAG or REGISTRY/NAME@sha256:DIGEST"),
        ({"credentials": "s3_credentials"}, "credentials: write it as Kubernetes names are"),
        ({"pull_secrets": ["a b"]}, "pull_secrets.0: write it as Kubernetes names are"),
        ({"queue": "lab queue"}, "queue: write it as Kubernetes names are"),
        ({"cpu_pods": [4, 1]}, "cpu_pods [4, 1]: give [least, most]"),
        ({"ray_version": "newest"}, "ray_version: write it as Ray's versions are"),
    ],
)
def test_name_that_kubernetes_refuses_is_refused_before(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as error:
        parse_target({"type": "kubernetes", "image": "registry/onediffusion:1", **keys}, "target.yaml")
    assert str(error.value).startswith("target.yaml: ") and words in str(error.value)
    assert "\n" not in str(error.value)


def test_names_that_kubernetes_takes_are_taken() -> None:
    keys = {
        "cluster": "a" * 53,
        "namespace": "lab-2",
        "labels": {"example.com/team_a": "Vision-1.b", "plain": ""},
        "annotations": {"example.com/why": "any text, with spaces"},
        "environment": {"_A1": "any; text"},
        "credentials": "s3.credentials",
        "gpu_pool": {"gpu_type": "NVIDIA-H100-80GB-HBM3", "extra_resources": {"hugepages-2Mi": "5120Mi", "rdma/ib": 1}},
        "image": "localhost:5000/a/b_c:1.0-gpu@sha256:" + "ab" * 32,
    }
    parse_target({"type": "kubernetes", "image": "registry/onediffusion:1", **keys}, "target.yaml")
