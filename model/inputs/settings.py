"""Settings of the command line, `--set section.key=value`, and putting values over others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from model.inputs.errors import InputError
from model.inputs.yaml_files import parse_yaml


def parse_settings(settings: Sequence[str], example: str = "section.key=value") -> list[dict[str, Any]]:
    """Nested values of each "section.key=value" text, its value in YAML, to be put over each other in this order.

    Raises InputError for a text of another form; `example` shows the right one.
    """
    return [_parse_setting(setting, example) for setting in settings]


def _parse_setting(setting: str, example: str) -> dict[str, Any]:
    key, sign, text = setting.partition("=")
    if not sign or not all(key.split(".")):
        raise InputError(f"--set {setting}: write {example}")
    try:
        nested = parse_yaml(text, key)
    except InputError:
        raise InputError(f"--set {setting}: {text!r} is no YAML value; quote it") from None
    for section in reversed(key.split(".")):
        nested = {section: nested}
    return dict(nested)


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
