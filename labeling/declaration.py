"""What group.json says of a column group: the labeler that fills it, and all that its labels depend on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from labeling.dataset import EARLIER
from labeling.labeler import AddedLater, Labeler
from labeling.registry import is_known

_OURS = "labeling."  # a built-in labeler is found by name: the module that group.json names may have moved since


def declare(labeler: Labeler) -> dict[str, Any]:
    """The content of group.json for a labeler."""
    return {
        "labeler": labeler.name,
        "class": f"{type(labeler).__module__}:{type(labeler).__qualname__}",
        "version": labeler.version,
        "parameters": _declared(labeler.parameters),
        "weights": labeler.weights_digest(),
        "reads": sorted(labeler.needs),
    }


def declared_name(group: str, declaration: Mapping[str, Any] | None) -> str:
    """The name that finds the labeler of a group: the group's own where that is known, else the declared class."""
    declared = str((declaration or {}).get("class", group))
    return group if is_known(group) or declared.startswith(_OURS) else declared


def is_same(one: Mapping[str, Any] | None, other: Mapping[str, Any]) -> bool:
    """Whether two declarations ask for the same labels, wherever the class of a built-in labeler lay at the time."""
    return one is not None and _without_built_in_class(one) == _without_built_in_class(other)


def _declared(parameters: BaseModel) -> dict[str, Any]:
    """The values of parameters, without those that were added later and have their defaults."""
    added = {
        name
        for name, field in type(parameters).model_fields.items()
        if any(isinstance(mark, AddedLater) for mark in field.metadata) and getattr(parameters, name) == field.default
    }
    return parameters.model_dump(mode="json", exclude=added)


def _without_built_in_class(declaration: Mapping[str, Any]) -> dict[str, Any]:
    built_in = str(declaration.get("class", "")).startswith(_OURS)
    left_out = {EARLIER, *(["class"] if built_in else [])}
    return {key: value for key, value in declaration.items() if key not in left_out}
