"""YAML 1.2 in every file that people write: numbers are what they look like, and a text stays one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml

from model.inputs import InputError
from model.inputs.settings import parse_settings
from model.inputs.yaml_files import parse_yaml, to_yaml

VALUES = [
    ("12:00:00", "12:00:00"),
    ("1:4", "1:4"),
    ("010", 10),
    ("0o10", 8),
    ("0x1F", 31),
    ("-7", -7),
    ("5e-4", 5e-4),
    ("5.0e-4", 5e-4),
    ("1_000", "1_000"),
    (".5", 0.5),
    ("1.", 1.0),
    ("no", "no"),
    ("yes", "yes"),
    ("on", "on"),
    ("true", True),
    ("False", False),
    ("~", None),
    ("2026-11-27", "2026-11-27"),
    ("1e", "1e"),
    ("'12'", "12"),
    (".inf", math.inf),
    ("-.Inf", -math.inf),
]


@pytest.mark.parametrize(("text", "value"), VALUES)
def test_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    read = parse_yaml(f"key: {text}", "file")["key"]
    assert read == value and type(read) is type(value)
    assert parse_settings([f"a.b={text}"]) == [{"a": {"b": value}}]


def test_written_files_mean_the_same_to_readers_of_both_versions() -> None:
    values = {str(number): value for number, (_, value) in enumerate(VALUES)} | {"list": [1, "1", "0o7", "y"], "n": {}}
    text = to_yaml(values)
    assert parse_yaml(text, "file") == yaml.safe_load(text) == values


def test_merge_keys_still_work_and_a_key_given_twice_is_refused() -> None:
    text = "a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  y: 3\n"
    assert parse_yaml(text, "file")["b"] == {"x": 1, "y": 3}
    nested = "a: &a {x: 1}\nbase:\n  inner: &b\n    <<: *a\n    x: 2\nc:\n  <<: *b\n"
    assert parse_yaml(nested, "file")["c"] == {"x": 2}
    assert parse_yaml("{1: a, '1': b}", "file") == {1: "a", "1": "b"}
    with pytest.raises(InputError, match=r"file: not YAML: key 'batch' is given twice"):
        parse_yaml("batch: 1\nsteps: 2\nbatch: 3\n", "file")


@pytest.mark.parametrize(
    "text",
    [
        "a: [",
        "a: b: c",
        "x: !!bool foo",
        "key: !!python/object:os.system x",
        "\t",
        "[" * 2000,
        "&a [*a]",
        "a: &a {b: *a}",
        "[" * 60 + "]" * 60,
        "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
        + "\n".join(
            f"{key}: &{key} [{','.join(['*' + below] * 10)}]" for below, key in zip("abcdefg", "bcdefgh", strict=True)
        ),
    ],
)
def test_invalid_yaml_is_one_line(text: str) -> None:
    with pytest.raises(InputError, match=r"^file: not YAML: ") as error:
        parse_yaml(text, "file")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", ["true", "false"])
@pytest.mark.parametrize("key", ["steps", "optimizer.learning_rate", "workers.count", "mixture.pictures.tasks.edges"])
def test_truth_is_no_number(key: str, value: str) -> None:
    from training.config import load_config

    with pytest.raises(InputError, match="true and false are no numbers"):
        load_config("debug", [f"{key}={value}"])
    assert load_config("debug", [f"workers.fsdp={value}"]).workers.fsdp == (value == "true")


def test_names_and_seeds_have_an_end() -> None:
    from training.config import load_config

    for setting, message in ((f"name={'x' * 300}", "give at most 200 bytes"), (f"seed={2**64}", "less than")):
        with pytest.raises(InputError, match=message):
            load_config("debug", [setting])
