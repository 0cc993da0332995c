"""Manifests against KubeRay's own schemas, unknown properties refused at every level."""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
from jsonschema import Draft202012Validator

SCHEMAS = Path(__file__).parents[1] / "cluster" / "kuberay"
KUBERNETES = "1.34"


def ray_errors(manifest: dict[str, Any]) -> list[str]:
    """What KubeRay's schema has against a RayJob or RayCluster: "path: message", sorted."""
    errors = _validator(manifest["kind"].lower()).iter_errors(manifest)
    return sorted(f"{'.'.join(str(part) for part in error.absolute_path)}: {error.message}" for error in errors)


def pod_templates(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Every pod template of a RayJob or RayCluster."""
    spec = manifest["spec"].get("rayClusterSpec", manifest["spec"])
    return [group["template"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


def validate_pod(template: dict[str, Any]) -> None:
    """Raises kubernetes_validate.ValidationError when a pod made of this template would be refused."""
    pod = {"apiVersion": "v1", "kind": "Pod", **copy.deepcopy(template)}
    pod["metadata"]["name"] = "pod"
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)


@cache
def _validator(kind: str) -> Draft202012Validator:
    schema = json.loads((SCHEMAS / f"{kind}.json").read_text())
    # A definition does not repeat what every object's metadata may have; that of a pod template does.
    cluster = schema["properties"]["spec"]
    cluster = cluster["properties"].get("rayClusterSpec", cluster)
    embedded = cluster["properties"]["headGroupSpec"]["properties"]["template"]["properties"]["metadata"]
    schema["properties"]["metadata"] = {**embedded, "required": ["name"]}
    _refuse_unknown(schema)
    return Draft202012Validator(schema)


def _refuse_unknown(schema: dict[str, Any]) -> None:
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        return
    if schema.get("nullable"):
        schema["type"] = [schema["type"], "null"]
    if "properties" in schema:
        schema.setdefault("additionalProperties", False)
    for part in (*schema.get("properties", {}).values(), schema.get("items"), schema.get("additionalProperties")):
        if isinstance(part, dict):
            _refuse_unknown(part)
