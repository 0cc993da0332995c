"""A stand-in for a Kubernetes API server: for transport only.

It speaks the server's HTTP paths, status codes and error bodies on loopback, stores custom objects, and answers with
the pods and events that a test gives it. It runs no operator, no scheduler and no admission but KubeRay's schema
(with `fieldValidation=Strict`) and a quota: what a real cluster would do, the test says.
"""

from __future__ import annotations

import itertools
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jsonpatch
import yaml
from kuberay_schemas import ray_errors

TOKEN = "token-of-the-test"
OBJECT = re.compile(r"/apis/([\w.-]+)/(v\w+)/namespaces/([\w-]+)/(\w+)(?:/([\w.-]+))?")
CORE = re.compile(r"/api/v1/namespaces/([\w-]+)/(pods|events)(?:/([\w.-]+)/log)?")


class ApiServer:
    """Serves until `close`. Everything public is for the test to set or read.

    objects: custom objects by (plural, name); pods, events: as the server would list them; logs: by pod name.
    requests: (method, path, query, body) of all requests. refusals: answers (status, body) instead of the usual one, by
    (method, plural). silent: plurals whose POST is carried out, but never answered. lingering: how many more times a
    deleted object is listed. kuberay, kueue: whether their definitions are installed. quota: where it is set, every new
    object is refused with this text. denied: (verb, resource) that a review of access answers with no.
    """

    def __init__(self, namespaces: tuple[str, ...] = ("default",)) -> None:
        self.namespaces = namespaces
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.pods: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.logs: dict[str, str] = {}
        self.requests: list[tuple[str, str, dict[str, str], Any]] = []
        self.refusals: dict[tuple[str, str], tuple[int, Any]] = {}
        self.silent: set[str] = set()
        self.denied: set[tuple[str, str]] = set()
        self.lingering = 0
        self.kuberay, self.kueue = True, False
        self.quota: str | None = None
        self._uids = itertools.count(1)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"owner": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def kubeconfig(self, path: Path, context: str = "lab", token: str = TOKEN, address: str | None = None) -> str:
        """Write a kubeconfig with one context; its path."""
        values = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": address or self.address}}],
            "users": [{"name": "u", "user": {"token": token}}],
            "contexts": [{"name": context, "context": {"cluster": "c", "user": "u"}}],
            "current-context": context,
        }
        path.write_text(yaml.safe_dump(values))
        return str(path)

    def put(self, plural: str, manifest: dict[str, Any]) -> dict[str, Any]:
        """Store an object as a server does."""
        metadata = {"uid": f"uid-{next(self._uids)}", "creationTimestamp": "2026-01-01T00:00:00Z"}
        stored = {**manifest, "metadata": {**metadata, **manifest["metadata"]}}
        self.objects[plural, stored["metadata"]["name"]] = stored
        return stored

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        """Status and JSON body, or text."""
        if path == "/apis/":
            group = {
                "name": "kueue.x-k8s.io",
                "versions": [{"groupVersion": "kueue.x-k8s.io/v1beta1", "version": "v1beta1"}],
            }
            group["preferredVersion"] = group["versions"][0]
            return 200, {"kind": "APIGroupList", "groups": [group] if self.kueue else []}
        if path == "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews":
            asked = body["spec"]["resourceAttributes"]
            allowed = (asked["verb"], asked["resource"]) not in self.denied
            return 201, {"kind": "SelfSubjectAccessReview", "spec": body["spec"], "status": {"allowed": allowed}}
        if core := CORE.fullmatch(path):
            return self._core(*core.groups(), query)
        match = OBJECT.fullmatch(path)
        if not match:
            return 404, "404 page not found\n"
        group, _, namespace, plural, name = match.groups()
        if (method, plural) in self.refusals:
            status, message = self.refusals[method, plural]
            return status, message if isinstance(message, dict) else _status(status, "Refused", message)
        if not (self.kuberay if group == "ray.io" else self.kueue):
            return 404, "404 page not found\n"
        if method == "POST":
            return self._create(namespace, plural, body, query)
        if name is None:
            return 200, {"items": [value for (kind, _), value in self.objects.items() if kind == plural]}
        stored = self.objects.get((plural, name))
        if stored is None:
            return 404, _status(404, "NotFound", f'{plural}.{group} "{name}" not found')
        if method == "PATCH":
            self.objects[plural, name] = stored = jsonpatch.apply_patch(stored, body)
        if method == "DELETE" or "deletionTimestamp" in stored["metadata"]:
            stored["metadata"]["deletionTimestamp"] = "2026-01-01T00:01:00Z"
            self.lingering -= 1
            if self.lingering < 0:
                del self.objects[plural, name]
        return 200, stored

    def _create(self, namespace: str, plural: str, body: dict[str, Any], query: dict[str, str]) -> tuple[int, Any]:
        name = body["metadata"]["name"]
        if namespace not in self.namespaces:
            return 404, _status(404, "NotFound", f'namespaces "{namespace}" not found')
        if self.quota:
            message = f'{plural}.ray.io "{name}" is forbidden: exceeded quota: {self.quota}'
            return 403, _status(403, "Forbidden", message)
        if (plural, name) in self.objects:
            return 409, _status(409, "AlreadyExists", f'{plural}.ray.io "{name}" already exists')
        if query.get("fieldValidation") == "Strict" and (errors := ray_errors(body)):
            return 400, _status(400, "BadRequest", f"strict decoding error: {errors[0]}")
        return 201, self.put(plural, body)

    def _core(self, namespace: str, kind: str, pod: str | None, query: dict[str, str]) -> tuple[int, Any]:
        if ("GET", kind) in self.refusals:
            status, message = self.refusals["GET", kind]
            return status, _status(status, "Forbidden", message)
        if pod is not None:
            if pod in self.logs:
                return 200, self.logs[pod]
            return 400, _status(400, "BadRequest", f'container "ray-head" in pod "{pod}" is waiting to start')
        if kind == "events":
            return 200, {"kind": "EventList", "apiVersion": "v1", "items": self.events}
        label, _, value = query["labelSelector"].partition("=")
        items = [item for item in self.pods if item["metadata"]["labels"].get(label) == value]
        return 200, {"kind": "PodList", "apiVersion": "v1", "items": items}


class _Handler(BaseHTTPRequestHandler):
    owner: ApiServer
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        self.owner.requests.append((self.command, parts.path, query, body))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._send(401, _status(401, "Unauthorized", "Unauthorized"))
        status, answer = self.owner.answer(self.command, parts.path, query, body)
        if self.command == "POST" and parts.path.rsplit("/", 1)[-1] in self.owner.silent:
            self.close_connection = True
            return None
        return self._send(status, answer)

    def _send(self, status: int, answer: Any) -> None:
        text = isinstance(answer, str)
        payload = (answer if text else json.dumps(answer)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if text else "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    do_GET = do_POST = do_PATCH = do_DELETE = _serve

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _status(code: int, reason: str, message: str) -> dict[str, Any]:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": message,
    }
