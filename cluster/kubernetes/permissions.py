"""What a user may do in the target's namespace, asked of the API server itself."""

from __future__ import annotations

from cluster.kubernetes.api import ApiServer
from cluster.work import Finding

# (verb, group, resource, subresource): without these nothing can be sent, followed, scaled or stopped.
_NEEDED = (
    *(("create", "ray.io", "rayjobs", ""), ("get", "ray.io", "rayjobs", ""), ("delete", "ray.io", "rayjobs", "")),
    *(("patch", "ray.io", "rayjobs", ""), ("get", "ray.io", "rayclusters", ""), ("patch", "ray.io", "rayclusters", "")),
)
# Without these the reasons why pods wait, and what they printed, cannot be shown.
_WANTED = (("list", "", "pods", ""), ("get", "", "pods", "log"), ("list", "", "events", ""))


def permissions(server: ApiServer) -> list[Finding]:
    """A line for each right that jobs need. Raises InputError where the server does not answer."""
    findings = []
    for verb, group, resource, subresource in (*_NEEDED, *_WANTED):
        name = f"{resource}/{subresource}" if subresource else resource
        allowed = server.may(verb, group, resource, subresource)
        findings.append(
            Finding(
                f"may {verb} {name}",
                f"namespace {server.namespace}",
                allowed,
                "yes" if allowed else "no",
                "" if allowed else f"ask who runs the cluster for {verb} on {name}{f' ({group})' if group else ''}",
            )
        )
    return findings
