"""View sets from meshes and transforms.json."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from PIL import Image

from labeling.dataset import Dataset, ShardInfo
from labeling.sources.scenes.discovery import find_scenes, kind_of
from labeling.sources.source import Source
from labeling.sources.view_sets import ViewOptions, make_row, write_rows
from model.pictures import decode_gray, decode_picture

EYE = np.eye(4).tolist()
OPTIONS = ViewOptions(count=3, size=32, seed=5)


def make(source: Path, target: Path, *files: str) -> Dataset:
    """The dataset with one shard of these files' sets."""
    dataset, found = Dataset(target), find_scenes(Source(str(source)), photographs=False)
    rows = [make_row(Source(str(source)), scene, OPTIONS) for scene in found if scene.name in files]
    write_rows(dataset, "000000", rows, "recipe")
    dataset.describe("sets", [ShardInfo("000000", dataset.footer("images", "000000").rows)], [])
    return dataset


@pytest.fixture
def scene(tmp_path: Path, photographs: Path) -> Path:
    """Two photographs of 450 × 300 and 600 × 400 pixels with a transforms.json, below a source folder."""
    folder = tmp_path / "source" / "scene"
    folder.mkdir(parents=True)
    Image.open(photographs / "chelsea.png").crop((0, 0, 450, 300)).save(folder / "a.png")
    shutil.copy(photographs / "coffee.png", folder / "b.png")
    return folder


def describe(scene: Path, *frames: dict[str, Any], **camera: Any) -> None:
    values = {**camera, "frames": [{"transform_matrix": EYE, **frame} for frame in frames]}
    (scene / "transforms.json").write_text(json.dumps(values))


def test_files_that_make_view_sets() -> None:
    names = ["a.GLB", "folder/b.ply", "c/transforms.json", "transforms_train.json", "d.png", "my-transforms.json"]
    assert [kind_of(name) for name in names] == ["mesh", "mesh", "transforms", "transforms", None, None]
    assert [kind_of(name) for name in ("s/sparse/0/images.bin", "toy/frame_annotations.jgz")] == ["colmap", "co3d"]


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
    np.testing.assert_allclose(first, [[1, 0, 0.5], [0, 1, 0.5 * 300 / 450], [0, 0, 1]], atol=1e-6)
    np.testing.assert_allclose(second, [[1, 0, 0.4], [0, 1, 0.5 * 400 / 600], [0, 0, 1]], atol=1e-6)


@pytest.mark.parametrize(
    ("path", "message"),
    [("c.png", "'c.png' is not there"), ("../../a.png", "outside the source"), ("x.txt", "is not a picture")],
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


def fields(rays: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The levels of a board of black and white fields, in the directions of rays (…, 2)."""
    return 255.0 * ((np.floor((rays[..., 0] + 8) * 5) + np.floor((rays[..., 1] + 8) * 5)) % 2)


def off(picture: np.ndarray[Any, Any], camera: np.ndarray[Any, Any]) -> float:
    """By how many levels a picture differs from what a pinhole (3, 3) sees of the board."""
    height, width = picture.shape[:2]
    y, x = np.mgrid[:height, :width] + 0.5
    rays = (np.stack([x, y], -1) / width - camera[:2, 2]) / camera[[0, 1], [0, 1]]
    return float(np.abs(picture[..., 0] - fields(rays)).mean())


@pytest.mark.parametrize("kind", ["OPENCV", "OPENCV_FISHEYE", "is_fisheye", "unnamed"])
def test_lens_is_undistorted_to_the_pinhole_that_is_stored(kind: str, tmp_path: Path) -> None:
    is_fisheye = "fisheye" in kind.lower()
    k1, k2 = (0.05, 0.01) if is_fisheye else (-0.2, 0.05)

    def bend(rays: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        radius = np.hypot(rays[..., 0], rays[..., 1])[..., None]
        angle = np.arctan(radius)
        if is_fisheye:
            return rays * (angle * (1 + k1 * angle**2 + k2 * angle**4) / np.maximum(radius, 1e-9))
        return rays * (1 + k1 * radius**2 + k2 * radius**4)

    (tmp_path / "source").mkdir()
    rays = np.stack(np.meshgrid(np.linspace(-1.2, 1.2, 1921), np.linspace(-0.9, 0.9, 1441)), -1)
    places = np.floor(bend(rays) * 100 + (64, 48)).astype(int)
    inside = ((places >= 0) & (places < (128, 96))).all(-1)
    board = np.zeros((96, 128, 3), np.uint8)
    board[places[inside][:, 1], places[inside][:, 0]] = fields(rays[inside])[:, None]
    Image.fromarray(board).save(tmp_path / "source" / "a.png")
    Image.fromarray(255 - board).save(tmp_path / "source" / "b.png")
    model = {"is_fisheye": True} if kind == "is_fisheye" else {} if kind == "unnamed" else {"camera_model": kind}
    lens = {"fl_x": 100, "k1": k1, "k2": k2, **model}
    describe(tmp_path / "source", {"file_path": "a.png"}, {"file_path": "b.png"}, **lens)
    dataset = make(tmp_path / "source", tmp_path / "dataset", "transforms.json")
    (row,) = dataset.joined_rows({"images": None, "cameras": None})
    stored = off(decode_picture(row["images.image"][0]), np.array(row["cameras.intrinsics"][0]).reshape(3, 3))
    as_it_was = off(board, np.array([[100, 0, 64], [0, 100, 48], [0, 0, 128]]) / 128)
    assert stored < 15 < 30 < as_it_was, (stored, as_it_was)


@pytest.mark.parametrize(
    ("camera", "reason"),
    [
        ({"camera_model": "EQUIRECTANGULAR"}, "camera model EQUIRECTANGULAR is no pinhole"),
        ({"latlong": True}, "camera model latlong is no pinhole"),
        ({"k4": 0.1}, "k4 and more of a lens that is not named"),
        ({"camera_model": "FISHEYE", "k1": 9.0, "fl_x": 9}, "bends more than a pinhole"),
        ({"k1": 50.0, "k2": -9.0}, "bends more than a pinhole"),
        ({"fl_x": 0}, "a focal length of 0"),
        ({"w": 300, "h": 450}, "the picture is 450 × 300, and its camera is of 300 × 450"),
        ({"transform_matrix": [[float("nan")] * 4] * 4}, "transform_matrix is not 4 × 4 numbers"),
        ({"transform_matrix": [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]}, "no rotation and translation"),
    ],
)
def test_camera_that_no_pinhole_can_show_is_refused(
    camera: dict[str, Any], reason: str, scene: Path, tmp_path: Path
) -> None:
    describe(scene, {"file_path": "a.png", "fl_x": 400, **camera})
    (row,) = make(scene.parent, tmp_path / "dataset", "scene/transforms.json").rows("rejected")
    assert reason in row["reason"]


def test_scenes_as_other_programs_write_them(scene: Path, tmp_path: Path) -> None:
    half = [[2.0, 0, 0, 1], [0, 2, 0, 2], [0, 0, 2, 3]]  # without its last row, and scaled
    (scene / "sub").mkdir()
    shutil.copy(scene / "b.png", scene / "sub" / "b.png")
    describe(scene, {"file_path": "./a"}, {"file_path": "sub\\b.png", "transform_matrix": half}, camera_angle_x=1.0)
    (row,) = make(scene.parent, tmp_path / "dataset", "scene/transforms.json").rows("cameras", ["c2w"])
    np.testing.assert_array_equal(np.reshape(row["c2w"][0], (4, 4)), EYE)
    np.testing.assert_array_equal(np.reshape(row["c2w"][1], (4, 4)), [[1, 0, 0, 1], [0, 1, 0, 2], [0, 0, 1, 3], EYE[3]])


@pytest.mark.parametrize(("frames", "reason"), [([], "its list of frames is empty"), ({"0": {}}, "no list of frames")])
def test_scene_without_frames_makes_no_set(frames: Any, reason: str, scene: Path, tmp_path: Path) -> None:
    (scene / "transforms.json").write_text(json.dumps({"fl_x": 1, "frames": frames}))
    (row,) = make(scene.parent, tmp_path / "dataset", "scene/transforms.json").rows("rejected")
    assert reason in row["reason"]


def test_lens_of_zeros_leaves_the_bytes_as_they_are(scene: Path, tmp_path: Path) -> None:
    describe(scene, {"file_path": "a.png"}, {"file_path": "a.png"}, fl_x=400, camera_model="OPENCV", k1=0.0, p2=0)
    (row,) = make(scene.parent, tmp_path / "dataset", "scene/transforms.json").rows("rejected")
    assert row["reason"] == "all its pictures are the same"
    Image.open(scene / "b.png").resize((450, 300)).save(scene / "c.png")
    describe(scene, {"file_path": "a.png"}, {"file_path": "c.png"}, fl_x=400, camera_model="OPENCV", k1=0.0, p2=0)
    (row,) = make(scene.parent, tmp_path / "again", "scene/transforms.json").rows("images", ["image"])
    assert row["image"] == [(scene / name).read_bytes() for name in ("a.png", "c.png")]
