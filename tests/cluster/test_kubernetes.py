"""The Kubernetes backend against a stand-in for the API server (tests/plugins/api_server.py: for transport only)."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from api_server import ApiServer

from cluster.kubernetes.backend import KubernetesBackend
from cluster.target import KubernetesTarget, parse_target
from cluster.work import ResourceRequest, TargetState, Work
from model.inputs import InputError

WORK = Work(
    "train-1a2b3c4d-1", "train", ("execute", "s3://b/j", "--attempt", "1"), "s3://b/j", ResourceRequest(4, 4, 6, 1)
)
CLUSTER = "train-1a2b3c4d-1-abcde"
IMAGE = "registry.example.com/od:1"


@pytest.fixture
def server() -> Iterator[ApiServer]:
    server = ApiServer()
    yield server
    server.close()


@pytest.fixture
def backend(server: ApiServer, tmp_path: Path) -> KubernetesBackend:
    return make(server, tmp_path)


def make(server: ApiServer, folder: Path, **keys: Any) -> KubernetesBackend:
    values = {
        "type": "kubernetes",
        "image": IMAGE,
        "kubeconfig": server.kubeconfig(folder / "config"),
    }
    target = parse_target(values | keys, "target")
    assert isinstance(target, KubernetesTarget)
    return KubernetesBackend(target)


def run(server: ApiServer, **status: Any) -> dict[str, Any]:
    """Let KubeRay have made the cluster of the job, and say this of it."""
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
    about = {"name": name, "kind": "Pod", "namespace": "default"}
    return {"metadata": {"name": "e"}, "involvedObject": about, "type": "Warning", "reason": reason, "message": message}


def test_submitting_state_and_stopping(server: ApiServer, backend: KubernetesBackend) -> None:
    assert backend.state(WORK.name) == TargetState("absent")
    backend.submit(WORK)
    assert list(server.objects) == [("rayjobs", WORK.name)]
    assert server.requests[-1][2]["fieldValidation"] == "Strict"
    with pytest.raises(InputError, match=f"^{WORK.name}: there already, in namespace default; nothing was sent$"):
        backend.submit(WORK)
    run(server, jobDeploymentStatus="Running", jobStatus="RUNNING")
    assert backend.state(WORK.name) == TargetState("running")
    server.lingering = 2  # pods that still write a checkpoint
    backend.stop(WORK.name)
    assert ("rayjobs", WORK.name) not in server.objects
    deletions = [query for method, _, query, _ in server.requests if method == "DELETE"]
    assert [query["propagationPolicy"] for query in deletions] == ["Foreground"]
    backend.stop(WORK.name)
    assert backend.state(WORK.name) == TargetState("absent")


def test_stopping_says_when_nobody_removes_it(
    server: ApiServer, backend: KubernetesBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.submit(WORK)
    server.lingering = 10**6
    clock = iter(range(0, 10**9, 100))
    monkeypatch.setattr("cluster.kubernetes.backend.time.monotonic", lambda: next(clock))
    with pytest.raises(InputError, match="still being removed; is KubeRay's operator running"):
        backend.stop(WORK.name)
    assert backend.state(WORK.name) == TargetState("running", "being removed")


def test_a_request_without_an_answer_is_looked_up(server: ApiServer, backend: KubernetesBackend) -> None:
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


GPUS = "0/5 nodes are available: 1 node(s) had untolerated taint {node-role.kubernetes.io/control-plane: }, "
GPUS += "4 Insufficient nvidia.com/gpu. preemption: 0/5 nodes are available: 5 No preemption victims found."
PULL = 'failed to pull and unpack image "registry.example.com/od:1": failed to resolve reference: {}'
QUOTA = 'pods "w" is forbidden: exceeded quota: compute, requested: requests.nvidia.com/gpu=1, used: '
QUOTA += "requests.nvidia.com/gpu=4, limited: requests.nvidia.com/gpu=4"
HEAD = pod(head=True, ready=True)
READY = [HEAD, *(pod(number, ready=True) for number in range(4))]


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return container(waiting={"reason": reason, "message": message})


@pytest.mark.parametrize(
    ("pods", "events", "line"),
    [
        ([], [], "pods are being made"),
        (READY, [], "Ray is starting the job"),
        ([*READY[:3], pod(2), pod(3)], [], "2 of 4 workers starting"),
        (
            [*READY[:3], pod(2, **unscheduled(GPUS)), pod(3, **unscheduled(GPUS))],
            [],
            "2 of 4 workers pending: no node with nvidia.com/gpu free",
        ),
        (
            [pod(head=True, **unscheduled("0/3 nodes are available: 3 Insufficient cpu, 2 Insufficient memory."))],
            [],
            "head pending: no node with enough cpu and memory free",
        ),
        (
            [HEAD, pod(**unscheduled("0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector."))],
            [],
            "1 of 4 workers pending: no node labeled nvidia.com/gpu.product=A100",
        ),
        (
            [HEAD, pod(**unscheduled("0/1 nodes are available: 1 node(s) had untolerated taint {team: vision}."))],
            [],
            "1 of 4 workers pending: nodes are tainted team; allow it among the pool's `tolerations`",
        ),
        (
            [pod(head=True, **unscheduled('0/1 nodes are available: persistentvolumeclaim "data" not found.'))],
            [],
            'head pending: persistentvolumeclaim "data" not found.',
        ),
        (
            [pod(head=True, **waiting("ErrImagePull", PULL.format(f"{IMAGE}: not found")))],
            [],
            f"head pending: cannot pull image {IMAGE}: not found; push it, or correct `image` in the target",
        ),
        (
            [pod(head=True, **waiting("ImagePullBackOff", 'Back-off pulling image "registry.example.com/od:1"'))],
            [event("head-0", "Failed to pull image: " + PULL.format("401 Unauthorized"))],
            f"head pending: cannot pull image {IMAGE}: not allowed; name a pull secret as `pull_secrets`",
        ),
        (
            [HEAD, pod(**waiting("CreateContainerConfigError", 'secret "s3-credentials" not found'))],
            [],
            '1 of 4 workers pending: secret "s3-credentials" not found; make it, or correct the target',
        ),
        (
            [HEAD, pod(**container(terminated={"reason": "OOMKilled", "exitCode": 137}))],
            [],
            "1 of 4 workers pending: out of memory (32Gi); give its pool more `memory`",
        ),
        (
            [pod(head=True, **container("ray-head", terminated={"reason": "Error", "exitCode": 1}))],
            [],
            "head pending: ray-head ended with exit code 1; `onediffusion logs` shows what it printed",
        ),
        (
            [HEAD, pod(**waiting("ContainerCreating"))],
            [event("worker-0", 'MountVolume.SetUp failed for volume "data": access denied', "FailedMount")],
            '1 of 4 workers pending: MountVolume.SetUp failed for volume "data": access denied',
        ),
        (
            [HEAD, pod(1, ready=True)],
            [event(CLUSTER, f"Failed to create worker Pod default/w, {QUOTA}", "FailedToCreateWorkerPod")],
            "3 of 4 workers pending: quota exceeded: compute allows requests.nvidia.com/gpu=4, of which "
            "requests.nvidia.com/gpu=4 are used and requests.nvidia.com/gpu=1 more were asked for",
        ),
        (
            [],
            [
                event(
                    CLUSTER,
                    'pods "h" is forbidden: error looking up service account default/od: serviceaccount "od" not found',
                )
            ],
            'pods "h" is forbidden: error looking up service account default/od: serviceaccount "od" not found',
        ),
        (
            [],
            [event(WORK.name, "The RayJob spec is invalid: x", "InvalidRayJobSpec")],
            "KubeRay refuses it: The RayJob spec is invalid: x",
        ),
    ],
)
def test_what_a_job_waits_for(
    server: ApiServer, backend: KubernetesBackend, pods: list[Any], events: list[Any], line: str
) -> None:
    backend.submit(WORK)
    run(server)
    server.pods, server.events = pods, [event("someone-else", QUOTA), *events]
    assert backend.state(WORK.name) == TargetState("pending", line)


def test_a_running_job_tells_of_workers_that_are_missing(server: ApiServer, backend: KubernetesBackend) -> None:
    backend.submit(WORK)
    run(server, jobDeploymentStatus="Running", jobStatus="RUNNING")
    server.pods = [*READY[:4], pod(3, **unscheduled(GPUS))]
    assert backend.state(WORK.name) == TargetState(
        "running", "1 of 4 workers pending: no node with nvidia.com/gpu free"
    )
    for kind in ("pods", "events"):
        server.refusals["GET", kind] = (403, f"{kind} is forbidden")
    assert backend.state(WORK.name).phase == "running"


TRACE = "Job entrypoint command failed with exit code {}, last available logs (truncated to 20,000 chars):\n{}"


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ({"jobDeploymentStatus": ""}, TargetState("pending", "KubeRay has not taken it up; is its operator running?")),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, TargetState("ended")),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}, TargetState("ended", "STOPPED")),
        (
            {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed"}
            | {"message": TRACE.format(2, "labeling\nonediffusion: s3://b: no such bucket\n")},
            TargetState("ended", "exit code 2: onediffusion: s3://b: no such bucket"),
        ),
        (
            {"jobDeploymentStatus": "Failed", "reason": "DeadlineExceeded", "message": "…"},
            TargetState("ended", "it took longer than `deadline_seconds` in the target"),
        ),
        ({"jobDeploymentStatus": "Retrying"}, TargetState("pending", "begins again, in a new cluster")),
    ],
)
def test_how_a_job_stands(
    server: ApiServer, backend: KubernetesBackend, status: dict[str, str], state: TargetState
) -> None:
    backend.submit(WORK)
    server.objects["rayjobs", WORK.name]["status"] = status
    found = backend.state(WORK.name)
    assert found.phase == state.phase and found.reason.startswith(state.reason) and "\n" not in found.reason
    assert bool(found.reason) == bool(state.reason)


def test_a_job_in_a_queue(server: ApiServer, tmp_path: Path) -> None:
    backend = make(server, tmp_path, queue="lab-queue")
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


def test_a_suspended_job_says_how_to_resume(server: ApiServer, tmp_path: Path) -> None:
    backend = make(server, tmp_path, suspend=True)
    backend.submit(WORK)
    assert backend.state(WORK.name).reason.startswith(f"suspended; `kubectl patch rayjob {WORK.name}")


def test_a_shared_cluster_must_be_there(server: ApiServer, tmp_path: Path) -> None:
    backend = make(server, tmp_path, cluster="shared")
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
def test_scaling(
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
    run(server)
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


def test_logs_are_what_pods_and_the_job_keep(server: ApiServer, backend: KubernetesBackend) -> None:
    assert list(backend.logs(WORK.name)) == []
    backend.submit(WORK)
    run(server, jobDeploymentStatus="Failed", message=TRACE.format(1, "Traceback:\nValueError: x"))
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
def test_refusals_are_one_line(
    server: ApiServer, backend: KubernetesBackend, refusal: tuple[int, str], line: str
) -> None:
    server.refusals["POST", "rayjobs"] = refusal
    check(backend, line)


def check(backend: KubernetesBackend, line: str) -> None:
    with pytest.raises(InputError, match=line) as error:
        backend.submit(WORK)
    assert "\n" not in str(error.value) and "token-of" not in str(error.value)


def test_what_a_user_can_mend_is_one_line(server: ApiServer, tmp_path: Path) -> None:
    check(make(server, tmp_path, namespace="lap"), "^lap: no such namespace; .*`kubectl create namespace lap`$")
    check(make(server, tmp_path, context="lap"), r"^lap: no such context in .* \(did you mean 'lab'\?\)$")
    check(make(server, tmp_path, context="moon"), "^moon: no such context in .*; there are lab$")
    check(make(server, tmp_path, kubeconfig=str(tmp_path / "none")), "none: no kubeconfig there; name yours")
    (tmp_path / "broken").write_text("clusters: 3")
    check(make(server, tmp_path, kubeconfig=str(tmp_path / "broken")), "broken: no usable kubeconfig .*; make one")
    check(make(server, tmp_path, image="ACCOUNT.example.com/od:1"), "^ACCOUNT.example.com/od:1: put what is yours")
    old = server.kubeconfig(tmp_path / "old", token="expired")
    check(make(server, tmp_path, kubeconfig=old), "does not accept your credentials; log in again")
    server.quota = (
        "jobs, requested: count/rayjobs.ray.io=1, used: count/rayjobs.ray.io=9, limited: count/rayjobs.ray.io=9"
    )
    check(
        make(server, tmp_path), "^default: quota exceeded: jobs allows count/rayjobs.ray.io=9, .*; wait, ask for less"
    )
    server.kuberay = False
    check(make(server, tmp_path), "KubeRay is not installed there .*helm install kuberay-operator")
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        gone = server.kubeconfig(tmp_path / "gone", address=f"http://127.0.0.1:{taken.getsockname()[1]}")
        check(make(server, tmp_path, kubeconfig=gone), r"cannot be reached \(Connection refused\); check your network")
