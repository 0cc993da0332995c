"""What a labeling job gives its labelers: what people write, what is kept of it, what it asks of machines."""

from __future__ import annotations

from typing import Any

import pytest

from labeling.resources import Resources, check_names, merge_resources, needed_gpus, parse_resources
from model.inputs import InputError
from model.inputs.settings import parse_by_name


def given(*settings: str) -> dict[str, Resources]:
    return parse_resources(parse_by_name(settings, "NAME.KEY=VALUE", "--resources"), "--resources")


@pytest.mark.parametrize(
    ("text", "processes"), [("[1, 32]", (1, 32)), ("1:32", (1, 32)), ("4", (4, 4)), ("null", None)]
)
def test_processes_are_a_number_or_a_range(text: str, processes: tuple[int, int] | None) -> None:
    assert given(f"depth.processes={text}")["depth"].processes == processes


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("depth.gpuz=1", r"--resources: no key 'depth.gpuz' \(did you mean 'gpus'\?\)"),
        ("depth.gpus=many", "--resources: depth.gpus: .*'many'"),
        ("depth.gpus=-1", "--resources: depth.gpus: "),
        ("depth.processes=[8, 1]", "processes: 8 to 1; turn them round"),
        ("depth.processes=1:2:3", "depth.processes"),
        ("depth=1", "--resources depth: write NAME.KEY=VALUE"),
        ("depth.gpus", "--resources depth.gpus: write NAME.KEY=VALUE"),
    ],
)
def test_wrong_resources_are_one_line(setting: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        given(setting)


def test_unknown_labelers_are_named_with_the_nearest() -> None:
    some = {"dpth": Resources(gpus=1)}
    with pytest.raises(InputError, match=r"--resources: unknown labeler 'dpth' \(did you mean 'depth'\?\)"):
        check_names(some, ["edges"], "--resources")
    check_names(some, ["nowhere:Dpth"], "--resources")  # a class that only the machines of the job may have
    check_names({"brightness": Resources()}, ["simple_labelers:Brightness"], "--resources")
    check_names({"latents": Resources(), "latents-256-depth": Resources()}, ["latents-256-depth"], "--resources")


def test_recorded_resources_keep_only_given_fields() -> None:
    own = given("depth.gpus=0.5", "depth.batch=64", "depth.processes=1:8")
    recorded: dict[str, Any] = {name: one.model_dump(mode="json") for name, one in own.items()}
    assert recorded == {"depth": {"gpus": 0.5, "batch": 64, "processes": [1, 8]}}
    assert parse_resources(recorded, "job")["depth"].model_fields_set == {"gpus", "batch", "processes"}
    merged = merge_resources(own, given("depth.batch=8", "text.cpus=2"))
    assert merged["depth"] == Resources(gpus=0.5, batch=8, processes=(1, 8))
    assert merged["text"].cpus == 2


@pytest.mark.parametrize(
    ("settings", "machines", "gpus"),
    [
        ([], 1, 0.0),
        (["depth.gpus=0.5"], 1, 0.5),
        (["depth.gpus=0.5", "caption.gpus=0.25"], 1, 0.75),
        (["depth.gpus=1", "caption.gpus=0.5"], 1, 2.0),
        (["depth.gpus=1", "caption.gpus=1"], 2, 1.0),
        (["depth.gpus=1", "depth.processes=4:8"], 2, 2.0),
        (["depth.gpus=2"], 4, 2.0),
    ],
)
def test_machines_have_the_gpus_that_labelers_start_with(settings: list[str], machines: int, gpus: float) -> None:
    assert needed_gpus(given(*settings), machines) == gpus
