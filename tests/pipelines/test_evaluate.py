"""What a run has learned: figures beside baselines and samples, by the command, as a job, and as an asset."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dashboard_assets import last_event

from labeling.dataset import Dataset, open_store, write_shard
from model.conditions import CONDITION_READS
from model.inputs import InputError
from model.inputs.yaml_files import parse_yaml, to_yaml
from pipelines.dashboard.definitions import build_definitions
from pipelines.dashboard.run_assets import versions_of
from pipelines.dashboard.snapshots import find_snapshot, refresh
from pipelines.dashboard.tracked_assets import track
from pipelines.evaluate import evaluate
from pipelines.ingest import ingest
from pipelines.jobs.specification import EvaluateJob, WorkersSpec
from pipelines.jobs.status import list_jobs
from pipelines.jobs.steps import evaluate_on_worker
from pipelines.label import label
from pipelines.run_examples import prompts_of, read_rows, read_training_data
from training.config import load_config
from training.plan.manifest import Manifest
from training.plan.mixture import build_manifest
from training.run import run_training
from training.source_config import SourceConfig

pytestmark = pytest.mark.long

TASKS = ["text2image", "edges"]
STORED = Path(__file__).parents[1] / "compatibility" / "dataset"


@pytest.fixture(scope="module")
def trained(ray_cluster: None, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset of four photographs and a run of two steps on their edges, with its first checkpoint."""
    folder = tmp_path_factory.mktemp("evaluated")
    (folder / "source").mkdir()
    for name in ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg"):
        shutil.copy(photographs / name, folder / "source" / name)
    ingest(str(folder / "source"), str(folder / "photographs"))
    label(str(folder / "photographs"), ["edges", "latents-64", "latents-64-edges", "text"], {"text": {"tasks": TASKS}})
    model = {"hidden_size": 24, "depth": 1, "num_heads": 2, "num_kv_heads": 2, "multiple_of": 8}
    settings: dict[str, Any] = {
        "size": 64,
        "steps": 2,
        "batch": 2,
        "mixture": {
            "pictures": {"dataset": str(folder / "photographs"), "tasks": TASKS},
            "views": None,
        },
        "model": model,
        "workers": {"count": 1, "threads": 1},
        "checkpoints": {"every": 2, "first": True},
    }
    run_training(load_config("debug", settings), str(folder / "run"))
    return folder


def test_evaluation_follows_the_newest_checkpoint(trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained / "run", tmp_path / "run")
    lines: list[str] = []
    figures = evaluate(str(run), lines.append)
    edges = figures["image_to_edges_correlation"]
    assert edges["pictures"] == 4
    assert {"model", "step_0", "mean_label", "other_pictures"} <= edges.keys()
    assert lines == []
    records = json.loads((run / "samples" / "samples.json").read_text())
    assert {(record["task"], record["direction"]) for record in records} == {
        ("text2image", "to_image"),
        ("edges", "to_image"),
        ("edges", "from_image"),
    }, "of what it learns"
    assert all((run / "samples" / name).exists() for record in records for name in record["output"])
    assert evaluate(str(run), lines.append) == figures
    assert "there already" in lines[0]
    os.utime(run / "checkpoints" / "step-000002" / "state.json", (1, 1))  # as in a run that was begun again
    one = Dataset.open(trained / "photographs").declaration("edges")
    (trained / "photographs" / "depth").mkdir()  # declared, and its first shard is still being made
    Dataset.open(trained / "photographs").declare("depth", {**one, "labeler": "depth"})
    assert evaluate(str(run), lines.append) == figures
    assert len(lines) == 1
    shutil.rmtree(trained / "photographs" / "depth")
    shutil.rmtree(run / "checkpoints" / "step-000000")
    (run / "evaluation.json").unlink()
    again = evaluate(str(run))["image_to_edges_correlation"]
    assert "step_0" not in again
    assert again["model"] == edges["model"]


def test_every_source_of_the_mixture_is_sampled_for_what_it_serves(trained: Path, tmp_path: Path) -> None:
    """Each for its own tasks, and only the rows for which its condition is true, wherever its dataset is now."""
    run, first = shutil.copytree(trained / "run", tmp_path / "run"), str(trained / "photographs")
    second = shutil.copytree(first, tmp_path / "second")
    mixture: dict[str, dict[str, Any]] = {
        "one": {"dataset": first, "tasks": {"text2image": 1}},
        "again": {"dataset": first, "tasks": {"edges": 1}, "where": "images.source like '%coffee%'"},
        "two": {"dataset": str(second), "tasks": {"edges": 1}, "where": "images.source like '%rocket%'"},
    }
    build_manifest({name: SourceConfig(**one) for name, one in mixture.items()}, 64).write(open_store(run))
    mixture["two"]["dataset"] = str(second.rename(tmp_path / "moved"))
    config = parse_yaml((run / "config.yaml").read_text(), "config")
    (run / "config.yaml").write_text(to_yaml({**config, "mixture": mixture}))
    assert evaluate(str(run))["image_to_edges_correlation"]["pictures"] == 2
    records = json.loads((run / "samples" / "samples.json").read_text())
    sources = {row["images.id"]: row["images.source"] for row in read_rows(Dataset.open(first), [])}
    assert {sources[one["id"]] for one in records if one["task"] == "edges"} == {"coffee.png", "rocket.jpg"}
    assert sum(one["task"] == "text2image" for one in records) == 2
    outputs = [name for record in records for name in record["output"]]
    assert len(outputs) == len(set(outputs)), "no row twice"


def test_rows_for_validation_are_not_what_a_run_learns_from(trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained / "run", tmp_path / "run")
    dataset = Dataset.open(shutil.copytree(trained / "photographs", tmp_path / "photographs"))
    config = parse_yaml((run / "config.yaml").read_text(), "config")
    config["mixture"]["pictures"]["dataset"] = dataset.uri
    config["validation"]["share"] = 0.3
    (run / "config.yaml").write_text(to_yaml(config))
    training, validation = Manifest.read(open_store(run)).split(0.3, config["seed"])
    counts = [max(stream.rows for stream in side.streams) for side in (training, validation)]
    examples = read_training_data(str(run)).examples(64)
    assert 0 < len(examples) == counts[0] == 4 - counts[1]
    shard = dataset.shards[0].name
    table, row_groups = dataset.read("images", shard), dataset.footer("images", shard).row_groups
    write_shard(dataset.store, "images", shard, table.slice(1), [row_groups[0] - 1, *row_groups[1:]], "another")
    assert read_training_data(str(run)).examples(64) == [], "the shard has other rows now"


def test_run_without_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no checkpoint there; make one with `train`"):
        evaluate(str(tmp_path))


def test_worker_larger_than_the_machine_is_refused(trained: Path, ray_cluster: None) -> None:
    job = EvaluateJob(kind="evaluate", run=str(trained / "run"), workers=WorkersSpec(cpus=64))
    with pytest.raises(InputError, match=r"asks for 64 CPUs, and Ray has .*; ask for less"):
        evaluate_on_worker(job)


def test_evaluation_materializes_as_asset(trained: Path, own_data: None, shared_ray: None, tmp_path: Path) -> None:
    run = shutil.copytree(trained / "run", tmp_path / "run")
    track([("dataset", str(trained / "photographs")), ("run", str(run))])
    refresh()
    key = dg.AssetKey(["run", "evaluation"])
    definitions = build_definitions()
    with dg.DagsterInstance.ephemeral() as instance:
        job = definitions.resolve_implicit_global_asset_job_def()
        result = job.execute_in_process(instance=instance, asset_selection=[key], raise_on_error=True)
        assert result.success
        metadata = last_event(instance, "run", "evaluation").metadata
    assert "edges" in str(metadata["figures"].value)
    [(attempt, state)] = list_jobs(str(run))
    assert (attempt.job_id.split("-")[0], state.phase) == ("evaluate", "succeeded")
    evaluation = json.loads(open_store(run).read("evaluation.json"))
    moved = "/moved/run/checkpoints/step-000002"
    for checkpoint, fresh in ((evaluation["checkpoint"], True), (moved, True), ("x/1", False)):
        open_store(run).put("evaluation.json", json.dumps({**evaluation, "checkpoint": checkpoint}).encode())
        [version] = [one for one in versions_of(find_snapshot("run")) if one.key[1] == "evaluation"]
        assert version.fresh is fresh and (version.inputs == version.current) is fresh and version.code
    figure = evaluation["figures"]["image_to_edges_correlation"]["model"]
    assert state.result == {"figures": {"image_to_edges_correlation": figure}}


def test_prompts_are_built_where_none_are_stored(tmp_path: Path) -> None:
    """As a run with `text: online` builds them; stored ones, of one group or one for each task, come first."""
    place = Path(shutil.copytree(STORED, tmp_path / "dataset"))

    def prompts() -> list[dict[str, str]]:
        return [prompts_of(row) for row in read_rows(Dataset.open(place), list(CONDITION_READS))]

    stored = prompts()
    (place / "text").rename(place / "text-edges")
    assert prompts() == stored
    shutil.rmtree(place / "text-edges")
    built = prompts()
    assert stored and all(stored)
    for own, expected in zip(built, stored, strict=True):
        assert own.items() >= {task: prompt for task, prompt in expected.items() if task}.items()
        assert "depth" in own and "identity" not in own
