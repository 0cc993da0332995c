"""A dataset or run that cannot be shown takes no other down."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from labeling.dataset import Dataset
from pipelines.dashboard.definitions import build_definitions
from pipelines.dashboard.snapshots import refresh
from pipelines.dashboard.tracked_assets import state_folder, track, tracked_assets
from training.config import load_config


def label(**parameters: Any) -> dict[str, Any]:
    return {"labeler": "own", "version": 1, "parameters": parameters, "weights": "", "reads": ["images.image"]}


@pytest.mark.parametrize(
    ("groups", "reason"),
    [
        ({"a b": label()}, "not a valid name in Dagster"),
        ({"é": label()}, "not a valid name in Dagster"),
        ({"latents-64": label(), "latents_64": label()}, "KeyError"),
        ({"own": {**label(), "parameters": [1]}}, "AttributeError"),
    ],
)
def test_dataset_that_dagster_refuses_is_shown_with_the_reason(
    own_data: None, pictures_dataset: Path, tmp_path: Path, groups: dict[str, Any], reason: str
) -> None:
    broken = Dataset.open(shutil.copytree(pictures_dataset, tmp_path / "broken"))
    for group, declared in groups.items():
        broken.declare(group, declared)
    config = load_config("debug", {"mixture": {"pictures": {"dataset": broken.uri}, "views": None}})
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    track([("dataset", str(pictures_dataset)), ("dataset", broken.uri), ("run", str(tmp_path / "run"))])
    refresh()
    graph = build_definitions().get_repository_def().asset_graph
    keys = {key.to_user_string() for key in graph.get_all_asset_keys()}
    assert {"pictures_dataset/text", "run/checkpoints"} <= keys
    assert [key for key in keys if key.startswith("broken")] == ["broken"]
    node = graph.get(dg.AssetKey(["broken"]))
    assert reason in str(node.description) and "[Jobs on broken](/submissions/broken)" in str(node.description)


def test_state_of_another_version_does_not_prevent_start(
    own_data: None, pictures_dataset: Path, tmp_path: Path
) -> None:
    config = load_config("debug", {"mixture": {"pictures": {"dataset": str(pictures_dataset)}, "views": None}})
    (tmp_path / "run").mkdir()
    file = tmp_path / "run" / "config.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    track([("dataset", str(pictures_dataset)), ("run", str(tmp_path / "run"))])
    refresh()
    snapshot_file = state_folder() / "snapshots" / "run.json"
    snapshot = json.loads(snapshot_file.read_text())
    snapshot["config"]["of_another_version"] = 1
    snapshot_file.write_text(json.dumps(snapshot))
    known = tracked_assets()
    values = json.loads((state_folder() / "places.json").read_text())
    (state_folder() / "places.json").write_text(json.dumps([{**one, "of_another_version": 1} for one in values]))
    assert tracked_assets() == known
    graph = build_definitions().get_repository_def().asset_graph
    assert "no key 'of_another_version'" in str(graph.get(dg.AssetKey(["run"])).description)
    assert "Made by" in str(graph.get(dg.AssetKey(["pictures_dataset", "text"])).description)
