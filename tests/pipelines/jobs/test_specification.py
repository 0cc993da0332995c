"""What people write about jobs, and what is made of it: addresses, configurations, ids."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest

from model.inputs import InputError
from pipelines.jobs.resolved import ResolvedJob, resolve_job, stored_job
from pipelines.jobs.specification import TrainJob, WorkersSpec, examples, load_specification, parse_specification


def resolved(**values: Any) -> ResolvedJob:
    return resolve_job(parse_specification(values, "job"))


def label_job(pictures: Path, dataset: str, **more: Any) -> ResolvedJob:
    return resolved(kind="label", source=str(pictures), dataset=dataset, groups=["edges", "boxes"], **more)


def train_job(config: dict[str, Any], run: str) -> ResolvedJob:
    return resolved(kind="train", config="debug", overrides=config, run=run)


def test_examples_are_valid_specifications(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert {load_specification(name).kind for name in examples()} == {
        *("label", "views", "sets", "train", "evaluate", "report")
    }


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"kind": "lable"}, "one of label, views, sets, train, evaluate, report, not 'lable'"),
        ({}, "`kind` is missing"),
        (
            {"kind": "sets", "of": "identity", "sources": ["a"], "dataset": "b", "options": {"distanc": 0.4}},
            "options of identity: no key 'distanc' (did you mean 'distance'?)",
        ),
        ({"kind": "label"}, "'dataset' is missing"),
        ({"kind": "label", "dataset": "d", "grups": []}, "no key 'grups' (did you mean 'groups'?)"),
        ({"kind": "label", "dataset": "d", "workers": {"cpu": 1}}, "no key 'workers.cpu' (did you mean 'cpus'?)"),
        ({"kind": "label", "dataset": "d", "workers": {"count": [4, 1]}}, "give [least, most]"),
        (
            {"kind": "label", "dataset": "d", "resources": {"depth": {"gpuz": 1}}},
            "job.yaml: no key 'resources.depth.gpuz' (did you mean 'gpus'?)",
        ),
        ({"kind": "label", "dataset": "d", "resources": {"depth": {"gpus": "many"}}}, "resources.depth.gpus: "),
        (
            {"kind": "train", "run": "r", "config": "debug", "overrides": {"objective": {"shift": float("inf")}}},
            "job.yaml: overrides.objective.shift: give a finite number, got inf",
        ),
    ],
)
def test_wrong_specification_is_one_line(values: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        parse_specification(values, "job.yaml")


def test_job_id_depends_on_work_and_not_on_scale(pictures: Path, small_config: dict[str, Any]) -> None:
    one = label_job(pictures, "data")
    assert one.id == label_job(pictures, "data", workers={"count": 3}).id
    assert one.id == label_job(pictures, "data", resources={"edges": {"cpus": 2}}).id
    assert one.id != label_job(pictures, "data", parameters={"edges": {"low": 40}}).id
    assert one.id != label_job(pictures, "data", only_errors=True).id
    run = train_job(small_config, "run")
    assert run.id == run.scaled(WorkersSpec(count=2)).id
    with pytest.raises(InputError, match="without a sample"):
        run.scaled(WorkersSpec(count=7))


@pytest.mark.parametrize(
    ("resources", "workers", "asked"),
    [
        ({}, {}, (1.0, 0.0)),
        ({"depth": {"gpus": 1}}, {}, (1.0, 1.0)),
        ({"depth": {"gpus": 1}}, {"cpus": 1, "gpus": 0}, (1.0, 1.0)),
        ({"depth": {"gpus": 0.5, "cpus": 2}}, {"count": [1, 4]}, (2.0, 0.5)),
        ({"depth": {"gpus": 1}, "caption": {"gpus": 1}}, {"count": 2}, (1.0, 1.0)),
        ({"depth": {"batch": 64}}, {"gpus": 1}, (1.0, 1.0)),
        ({"depth": {"gpus": 0.5}}, {"gpus": 1, "cpus": 4}, (4.0, 1.0)),
    ],
)
def test_targets_are_asked_for_what_labelers_need(
    pictures: Path, tmp_path: Path, resources: Any, workers: dict[str, Any], asked: tuple[float, float]
) -> None:
    job = label_job(pictures, str(tmp_path / "data"), resources=resources, workers=workers)
    assert (job.resources.cpus, job.resources.gpus) == asked
    job.folder.put_specification(job.specification)
    assert stored_job(job.address) == job
    assert "resources: {}" in (tmp_path / "data/jobs" / job.id / "job.yaml").read_text() or resources


@pytest.mark.parametrize(
    ("resources", "workers", "words"),
    [
        ({"dpth": {"gpus": 1}}, {}, "resources: unknown labeler 'dpth' (did you mean 'depth'?)"),
        ({"depth": {"gpus": 2}}, {"gpus": 1}, "resources.depth.gpus: 2 for each process, and a worker has 1"),
        ({"depth": {"cpus": 8}}, {"cpus": 2}, "resources.depth.cpus: 8 for each process, and a worker has 2"),
    ],
)
def test_resources_that_no_worker_has_are_one_line(
    pictures: Path, resources: Any, workers: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        label_job(pictures, "data", resources=resources, workers=workers)


def test_overrides_apply_to_preset_and_to_whole_configuration(small_config: dict[str, Any]) -> None:
    whole = train_job(small_config, "run").specification.config
    for config in ("debug", whole):
        values = {"kind": "train", "config": config, "run": "run", "overrides": {**small_config, "seed": 5}}
        assert resolve_job(parse_specification(values, "job")).specification.config["seed"] == 5
    start = resolve_job(
        parse_specification({"kind": "train", "config": {**whole, "initialize": "other"}, "run": "run"}, "job")
    )
    assert str(Path("other").absolute()) in start.specification.data
    named = {"kind": "train", "config": {**whole, "initialize": "someone/OneDiffusion"}, "run": "run"}
    of_hub = resolve_job(parse_specification(named, "job")).specification
    assert of_hub.config["initialize"] == "someone/OneDiffusion" and len(of_hub.data) == 2


def test_report_job_has_the_options_of_the_command(tmp_path: Path) -> None:
    values = {"kind": "report", "of": "runs/mine", "with": "runs/other"}
    job = resolved(**values)
    assert job.specification.data == [str(Path(name).absolute()) for name in ("runs/mine", "runs/other")]
    job.folder.put_specification(job.specification)
    assert stored_job(job.address).specification == job.specification
    others = [{**values, "with": "runs/third"}, {"kind": "report", "of": "runs/mine", "replay_step": 3}]
    assert len({job.id, *(resolved(**other).id for other in others)}) == 3
    with pytest.raises(InputError, match="replay_step shows the samples of one step alone"):
        resolved(**values, replay_step=3)
    with pytest.raises(InputError, match=r"no key 'wiht' \(did you mean 'with'"):
        resolved(kind="report", of="runs/mine", wiht="runs/other")


@pytest.mark.parametrize(
    ("values", "job_id"),
    [
        ({"kind": "label", "dataset": "/data/pictures"}, "label-6e294126"),
        (
            {"kind": "label", "dataset": "s3://lab/pictures", "source": "s3://lab/raw", "groups": ["edges"]}
            | {"parameters": {"edges": {"low": 40}}, "shards": [0, 3], "workers": {"count": [1, 4], "cpus": 2}},
            "label-efa428ae",
        ),
        ({"kind": "views", "source": "/data/meshes", "dataset": "/data/views", "size": 128}, "views-db7033c5"),
        ({"kind": "train", "config": "debug", "run": "s3://lab/runs/mine"}, "train-16dcc3e9"),
        ({"kind": "evaluate", "run": "/runs/mine"}, "evaluate-9d858456"),
        ({"kind": "report", "of": "/runs/mine"}, "report-d7e20caf"),
    ],
)
def test_job_ids_are_those_of_earlier_versions(values: dict[str, Any], job_id: str) -> None:
    """A job that an earlier version sent has its folder under this id."""
    assert resolved(**values).id == job_id


def test_job_stored_by_an_earlier_version_does_the_same(small_config: dict[str, Any]) -> None:
    job = train_job(small_config, "run")
    config = copy.deepcopy(job.specification.config)
    config["held_out"] = config.pop("validation")
    assert config["model"].pop("soft_capping") is None  # as if it were newer than the stored job, with its default
    assert job.does_the_same(job.specification.model_copy(update={"config": config}))
    assert not job.does_the_same(job.specification.model_copy(update={"config": {**config, "seed": 5}}))


def test_stored_job_keeps_its_id_and_resources(tmp_path: Path, small_config: dict[str, Any]) -> None:
    job = train_job({**small_config, "reader": {"processes": 1}}, str(tmp_path / "run"))
    job.folder.put_specification(job.specification)
    assert stored_job(job.address) == job
    assert isinstance(job.specification, TrainJob) and job.resources.cpus > job.specification.workers.cpus
