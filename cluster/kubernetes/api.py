"""The API server of a Kubernetes cluster, through the official client: bounded in time, errors explained."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.kubernetes_target import KubernetesTarget
from cluster.work import AlreadySubmitted
from model.inputs import InputError, nearest, one_line

if TYPE_CHECKING:
    from kubernetes import client

brief = partial(one_line, longest=300)  # messages of the API server may be of any length

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 30.0
LAST_LINES = 1000
RAY = ("ray.io", "v1")
KUEUE = "kueue.x-k8s.io"
LOG_IN = "log in again (EKS: `aws eks update-kubeconfig`, GKE: `gcloud container clusters get-credentials`)"


class ApiServer:
    """What the backend asks of a cluster, in the target's namespace.

    Every method raises InputError, in one line, when the server cannot be reached, does not know the user, or refuses.
    """

    def __init__(self, target: KubernetesTarget) -> None:
        self.target = target
        self.namespace = target.namespace

    def create_job(self, manifest: dict[str, Any]) -> None:
        """Create a RayJob; an unknown field is refused, not dropped. Raises AlreadySubmitted when the name is taken.

        Raises ConnectionError when the server took the request, and then said nothing more: the job may be there.
        """
        import urllib3

        name = manifest["metadata"]["name"]
        try:
            with self._explained(taken_name=name):
                self._custom.create_namespaced_custom_object(
                    *RAY, self.namespace, "rayjobs", manifest, field_validation="Strict", **self._limits
                )
        except (urllib3.exceptions.ReadTimeoutError, urllib3.exceptions.ProtocolError):
            # A job that is absent now was not refused: a busy server may still create it.
            for _ in range(3):
                with suppress(InputError):
                    if self.job(name):
                        return
                time.sleep(1.0)
            raise ConnectionError(
                f"{name}: {self.host} went silent while it was sent; look again with `onediffusion jobs`"
            ) from None

    def job(self, name: str) -> dict[str, Any] | None:
        """A RayJob, or None."""
        return self._get("rayjobs", name)

    def delete_job(self, name: str) -> bool:
        """Begin to remove a RayJob, which is gone after everything that it owns; returns whether there was one."""
        with self._explained(), self._absent_is_none() as items:
            self._custom.delete_namespaced_custom_object(
                *RAY, self.namespace, "rayjobs", name, propagation_policy="Foreground", **self._limits
            )
            items.append(True)
        return bool(items)

    def cluster(self, name: str) -> dict[str, Any] | None:
        """A RayCluster, or None."""
        return self._get("rayclusters", name)

    def patch_cluster(self, name: str, operations: list[dict[str, Any]]) -> None:
        """Change a RayCluster by JSON Patch operations."""
        with self._explained():
            self._custom.patch_namespaced_custom_object(
                *RAY, self.namespace, "rayclusters", name, operations, **self._limits
            )

    def patch_job(self, name: str, operations: list[dict[str, Any]]) -> None:
        """Change a RayJob by JSON Patch operations."""
        with self._explained():
            self._custom.patch_namespaced_custom_object(
                *RAY, self.namespace, "rayjobs", name, operations, **self._limits
            )

    def pods(self, cluster: str) -> list[client.V1Pod]:
        """The pods of a RayCluster; none where the user may not list them."""
        with self._explained(), self._forbidden_is_none() as items:
            listed = self._core.list_namespaced_pod(
                self.namespace, label_selector=f"ray.io/cluster={cluster}", **self._limits
            )
            items.extend(listed.items)
        return items

    def warnings(self, names: set[str]) -> list[client.CoreV1Event]:
        """Warning events about these objects, the newest last; none where the user may not list them."""
        with self._explained(), self._forbidden_is_none() as items:
            listed = self._core.list_namespaced_event(self.namespace, field_selector="type=Warning", **self._limits)
            items.extend(event for event in listed.items if event.involved_object.name in names)
        return sorted(items, key=lambda event: str(event.last_timestamp or event.event_time or ""))

    def log(self, pod: str, container: str) -> list[str]:
        """The last lines that a container printed; none before it started."""
        with self._explained(), self._absent_is_none(400, 404) as items:
            text = self._core.read_namespaced_pod_log(
                pod, self.namespace, container=container, tail_lines=LAST_LINES, **self._limits
            )
            items.extend(str(text).splitlines())
        return items

    def queues(self) -> list[str] | None:
        """Names of Kueue's LocalQueues here; None when Kueue is not installed.

        Where the user may not list them, the target's own is assumed to be there.
        """
        if not self._kueue:
            return None
        with self._explained(), self._forbidden_is_none() as items:
            listed = self._custom.list_namespaced_custom_object(
                KUEUE, self._kueue, self.namespace, "localqueues", **self._limits
            )
            items.extend(item["metadata"]["name"] for item in listed["items"])
            return items
        return [self.target.queue] if self.target.queue else []

    def workload(self, uid: str) -> dict[str, Any] | None:
        """What Kueue made of the RayJob with this uid, or None."""
        if not self._kueue:
            return None
        with self._explained(), self._forbidden_is_none() as items:
            listed = self._custom.list_namespaced_custom_object(
                KUEUE,
                self._kueue,
                self.namespace,
                "workloads",
                label_selector=f"{KUEUE}/job-uid={uid}",
                **self._limits,
            )
            items.extend(listed["items"])
        return items[0] if items else None

    def may(self, verb: str, group: str, resource: str, subresource: str = "") -> bool:
        """Whether this user may do so in the namespace, by a SelfSubjectAccessReview, which everyone may ask for."""
        from kubernetes import client

        attributes = {"namespace": self.namespace, "verb": verb, "group": group, "resource": resource}
        review = {"spec": {"resourceAttributes": {**attributes, "subresource": subresource}}}
        with self._explained():
            api = client.AuthorizationV1Api(self._client)
            return bool(api.create_self_subject_access_review(review, **self._limits).status.allowed)

    @property
    def host(self) -> str:
        return str(self._client.configuration.host)

    @cached_property
    def _kueue(self) -> str | None:
        """The version of Kueue's API that this cluster prefers, or None without Kueue."""
        from kubernetes import client

        with self._explained():
            groups = client.ApisApi(self._client).get_api_versions(**self._limits).groups
        return next((group.preferred_version.version for group in groups if group.name == KUEUE), None)

    def _get(self, plural: str, name: str) -> dict[str, Any] | None:
        with self._explained(), self._absent_is_none() as items:
            items.append(self._custom.get_namespaced_custom_object(*RAY, self.namespace, plural, name, **self._limits))
        return items[0] if items else None

    @property
    def _limits(self) -> dict[str, Any]:
        return {"_request_timeout": (CONNECT_SECONDS, ANSWER_SECONDS)}

    @cached_property
    def _client(self) -> Any:
        return _connect(self.target)

    @cached_property
    def _custom(self) -> Any:
        from kubernetes import client

        return client.CustomObjectsApi(self._client)

    @cached_property
    def _core(self) -> Any:
        from kubernetes import client

        return client.CoreV1Api(self._client)

    @contextmanager
    def _absent_is_none(self, *statuses: int) -> Iterator[list[Any]]:
        """Yields a list for the result, which is empty when there is no such object."""
        from kubernetes.client.exceptions import ApiException

        items: list[Any] = []
        try:
            yield items
        except ApiException as error:
            if error.status not in (statuses or (404,)) or _missing_kind(error):
                raise
            items.clear()

    @contextmanager
    def _forbidden_is_none(self) -> Iterator[list[Any]]:
        """Yields a list for the result, which stays empty where the user may not list such objects."""
        from kubernetes.client.exceptions import ApiException

        try:
            yield []
        except ApiException as error:
            if error.status != 403:
                raise

    @contextmanager
    def _explained(self, taken_name: str | None = None) -> Iterator[None]:
        """Turn errors of the connection and of the server into one line. taken: the name that a 409 is about."""
        import urllib3
        from kubernetes.client.exceptions import ApiException

        try:
            yield
        except ApiException as error:
            if error.status == 409 and taken_name:
                raise AlreadySubmitted(
                    f"{taken_name}: there already, in namespace {self.namespace}; nothing was sent"
                ) from None
            raise InputError(self._line(error)) from None
        except urllib3.exceptions.HTTPError as error:
            if taken_name and not isinstance(error, urllib3.exceptions.MaxRetryError):
                raise  # the request was sent and may have been carried out
            raise InputError(
                f"{self.host}: the API server cannot be reached ({_reason(error)}); check your network or VPN, and "
                "`context` in the target"
            ) from None

    def _line(self, error: Any) -> str:
        status, message = error.status, _message(error)
        if status == 0:
            return f"{self.host}: no trusted connection to the API server ({message}); {LOG_IN}"
        if status == 401:
            return f"{self.host}: the API server does not accept your credentials; {LOG_IN}"
        if "exceeded quota" in message:
            return f"{self.namespace}: {quota(message)}; wait, ask for less, or ask who runs the cluster for more"
        if status == 403 and (denied := re.search(r'cannot (\w+) resource "([^"]+)"', message)):
            verb, kind = denied.groups()
            if "system:anonymous" in message:
                return f"{self.host}: the API server does not know you; {LOG_IN}"
            return (
                f"{self.namespace}: you may not {verb} {kind} in this namespace; correct `namespace` in the target, or "
                f"ask who runs the cluster for that right"
            )
        if status == 404 and (absent := re.search(r'namespaces "([^"]+)" not found', message)):
            return (
                f"{absent[1]}: no such namespace; correct `namespace` in the target, or "
                f"`kubectl create namespace {absent[1]}`"
            )
        if _missing_kind(error):
            return (
                f"{self.host}: KubeRay is not installed there (no RayJob); install its operator: "
                "`helm install kuberay-operator kuberay/kuberay-operator`"
            )
        if "unknown field" in message:
            fields = ", ".join(dict.fromkeys(re.findall(r'unknown field \\?"([^"\\]+)', message)))
            remedy = "KubeRay 1.6 or later is needed"
            if any(pod.pod_overlay for pod in (self.target.head, *self.target.pools.values())):
                remedy = f"correct `pod_overlay` in the target, or else {remedy}"
            return f"{self.host}: its KubeRay is too old, it does not know {fields}; {remedy}"
        if status >= 500 or status == 429:
            return f"{self.host}: the API server is in trouble ({status} {message}); try again later"
        return f"{self.host}: refused: {message}"


def quota(message: str) -> str:
    """What a quota allows and what was asked, from the server's words."""
    match = re.search(r"exceeded quota: (\S+), requested: (\S+), used: (\S+), limited: (\S+)", message)
    if not match:
        return "quota exceeded: " + message.partition("exceeded quota:")[2].strip()
    name, requested, used, limited = (part.rstrip(",") for part in match.groups())
    return f"quota exceeded: {name} allows {limited}, of which {used} are used and {requested} more were asked for"


def _connect(target: KubernetesTarget) -> Any:
    """A client for the target's context, or for the cluster that this process runs in."""
    import urllib3
    import yaml
    from kubernetes import client, config

    kubeconfig = target.kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config"
    paths = [str(Path(part).expanduser()) for part in kubeconfig.split(os.pathsep) if part]
    settings = client.Configuration()
    if not any(Path(path).exists() for path in paths):
        if target.kubeconfig or target.context or "KUBERNETES_SERVICE_HOST" not in os.environ:
            raise InputError(
                f"{kubeconfig}: no kubeconfig there; name yours as `kubeconfig` in the target, or get one "
                "(EKS: `aws eks update-kubeconfig`, GKE: `gcloud container clusters get-credentials`)"
            )
        config.load_incluster_config(client_configuration=settings)
    else:
        try:
            contexts = [item["name"] for item in config.list_kube_config_contexts(os.pathsep.join(paths))[0]]
            if target.context and target.context not in contexts:
                raise InputError(
                    f"{target.context}: no such context in {kubeconfig}"
                    f"{nearest(target.context, contexts) or '; there are ' + ', '.join(contexts)}"
                )
            config.load_kube_config(
                os.pathsep.join(paths), target.context, client_configuration=settings, persist_config=False
            )
        except (config.ConfigException, yaml.YAMLError, TypeError, AttributeError) as error:
            raise InputError(
                f"{kubeconfig}: no usable kubeconfig ({brief(str(error))}); make one, or name another as `kubeconfig`"
            ) from None
    settings.retries = urllib3.Retry(total=2, connect=2, read=1, redirect=0, status=0, backoff_factor=0.2)
    return client.ApiClient(settings)


def _message(error: Any) -> str:
    try:
        return brief(str(json.loads(error.body)["message"]))
    except (TypeError, ValueError, KeyError):
        return brief(str(error.body or error.reason or ""))


def _missing_kind(error: Any) -> bool:
    """Whether the server does not know RayJobs at all, rather than this one."""
    message = _message(error)
    return error.status == 404 and ("could not find the requested resource" in message or "page not found" in message)


def _reason(error: Any) -> str:
    reason = getattr(error, "reason", None) or error
    text = brief(str(reason))
    for words in ("Connection refused", "timed out", "Name or service not known", "certificate verify failed"):
        if words.lower() in text.lower():
            return words
    return text.rsplit(": ", 1)[-1]
