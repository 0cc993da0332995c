"""The views job from outside: scenes become sets, each by a task of its own; what was made is not made again."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import trimesh
from commands import onediffusion
from logical_nodes import joined_node
from PIL import Image
from typer.testing import CliRunner

from labeling.dataset import Dataset
from labeling.sources import view_sets
from labeling.sources.scenes.files import SceneFiles
from labeling.sources.view_sets import ViewOptions, view_options
from model.inputs import InputError, WorkFailed
from pipelines.cli.app import app
from pipelines.ingest_job.workers import Workers
from pipelines.views import ViewsResult, views

OPTIONS = ViewOptions(count=2, size=40)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks run in this process, one after another."""

    map_anywhere = Workers.map

    def map_here(self: Workers, function: Any, calls: Any, on_cluster: bool, then: Any, **_: Any) -> Any:
        return map_anywhere(self, function, calls, False, then=then)

    monkeypatch.setattr(Workers, "map", map_here)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three good meshes and a broken one."""
    folder = tmp_path / "source"
    folder.mkdir()
    for index in range(3):
        trimesh.creation.box((1, 1, 1 + index)).export(folder / f"{index}.ply")
    (folder / "broken.glb").write_bytes(b"<html>")
    return folder


def files_of(dataset: Path) -> dict[str, bytes]:
    return {str(path.relative_to(dataset)): path.read_bytes() for path in sorted(dataset.rglob("*.parquet"))}


def test_broken_scene_is_one_rejected_row(source: Path, tmp_path: Path, here: None) -> None:
    assert views(str(source), str(tmp_path / "out"), OPTIONS) == ViewsResult(3, 3, 1, 0)
    dataset = Dataset.open(tmp_path / "out")
    (refused,) = dataset.rows("rejected")
    assert refused["source"] == "broken.glb" and "cannot be read as a mesh" in refused["reason"]
    assert [kind for row in dataset.rows("cameras", ["kind"]) for kind in row.values()] == ["mesh"] * 3
    assert not list((tmp_path / "out" / "scenes").rglob("*.parquet")), "parts go when their shard is there"


def test_job_that_was_killed_goes_on_to_the_same_bytes(
    source: Path, tmp_path: Path, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    views(str(source), str(tmp_path / "whole"), OPTIONS)
    made: list[str] = []
    make_row = view_sets.make_row

    def some(source: Any, scene: Any, options: ViewOptions) -> dict[str, Any]:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(scene.name)
        return make_row(source, scene, options)

    monkeypatch.setattr(view_sets, "make_row", some)
    with pytest.raises(KeyboardInterrupt):
        views(str(source), str(tmp_path / "killed"), OPTIONS)
    assert not (tmp_path / "killed" / "dataset.json").exists()
    first = list(made)
    monkeypatch.setattr(
        view_sets, "make_row", lambda *arguments: made.append(arguments[1].name) or make_row(*arguments)
    )
    views(str(source), str(tmp_path / "killed"), OPTIONS)
    assert made == [*first, "2.ply", "broken.glb"], "scenes that were made are not made again"
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


def test_only_scenes_that_changed_are_made_again(
    source: Path, tmp_path: Path, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    views(str(source), str(out), OPTIONS)
    before = files_of(out)
    monkeypatch.setattr(view_sets, "content_digest", lambda *_: pytest.fail("the listing says that nothing changed"))
    assert views(str(source), str(out), OPTIONS).added == 0
    monkeypatch.undo()
    shutil.rmtree(out / "scenes")  # as datasets of before are
    (source / "0.ply").touch()
    monkeypatch.setattr(view_sets, "make_row", lambda *_: pytest.fail("bytes say that nothing changed"))
    assert views(str(source), str(out), OPTIONS).added == 0
    assert files_of(out) == before


def test_scenes_that_are_made_at_once_have_one_writer_of_their_shard(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two writers would take each other's temporary file away."""
    together, written = Barrier(4), list[str]()
    write_shard, write_rows = view_sets.write_shard, view_sets.write_rows

    def write_together(store: Any, group: str, *arguments: Any) -> Any:
        footer = write_shard(store, group, *arguments)
        if "/parts/" in group:
            together.wait(60)
        return footer

    def write_noted(dataset: Dataset, shard: str, *arguments: Any) -> None:
        written.append(shard)
        write_rows(dataset, shard, *arguments)

    def map_at_once(self: Workers, function: Any, calls: Any, then: Any, **_: Any) -> Any:
        with ThreadPoolExecutor(4) as pool:
            for made in list(pool.map(lambda call: function(*call), calls)):
                yield made
                yield from [function(*call) for call in then(made)]

    monkeypatch.setattr(view_sets, "write_shard", write_together)
    monkeypatch.setattr(view_sets, "write_rows", write_noted)
    monkeypatch.setattr(Workers, "map", map_at_once)
    assert views(str(source), str(tmp_path / "out"), OPTIONS) == ViewsResult(3, 3, 1, 0)
    assert written == ["000000"]


def test_process_that_dies_of_a_scene_costs_that_scene(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def map_dying(self: Workers, function: Any, calls: Any, lost: Any, then: Any, **_: Any) -> Any:
        for call in calls:
            yield (made := lost(call, "it died") if call[3] == 1 else function(*call))
            yield from [function(*call) for call in then(made)]

    monkeypatch.setattr(Workers, "map", map_dying)
    assert views(str(source), str(tmp_path / "out"), OPTIONS).rejected == 2
    reasons = {row["source"]: row["reason"] for row in Dataset.open(tmp_path / "out").rows("rejected")}
    assert reasons["1.ply"] == "makes no views, its process ended (it died)"


def test_refused_credentials_end_the_job_and_reject_nothing(
    source: Path, tmp_path: Path, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing:
        gap = 1

        def read(self, name: str) -> bytes:
            raise InputError(f"{name}: S3 refused these credentials")

    monkeypatch.setattr(view_sets, "SceneFiles", lambda store: SceneFiles(Refusing()))  # type: ignore[arg-type]

    with pytest.raises(WorkFailed, match="refused these credentials"):
        views(str(source), str(tmp_path / "out"), OPTIONS)
    assert not list((tmp_path / "out").rglob("*.parquet"))


def test_command_line_says_what_became_of_scenes_and_refuses_what_is_none(tmp_path: Path) -> None:
    folder = tmp_path / "capture"
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(4):
        shape = (48, 32) if index == 3 else (32, 48)
        Image.fromarray(random.integers(0, 255, (*shape, 3), np.uint8)).save(folder / f"{index}.png")
    frames = [
        {
            "file_path": f"{index}",
            "transform_matrix": np.eye(4).tolist(),
            "w": 48 - 16 * (index == 3),
            "h": 32 + 16 * (index == 3),
        }
        for index in range(4)
    ]
    (folder / "transforms_train.json").write_text(json.dumps({"camera_angle_x": 0.8, "frames": frames}))
    done = onediffusion("views", folder, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert re.search(r"1 sets written; 1 sets in .*; 1 pictures are no views", done.stdout.replace("\n", ""))
    with pytest.raises(InputError, match="--path spiral: there are orbit, turntable, random"):
        view_options(2, 40, 0, "spiral", "OPENCV")
    refused = onediffusion("views", folder, tmp_path / "o", "--lens", "OPENCVV")
    assert refused.returncode == 2 and "did you mean 'OPENCV'?" in refused.stderr
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no mesh .*, file of cameras or photographs there"):
        views(str(tmp_path / "empty"), str(tmp_path / "o"))


def test_scenes_hold_gpus_and_the_writing_of_a_shard_does_not(
    ray_cluster: None, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines import views as job

    make, notes = job._make, tmp_path / "notes"

    def noting(*arguments: Any) -> Any:
        import ray

        gpus = ray.get_runtime_context().get_accelerator_ids()["GPU"]
        with notes.open("a") as file:
            file.write(f"{'shard' if arguments[3] is None else 'scene'}, GPUs: {len(gpus)}\n")
        return make(*arguments)

    monkeypatch.setattr(job, "_make", noting)
    with joined_node(cpus=1, gpus=1):
        command = ["views", str(source), str(tmp_path / "out"), "--count", "2", "--size", "40", "--gpus", "1"]
        result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert Counter(notes.read_text().splitlines()) == {"scene, GPUs: 1": 4, "shard, GPUs: 0": 1}
