"""What the Kubernetes backend says of a job, from what the API server keeps of it."""

from __future__ import annotations

from typing import Any

import pytest
from api_server import ApiServer
from kuberay_objects import CLUSTER, HEAD, IMAGE, TRACE, WORK, begin, container, event, pod, unscheduled

from cluster.kubernetes.backend import KubernetesBackend
from cluster.work import TargetState

GPUS = "0/5 nodes are available: 1 node(s) had untolerated taint {node-role.kubernetes.io/control-plane: }, "
GPUS += "4 Insufficient nvidia.com/gpu. preemption: 0/5 nodes are available: 5 No preemption victims found."
PULL = 'failed to pull and unpack image "registry.example.com/od:1": failed to resolve reference: {}'
QUOTA = 'pods "w" is forbidden: exceeded quota: compute, requested: requests.nvidia.com/gpu=1, used: '
QUOTA += "requests.nvidia.com/gpu=4, limited: requests.nvidia.com/gpu=4"
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
def test_pending_job_tells_its_reason(
    server: ApiServer, backend: KubernetesBackend, pods: list[Any], events: list[Any], line: str
) -> None:
    backend.submit(WORK)
    begin(server)
    server.pods, server.events = pods, [event("someone-else", QUOTA), *events]
    assert backend.state(WORK.name) == TargetState("pending", line)


def test_running_job_reports_missing_workers(server: ApiServer, backend: KubernetesBackend) -> None:
    backend.submit(WORK)
    begin(server, jobDeploymentStatus="Running", jobStatus="RUNNING")
    server.pods = [*READY[:4], pod(3, **unscheduled(GPUS))]
    assert backend.state(WORK.name) == TargetState(
        "running", "1 of 4 workers pending: no node with nvidia.com/gpu free"
    )
    for kind in ("pods", "events"):
        server.refusals["GET", kind] = (403, f"{kind} is forbidden")
    assert backend.state(WORK.name).phase == "running"


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
def test_rayjob_status_maps_to_phase(
    server: ApiServer, backend: KubernetesBackend, status: dict[str, str], state: TargetState
) -> None:
    backend.submit(WORK)
    server.objects["rayjobs", WORK.name]["status"] = status
    found = backend.state(WORK.name)
    assert found.phase == state.phase and found.reason.startswith(state.reason) and "\n" not in found.reason
    assert bool(found.reason) == bool(state.reason)
