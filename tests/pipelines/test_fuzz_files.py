"""Files that people write, and --set, with any values: each is taken with finite numbers, or refused in one line.

FUZZ_EXAMPLES sets how many of each kind are tried; the suite tries few.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from fuzzing import LIGHT, NO_PATHS, told
from hypothesis import given
from hypothesis import strategies as st

from cluster.target import load_target, parse_target
from labeling.dataset import open_store
from model.inputs.settings import parse_settings
from model.inputs.yaml_files import parse_yaml
from pipelines.jobs.specification import load_specification, parse_specification
from training.config import load_config, parse_config

ODD = "../../etc|12:00:00|1:4|010|no|.inf|-.INF|.nan|5e-4|0x1f|1_000|~||<<|*a|&a b|!!python/object:a|{|[1, 2|a: b: c"
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(ODD.split("|")),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=4,
)
FILES: dict[str, tuple[Any, Any]] = {
    "training": (lambda: load_config("debug").model_dump(mode="json"), parse_config),
    **{
        f"job {name}": (lambda name=name: load_specification(name).model_dump(mode="json"), parse_specification)
        for name in ("label", "train", "views")
    },
    **{
        f"target {name}": (lambda name=name: load_target(name).model_dump(mode="json"), parse_target)
        for name in ("local", "ray", "kubernetes", "slurm")
    },
}


def places(values: Any, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Each key of nested values, with the keys above it."""
    if not isinstance(values, dict):
        return []
    return [place for key, value in values.items() for place in [(*prefix, key), *places(value, (*prefix, key))]]


def put(values: Any, place: tuple[str, ...], value: Any) -> Any:
    if not place:
        return value
    return {**values, place[0]: put(values.get(place[0], {}), place[1:], value)}


def numbers(values: Any) -> list[float]:
    if isinstance(values, dict):
        return [number for value in values.values() for number in numbers(value)]
    if isinstance(values, list | tuple):
        return [number for value in values for number in numbers(value)]
    return [values] if isinstance(values, float) else []


@pytest.mark.parametrize("kind", list(FILES))
@LIGHT
@given(data=st.data())
def test_any_value_at_any_key_is_taken_or_refused(kind: str, data: Any) -> None:
    read, parse = FILES[kind]
    values = read()
    place = data.draw(st.sampled_from(places(values)))
    changed = put(values, place, data.draw(VALUES))
    found = told(lambda: parse(changed, "file.yaml"))
    if found is not None:
        dumped = found.model_dump(mode="json")
        assert all(math.isfinite(number) for number in numbers(dumped))
        assert not (place[-1] == "name" and ("/" in str(dumped.get("name")) or dumped.get("name") in (".", "..")))
        assert told(lambda: parse(dumped, "again.yaml")) == found


@LIGHT
@given(text=st.one_of(st.text(max_size=30), VALUES.map(lambda value: yaml.safe_dump(value))))
def test_any_text_is_a_value_or_refused(text: str) -> None:
    told(lambda: parse_yaml(text, "file.yaml"))


@LIGHT
@given(key=st.one_of(st.text(max_size=8), st.sampled_from(["steps", "optimizer.ema", "name", "a..b"])), text=SCALARS)
def test_any_setting_is_taken_or_refused(key: str, text: Any) -> None:
    told(lambda: parse_settings([f"{key}={text}"]))
    told(lambda: load_config("debug", [f"{key}={text}"]))


@LIGHT
@given(
    name=st.one_of(
        st.text(max_size=9), st.binary(max_size=4), st.integers(), st.sampled_from([*NO_PATHS, "~x", "s3://"])
    )
)
def test_any_name_of_a_file_is_read_or_refused(name: Any) -> None:
    for load in (load_config, load_specification, load_target, open_store):
        told(lambda load=load: load(name))


@LIGHT
@given(content=st.one_of(st.binary(max_size=40), st.text(max_size=20).map(str.encode)))
def test_any_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = Path(tmp_path_factory.getbasetemp()) / "any.yaml"
    path.write_bytes(content)
    for load in (load_config, load_specification, load_target):
        told(lambda load=load: load(str(path)))
