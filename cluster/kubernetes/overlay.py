"""Putting the fields that a target states of a pod over ours: merged by field, and a collision named."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from model.inputs import InputError
from model.inputs.errors import shown

Manifest = dict[str, Any]

# What tells the items of a list apart; those of other lists are added.
_NAMES = {"volumeMounts": "mountPath", "volumeDevices": "devicePath", "ports": "containerPort", "hostAliases": "ip"}
_WHOLE = ("command", "args")  # lists that say one thing
# Field of a pod → key of the target that states it.
_KEYS = {
    "terminationGracePeriodSeconds": "grace_seconds",
    "serviceAccountName": "service_account",
    "priorityClassName": "priority",
    "hostNetwork": "host_network",
    "image": "image",
    "imagePullPolicy": "pull_policy",
    "cpu": "cpus",
    "memory": "memory",
    "ephemeral-storage": "disk",
    "sizeLimit": "shared_memory",
    "runAsUser": "user",
    "runAsNonRoot": "user",
}


def overlaid(template: Manifest, overlay: Mapping[str, Any], origin: str) -> Manifest:
    """A pod template with an overlay's fields. origin: key of the overlay in the target.

    Raises InputError, naming the field, where both state it and differ.
    """
    return _merged(template, copy.deepcopy(dict(overlay)), origin, "") if overlay else template


def _merged(ours: Any, theirs: Any, path: str, name: str) -> Any:
    if ours == theirs:
        return ours
    if isinstance(ours, dict) and isinstance(theirs, dict):
        merged = dict(ours)
        for key, value in theirs.items():
            merged[key] = _merged(ours[key], value, f"{path}.{key}", key) if key in ours else value
        return merged
    if isinstance(ours, list) and isinstance(theirs, list) and name not in _WHOLE:
        return _merged_lists(ours, theirs, path, _NAMES.get(name, "name"))
    key = _KEYS.get(name)
    remedy = f"; set `{key}` of the target" if key else "; leave it out"
    raise InputError(f"{path}: is {shown(ours)} already, and not {shown(theirs)}{remedy}")


def _merged_lists(ours: list[Any], theirs: list[Any], path: str, key: str) -> list[Any]:
    merged = list(ours)
    places = {item[key]: place for place, item in enumerate(ours) if isinstance(item, dict) and key in item}
    for item in theirs:
        named = item.get(key) if isinstance(item, dict) else None
        if named is not None and named in places:
            place = places[named]
            merged[place] = _merged(merged[place], item, f"{path}.{named}", "")
        elif item not in merged:
            merged.append(item)
    return merged
