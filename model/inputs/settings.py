"""Settings of the command line, `--set section.key=value`, and putting values over others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from model.inputs.errors import InputError
from model.inputs.yaml_files import parse_yaml


def parse_settings(settings: Sequence[str], example: str = "section.key=value") -> dict[str, Any]:
    """Nested values of "section.key=value" texts, each value in YAML; a later one stands over an earlier one.

    Raises InputError for a text of another form; `example` shows the right one.
    """
    nested: dict[str, Any] = {}
    for setting in settings:
        key, sign, text = setting.partition("=")
        if not sign or not all(key.split(".")):
            raise InputError(f"--set {setting}: write {example}")
        try:
            value = parse_yaml(text, key)
        except InputError:
            raise InputError(f"--set {setting}: {text!r} is no YAML value; quote it") from None
        *sections, last = key.split(".")
        place = nested
        for section in sections:
            below = place.get(section)
            place[section] = place = below if isinstance(below, dict) else {}
        place[last] = value
    return nested


def override(below: Mapping[str, Any], above: Mapping[str, Any], whole: Sequence[str] = ()) -> dict[str, Any]:
    """Nested values with others put over them; None removes an entry.

    whole: keys whose mappings are replaced as a whole and not merged.
    """
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping) and key not in whole:
            merged[key] = override(merged[key], value, whole)
        elif value is None:
            merged.pop(key, None)
        else:
            merged[key] = value
    return merged
