"""What is said of a picture, from wherever: values as JSON holds them, and which of them are columns of their own."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pyarrow as pa

TEXT_COLUMNS = ("text", "caption", "captions", "prompt", "description")  # the first of them that says something
_LICENSE_NAMES = ("licence", "license")
BESIDE = ("right", "disparity", "disparity_scale")  # columns of images that come from files that a table names
_MAX_METADATA = 1 << 20  # characters; what is longer is no description of a picture

_LEVELS = 64  # of lists in lists; what is deeper is made to break programs


@dataclass(frozen=True)
class Naming:
    """Which columns of a source hold the picture and its caption, where a user says so; "" for the known names."""

    text: str = ""
    image: str = ""


USUAL = Naming()


@dataclass(frozen=True)
class Described:
    """columns: author, licence, text and metadata of images; kept: columns that are in `metadata` alone."""

    columns: dict[str, str | None]
    kept: frozenset[str]


def describe(facts: Mapping[str, Any], naming: Naming) -> Described:
    """The columns of images that facts of any names and types give."""
    left = {name: value for name, value in facts.items() if value is not None}
    by_name = {name.strip().lower(): name for name in reversed(left)}
    author = _take(left, [by_name.get("author")])
    license_name = _take(left, [by_name.get(name) for name in _LICENSE_NAMES])
    columns = [naming.text] if naming.text else [by_name.get(name) for name in TEXT_COLUMNS]
    text = _take(left, columns)
    metadata = json.dumps(left, ensure_ascii=False, sort_keys=True, separators=(",", ":")) if left else None
    if metadata is not None and len(metadata) > _MAX_METADATA:
        metadata, left = None, {}
    return Described(
        {"author": author, "licence": license_name, "text": text, "metadata": metadata and storable(metadata)},
        frozenset(map(storable, left)),
    )


def _take(left: dict[str, Any], names: Iterable[str | None]) -> str | None:
    """The text of the first column that has one; the column is taken out unless it says more than that."""
    for name in names:
        if name is not None and (text := _as_text(left.get(name))):
            if not isinstance(left[name], list) or len(left[name]) == 1:
                del left[name]
            return text
    return None


def _as_text(value: Any) -> str | None:
    """A value as the text of a column; of a list its first text."""
    if isinstance(value, list):
        return next((text for one in value if (text := _as_text(one))), None)
    if value is None or isinstance(value, Mapping):
        return None
    return storable(str(value).strip()) or None


def storable(text: str) -> str:
    """Drop what UTF-8 cannot hold, which JSON can."""
    return text.encode("utf-8", "replace").decode()


def plain_value(value: Any, levels: int = _LEVELS) -> Any:
    """A value as JSON holds it; None for bytes, for numbers that are none, and for what lies deeper than `levels`."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain_value(one, levels - 1) for key, one in value.items()} if levels else None
    if isinstance(value, list | tuple):
        return [plain_value(one, levels - 1) for one in value] if levels else None
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, Decimal | datetime.timedelta):
        return str(value)
    return None


def rows_of(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """The rows of a batch as Python values; what Python cannot hold, as a date after the year 9999, is a text or None.

    A column beside a picture may hold anything, and must not cost the picture.
    """
    try:
        return list(batch.to_pylist())
    except Exception:  # also of other packages, as for a time zone that pytz does not know
        names = batch.schema.names
        columns = [[_value_of(value) for value in column] for column in batch.columns]
        return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _value_of(value: pa.Scalar) -> Any:
    with suppress(Exception):
        return value.as_py()
    if isinstance(value, pa.StringScalar | pa.LargeStringScalar):  # that is not UTF-8
        with suppress(Exception):
            return value.as_buffer().to_pybytes().decode("utf-8", "replace")
    for kind in (pa.string(), pa.int64()):
        with suppress(Exception):
            return str(value.cast(kind).as_py())
    return None


NOTHING = describe({}, USUAL)  # of a picture of which nothing is said
