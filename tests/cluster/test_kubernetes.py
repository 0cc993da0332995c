"""The Kubernetes backend against a stand-in for the API server (tests/plugins/api_server.py: for transport only)."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from api_server import ApiServer
from kuberay_objects import CLUSTER, HEAD, TRACE, WORK, backend_for, begin, pod

from cluster.kubernetes.backend import KubernetesBackend
from cluster.work import ResourceRequest, TargetState, Work
from model.inputs import InputError


def test_submit_state_and_stop(server: ApiServer, backend: KubernetesBackend) -> None:
    assert backend.state(WORK.name) == TargetState("absent")
    backend.submit(WORK)
    assert list(server.objects) == [("rayjobs", WORK.name)]
    assert server.requests[-1][2]["fieldValidation"] == "Strict"
    with pytest.raises(InputError, match=f"^{WORK.name}: there already, in namespace default; nothing was sent$"):
        backend.submit(WORK)
    begin(server, jobDeploymentStatus="Running", jobStatus="RUNNING")
    assert backend.state(WORK.name) == TargetState("running")
    server.lingering = 2  # pods that still write a checkpoint
    backend.stop(WORK.name)
    assert ("rayjobs", WORK.name) not in server.objects
    deletions = [query for method, _, query, _ in server.requests if method == "DELETE"]
    assert [query["propagationPolicy"] for query in deletions] == ["Foreground"]
    backend.stop(WORK.name)
    assert backend.state(WORK.name) == TargetState("absent")


def test_examination_asks_for_rights(server: ApiServer, backend: KubernetesBackend) -> None:
    assert all(finding.ok for finding in backend.examine(WORK))
    server.denied = {("patch", "rayclusters"), ("get", "pods")}
    denied = {finding.check: finding.remedy for finding in backend.examine(WORK) if not finding.ok}
    assert denied == {
        "may patch rayclusters": "ask who runs the cluster for patch on rayclusters (ray.io)",
        "may get pods/log": "ask who runs the cluster for get on pods/log",
    }
    reviews = [body["spec"]["resourceAttributes"] for _, path, _, body in server.requests if "reviews" in path]
    assert {review["namespace"] for review in reviews} == {"default"}
    assert not server.objects, "nothing was sent"


def test_stop_reports_job_that_is_not_removed(
    server: ApiServer, backend: KubernetesBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.submit(WORK)
    server.lingering = 10**6
    clock = iter(range(0, 10**9, 100))
    monkeypatch.setattr("cluster.kubernetes.backend.time.monotonic", lambda: next(clock))
    with pytest.raises(InputError, match="still being removed; is KubeRay's operator running"):
        backend.stop(WORK.name)
    assert backend.state(WORK.name) == TargetState("running", "being removed")


def test_submit_without_answer_looks_up_the_job(server: ApiServer, backend: KubernetesBackend) -> None:
    server.silent.add("rayjobs")
    backend.submit(WORK)  # it was taken, and that is what counts
    assert ("rayjobs", WORK.name) in server.objects and len([r for r in server.requests if r[0] == "POST"]) == 1
    server.objects.clear()
    server.refusals["POST", "rayjobs"] = (200, {})
    with pytest.raises(ConnectionError, match="went silent while it was sent"):  # not there, but it may yet come
        backend.submit(WORK)
    server.refusals["GET", "rayjobs"] = (503, "etcd is down")
    with pytest.raises(ConnectionError, match="went silent while it was sent"):
        backend.submit(WORK)


def test_queued_job_tells_its_reason(server: ApiServer, tmp_path: Path) -> None:
    backend = backend_for(server, tmp_path, queue="lab-queue")
    with pytest.raises(InputError, match=r"^lab-queue: Kueue is not installed in this cluster"):
        backend.submit(WORK)
    server.kueue = True
    del backend.server.__dict__["_kueue"]
    server.put("localqueues", {"metadata": {"name": "lab-queues"}})
    with pytest.raises(
        InputError, match=r"^lab-queue: no such LocalQueue in namespace default \(did you mean 'lab-queues'"
    ):
        backend.submit(WORK)
    server.refusals["GET", "localqueues"] = (403, "localqueues is forbidden")
    backend.submit(WORK)  # whoever may not look, may still be right
    assert backend.state(WORK.name).reason.startswith("waiting in queue lab-queue; Kueue has not taken it up")
    message = "couldn't assign flavors to pod set gpu: insufficient unused quota for nvidia.com/gpu, 2 more needed"
    conditions = [{"type": "QuotaReserved", "status": "False", "message": message}]
    server.put("workloads", {"metadata": {"name": "w"}, "status": {"conditions": conditions}})
    assert backend.state(WORK.name) == TargetState("pending", f"waiting in queue lab-queue: {message}")
    uid = server.objects["rayjobs", WORK.name]["metadata"]["uid"]
    assert server.requests[-1][2] == {"labelSelector": f"kueue.x-k8s.io/job-uid={uid}"}
    assert not backend.scale(WORK.name, WORK)


def test_suspended_job_tells_how_to_resume(server: ApiServer, tmp_path: Path) -> None:
    backend = backend_for(server, tmp_path, suspend=True)
    backend.submit(WORK)
    assert backend.state(WORK.name).reason.startswith(f"suspended; `kubectl patch rayjob {WORK.name}")


def test_submit_refuses_missing_shared_cluster(server: ApiServer, tmp_path: Path) -> None:
    backend = backend_for(server, tmp_path, cluster="shared")
    with pytest.raises(InputError, match=r"^shared: no such RayCluster in namespace default; make it once"):
        backend.submit(WORK)
    server.put("rayclusters", {"metadata": {"name": "shared"}, "spec": {}})
    backend.submit(WORK)
    assert backend.state(WORK.name).phase == "pending" and backend.scale(WORK.name, WORK)


@pytest.mark.parametrize(
    ("before", "after", "elastic", "bounds"),
    [
        (ResourceRequest(4, 4, 6, 1), ResourceRequest(6, 6, 6, 1), False, (6, 6, 6)),
        (ResourceRequest(4, 4, 6, 1), ResourceRequest(2, 2, 6, 1), False, None),  # KubeRay would choose whom to end
        (ResourceRequest(2, 4, 6, 1), ResourceRequest(4, 8, 6, 1), True, (2, 4, 8)),
        (ResourceRequest(4, 8, 6, 1), ResourceRequest(1, 2, 6, 1), True, (4, 1, 4)),  # until the busy ones are idle
        (ResourceRequest(4, 4, 6, 1), ResourceRequest(4, 4, 6, 2), False, None),
        (ResourceRequest(4, 4, 6, 1), ResourceRequest(4, 4, 6, 0), False, None),
        (ResourceRequest(4, 4, 6, 1), ResourceRequest(4, 4, 6, 1, 64), False, None),
    ],
)
def test_scale_changes_worker_bounds(
    server: ApiServer,
    backend: KubernetesBackend,
    before: ResourceRequest,
    after: ResourceRequest,
    elastic: bool,
    bounds: tuple[int, ...] | None,
) -> None:
    backend.submit(Work(WORK.name, "train", (), "s3://b/j", before))
    wanted = Work(WORK.name, "train", (), "s3://b/j", after)
    assert not backend.scale(WORK.name, wanted)  # no cluster yet
    begin(server)
    assert server.objects["rayclusters", CLUSTER]["spec"]["enableInTreeAutoscaling"] == elastic
    assert backend.scale(WORK.name, wanted) == (bounds is not None)
    group = server.objects["rayclusters", CLUSTER]["spec"]["workerGroupSpecs"][0]
    if bounds:
        assert tuple(group[key] for key in ("replicas", "minReplicas", "maxReplicas")) == bounds
        again = server.objects["rayjobs", WORK.name]["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
        sizes = (after.min_workers, after.min_workers, after.max_workers)  # of a retry's cluster
        assert tuple(again[key] for key in ("replicas", "minReplicas", "maxReplicas")) == sizes
    else:
        assert "PATCH" not in {request[0] for request in server.requests}


def test_logs_come_from_pods_and_job(server: ApiServer, backend: KubernetesBackend) -> None:
    assert list(backend.logs(WORK.name)) == []
    backend.submit(WORK)
    begin(server, jobDeploymentStatus="Failed", message=TRACE.format(1, "Traceback:\nValueError: x"))
    server.pods, server.logs = [HEAD, pod()], {"head-0": "ray started\n"}
    assert list(backend.logs(WORK.name)) == ["head-0: ray started", "Traceback:", "ValueError: x"]


@pytest.mark.parametrize(
    ("refusal", "line"),
    [
        ((403, 'rayjobs.ray.io is forbidden: User "jo" cannot create resource "rayjobs" in API group "ray.io"'),
         "^default: you may not create rayjobs in this namespace"),
        ((403, 'rayjobs.ray.io is forbidden: User "system:anonymous" cannot create resource "rayjobs"'),
         "does not know you; log in"),
        ((400, 'strict decoding error: unknown field "spec.rayClusterSpec.authOptions"'),
         r"KubeRay is too old, it does not know spec\.rayClusterSpec\.authOptions; KubeRay 1\.6"),
        ((503, "apiserver is shutting down"), r"in trouble \(503 apiserver is shutting down\); try again later"),
        ((400, 'admission webhook "vrayjob.kb.io" denied the request: no'), "refused: admission webhook"),
    ],
)  # fmt: skip
def test_server_refusal_is_one_line(
    server: ApiServer, backend: KubernetesBackend, refusal: tuple[int, str], line: str
) -> None:
    server.refusals["POST", "rayjobs"] = refusal
    check(backend, line)


def check(backend: KubernetesBackend, line: str) -> None:
    with pytest.raises(InputError, match=line) as error:
        backend.submit(WORK)
    assert "\n" not in str(error.value) and "token-of" not in str(error.value)


def test_field_that_only_an_overlay_has_is_blamed_on_it(server: ApiServer, tmp_path: Path) -> None:
    field = "spec.rayClusterSpec.workerGroupSpecs[0].template.spec.restartPolice"
    server.refusals["POST", "rayjobs"] = (400, f'strict decoding error: unknown field "{field}"')
    backend = backend_for(server, tmp_path, gpu_pool={"pod_overlay": {"spec": {"restartPolice": "x"}}})
    check(backend, r"does not know .*restartPolice; correct `pod_overlay` in the target, or else KubeRay 1\.6")


def test_user_error_is_one_line(server: ApiServer, tmp_path: Path) -> None:
    check(backend_for(server, tmp_path, namespace="lap"), "^lap: no such namespace; .*`kubectl create namespace lap`$")
    check(backend_for(server, tmp_path, context="lap"), r"^lap: no such context in .* \(did you mean 'lab'\?\)$")
    check(backend_for(server, tmp_path, context="moon"), "^moon: no such context in .*; there are lab$")
    check(backend_for(server, tmp_path, kubeconfig=str(tmp_path / "none")), "none: no kubeconfig there; name yours")
    (tmp_path / "broken").write_text("clusters: 3")
    check(
        backend_for(server, tmp_path, kubeconfig=str(tmp_path / "broken")), "broken: no usable kubeconfig .*; make one"
    )
    check(
        backend_for(server, tmp_path, image="ACCOUNT.example.com/od:1"), "^ACCOUNT.example.com/od:1: put what is yours"
    )
    old = server.kubeconfig(tmp_path / "old", token="expired")
    check(backend_for(server, tmp_path, kubeconfig=old), "does not accept your credentials; log in again")
    server.quota = (
        "jobs, requested: count/rayjobs.ray.io=1, used: count/rayjobs.ray.io=9, limited: count/rayjobs.ray.io=9"
    )
    check(
        backend_for(server, tmp_path),
        "^default: quota exceeded: jobs allows count/rayjobs.ray.io=9, .*; wait, ask for less",
    )
    server.kuberay = False
    check(backend_for(server, tmp_path), "KubeRay is not installed there .*helm install kuberay-operator")
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        gone = server.kubeconfig(tmp_path / "gone", address=f"http://127.0.0.1:{taken.getsockname()[1]}")
        check(
            backend_for(server, tmp_path, kubeconfig=gone),
            r"cannot be reached \(Connection refused\); check your network",
        )
