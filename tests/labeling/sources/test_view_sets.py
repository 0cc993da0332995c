"""View sets from meshes and transforms.json."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

from labeling.dataset import Dataset, ShardInfo
from labeling.sources.source import Source
from labeling.sources.view_sets import SetTask, is_view_set, write_sets
from model.pictures import decode_gray, decode_picture

EYE = np.eye(4).tolist()
PARAMETERS = {"count": 3, "size": 32, "seed": 5}


def make(source: Path, target: Path, *files: str) -> Dataset:
    """The dataset with one shard of these files' sets."""
    dataset = Dataset(target)
    rows = write_sets(SetTask("000000", list(files), "recipe"), Source(str(source)), dataset, PARAMETERS)
    dataset.describe("sets", [ShardInfo("000000", rows)], [])
    return dataset


@pytest.fixture
def scene(tmp_path: Path, photographs: Path) -> Path:
    """Two photographs of 451 × 300 and 600 × 400 pixels with a transforms.json, below a source folder."""
    folder = tmp_path / "source" / "scene"
    folder.mkdir(parents=True)
    shutil.copy(photographs / "chelsea.png", folder / "a.png")
    shutil.copy(photographs / "coffee.png", folder / "b.png")
    return folder


def describe(scene: Path, *frames: dict[str, Any], **camera: Any) -> None:
    values = {**camera, "frames": [{"transform_matrix": EYE, **frame} for frame in frames]}
    (scene / "transforms.json").write_text(json.dumps(values))


def test_files_that_make_view_sets() -> None:
    names = ["a.GLB", "folder/b.ply", "c/transforms.json", "d.png", "my-transforms.json"]
    assert [is_view_set(name) for name in names] == [True, True, True, False, False]


def test_mesh_gives_views_with_cameras_and_depth(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    trimesh.creation.box().export(tmp_path / "source" / "box.ply")
    (tmp_path / "source" / "metadata.csv").write_text("file_name,author\nbox.ply,Ada\n")
    dataset = make(tmp_path / "source", tmp_path / "dataset", "box.ply")
    (row,) = dataset.joined_rows({"images": None, "cameras": None})
    assert row["images.id"] == row["cameras.id"] and row["images.author"] == ["Ada"] * 3
    assert row["images.source"] == ["box.ply/0", "box.ply/1", "box.ply/2"]
    assert [decode_picture(image).shape for image in row["images.image"]] == [(32, 32, 3)] * 3
    nearest = [
        decode_gray(levels).max() * scale
        for levels, scale in zip(row["images.disparity"], row["images.disparity_scale"], strict=True)
    ]
    distances = [np.linalg.norm(np.array(c2w).reshape(4, 4)[:3, 3]) for c2w in row["cameras.c2w"]]
    for inverse, distance in zip(nearest, distances, strict=True):
        assert distance - 1 < 1 / inverse < distance  # the box is scaled to the unit ball around the origin
    assert [len(values) for values in row["cameras.intrinsics"]] == [9] * 3


def test_transforms_give_intrinsics_for_an_image_width_of_1(scene: Path, tmp_path: Path) -> None:
    by_angle = {"file_path": "a.png", "camera_angle_x": 2 * np.arctan(0.5)}
    by_pixels = {"file_path": "./b.png", "fl_x": 1200, "w": 1200, "cx": 480}  # measured at twice the size
    describe(scene, by_angle, by_pixels)
    (row,) = make(scene.parent, tmp_path / "dataset", "scene/transforms.json").rows("cameras", ["intrinsics"])
    first, second = (np.array(values).reshape(3, 3) for values in row["intrinsics"])
    np.testing.assert_allclose(first, [[1, 0, 0.5], [0, 1, 0.5 * 300 / 451], [0, 0, 1]], atol=1e-6)
    np.testing.assert_allclose(second, [[1, 0, 0.4], [0, 1, 0.5 * 400 / 600], [0, 0, 1]], atol=1e-6)


@pytest.mark.parametrize(
    ("path", "message"),
    [("c.png", "'c.png' is not there"), ("../a.png", "outside the source"), ("x.txt", "is not a picture")],
)
def test_broken_frames_are_named(scene: Path, tmp_path: Path, path: str, message: str) -> None:
    (scene / "x.txt").write_text("hello")
    describe(scene, {"file_path": path, "fl_x": 1})
    (row,) = make(scene.parent, tmp_path / "dataset", "scene/transforms.json").rows("rejected")
    assert message in row["reason"] and str(tmp_path) not in row["reason"]


def test_file_without_frames_is_named(scene: Path, tmp_path: Path) -> None:
    (scene / "transforms.json").write_text("[]")
    (row,) = make(scene.parent, tmp_path / "dataset", "scene/transforms.json").rows("rejected")
    assert row["reason"] == "not a transforms.json (no list of frames)"


def test_broken_meshes_cost_no_good_one(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    bad = {
        "empty.obj": "",
        "no-size.obj": "v 1 1 1\nv 1 1 1\nv 1 1 1\nf 1 2 3\n",
        "no-area.obj": "v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n",
        "nan.obj": "v nan 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n",
        "page.glb": "<!DOCTYPE html>",
        "index.obj": "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n",
    }
    for name, text in bad.items():
        (source / name).write_text(text)
    trimesh.creation.box().export(source / "good.ply")
    dataset = make(source, tmp_path / "dataset", *sorted([*bad, "good.ply"]))
    assert [row["source"][0] for row in dataset.rows("images")] == ["good.ply/0"]
    assert {row["source"] for row in dataset.rows("rejected")} == set(bad)
