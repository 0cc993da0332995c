"""Values that people wrote → typed values, with the first thing that is wrong said in one line."""

from __future__ import annotations

import math
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator
from pydantic.fields import FieldInfo

from model.inputs.errors import InputError, nearest

T = TypeVar("T")
_KINDS = re.compile(r"(constrained-)?(int|float|str|bool)")


class Section(BaseModel):
    """A part of a file that people write.

    A key it does not have is refused, and so are numbers that are not finite, and true or false for a number.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _have_no_truth(cls, values: Any) -> Any:
        for name, value in values.items() if isinstance(values, dict) else ():
            field = cls.model_fields.get(name) if isinstance(name, str) else None
            if field is not None and bool not in _kinds(field.annotation) and _holds_truth(value):
                raise ValueError(f"{name}: true and false are no numbers and no texts")
        return values


def _kinds(annotation: Any) -> set[Any]:
    """The types within a type; bool stands for any, and for a model, whose fields are looked at by themselves."""
    if annotation is Any or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return {bool}
    parts = typing.get_args(annotation)
    return {annotation} if not parts else {kind for part in parts for kind in _kinds(part)}


def _holds_truth(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_truth, value.values()))
    return any(map(_holds_truth, value)) if isinstance(value, list | tuple) else isinstance(value, bool)


def split_range(value: Any) -> Any:
    """(3, 8) of the text "3:8", as files and the command line write all ranges; any other value as it is."""
    numbers = value.split(":") if isinstance(value, str) else []
    if len(numbers) == 2 and all(number.isdecimal() for number in numbers):
        return int(numbers[0]), int(numbers[1])
    return value


def validate(schema: type[T], values: Mapping[str, Any], origin: str) -> T:
    """The typed value that nested values state; `origin` is where they came from.

    schema: a model, or a union of models with a discriminator. Raises InputError with the first thing that is wrong:
    an unknown key with the nearest right one, a missing key, or a wrong value.
    """
    try:
        value = TypeAdapter(schema).validate_python(dict(values))
    except ValidationError as error:
        raise InputError(f"{origin}: {_explain(error, schema)}") from None
    if endless := _endless(values):  # within values of any kind, which no model looks at
        where, number = endless
        raise InputError(f"{origin}: {where}: give a finite number, got {number!r}")
    return value


def _endless(value: Any, where: str = "") -> tuple[str, float] | None:
    """Where the first number that is not finite stands, and that number."""
    if isinstance(value, float) and not math.isfinite(value):
        return where, value
    parts: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        parts = value.items()
    elif isinstance(value, list | tuple):
        parts = enumerate(value)
    found = (_endless(part, f"{where}.{key}" if where else str(key)) for key, part in parts)
    return next(filter(None, found), None)


def _explain(error: ValidationError, schema: Any) -> str:
    problem = error.errors()[0]
    # A union's tag stands in the location where the union does; people did not write it there.
    models, keys = _walk(schema, problem["loc"])
    where = ".".join(str(key) for key in keys)
    kind, context = problem["type"], problem.get("ctx", {})
    if kind.startswith("union_tag"):
        name, known = context["discriminator"].strip("'"), context.get("expected_tags", _tags(models)).replace("'", "")
        within = f"{where}.{name}" if where else name
        if kind == "union_tag_invalid":
            return f"`{within}` is one of {known}, not {context['tag']!r}"
        return f"`{within}` is missing; it is one of {known}"
    if kind == "extra_forbidden":
        names = [field.alias or name for model in models for name, field in model.model_fields.items()]
        return f"no key {where!r}{nearest(str(keys[-1]), names) or '; there are ' + (', '.join(names) or 'none')}"
    if kind == "missing":
        return f"key {where!r} is missing"
    if len(keys) > 1 and _KINDS.fullmatch(str(keys[-1])):  # pydantic's word for one of several types of a value
        where = ".".join(str(key) for key in keys[:-1])
    # A value that was refused as a secret must not be printed.
    printable = isinstance(problem["input"], str | int | float | bool) and "looks like a secret" not in problem["msg"]
    shown = f", got {problem['input']!r}" if printable else ""
    if keys[-1:] == ["[key]"]:  # pydantic's mark of a key of a mapping that is wrong itself
        where = ".".join(str(key) for key in keys[:-2]) + ": the name"
    return f"{where + ': ' if where else ''}{problem['msg'].removeprefix('Value error, ')}{shown}"


def _walk(schema: Any, location: Sequence[int | str]) -> tuple[list[type[BaseModel]], list[int | str]]:
    """The models that may hold the last key of a location, and the location without tags of unions."""
    choices, keys = _models(schema), []
    rest = list(location)
    while rest:
        part = rest.pop(0)
        tagged = [model for model in choices if part in _tags_of(model)]
        if len(choices) > 1 and tagged:
            choices = tagged
            continue
        keys.append(part)
        if not rest:
            break
        if isinstance(part, str):
            fields = [model.model_fields[part] for model in choices if part in model.model_fields]
            choices = [model for field in fields for model in _models(field.annotation)] or choices
    return choices, keys


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models within a type: of a union's members, a list's items, a mapping's values."""
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return [annotation] if issubclass(annotation, BaseModel) else []
    parts = [annotation.annotation] if isinstance(annotation, FieldInfo) else typing.get_args(annotation)
    if isinstance(annotation, types.UnionType) or parts:
        return [model for part in parts for model in _models(part)]
    return []


def _tags_of(model: type[BaseModel]) -> list[Any]:
    """Values of a model's fields of one literal: a union's tags are among them."""
    return [
        value
        for field in model.model_fields.values()
        if typing.get_origin(field.annotation) is typing.Literal
        for value in typing.get_args(field.annotation)
    ]


def _tags(models: Sequence[type[BaseModel]]) -> str:
    return ", ".join(str(tag) for model in models for tag in _tags_of(model)[:1])
