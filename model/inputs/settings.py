"""Settings of the command line, as `--set section.key=value`, and putting values over others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from model.inputs.errors import InputError, one_line
from model.inputs.yaml_files import parse_yaml


def parse_settings(
    settings: Sequence[str], example: str = "section.key=value", option: str = "--set"
) -> list[dict[str, Any]]:
    """Nested values of each "section.key=value" text, its value in YAML, to be put over each other in this order.

    Raises InputError for a text of another form; `example` shows the right one, `option` is where the texts are given.
    """
    return [_parse_setting(setting, example, option) for setting in settings]


def parse_by_name(settings: Sequence[str], example: str, option: str) -> dict[str, dict[str, Any]]:
    """Values by name and key, of "NAME.KEY=VALUE" texts; the last of one key counts. Raises InputError."""
    by_name: dict[str, dict[str, Any]] = {}
    for layer in parse_settings(settings, example, option):
        for name, values in layer.items():
            if not isinstance(values, dict):
                raise InputError(f"{option} {name}: write {example}")
            by_name.setdefault(name, {}).update(values)
    return by_name


def _parse_setting(setting: str, example: str, option: str) -> dict[str, Any]:
    key, sign, text = setting.partition("=")
    if not sign or not all(key.split(".")):
        raise InputError(f"{option} {one_line(setting)}: write {example}")
    try:
        nested = parse_yaml(text, key)
    except InputError:
        raise InputError(f"{option} {one_line(setting)}: {text!r} is no YAML value; quote it") from None
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
