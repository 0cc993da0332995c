"""Cameras of photographs from the pictures alone, and folders from which none can be had."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from labeling.dataset import open_store
from labeling.sources.rendering import render_views
from labeling.sources.scenes import photographs as photographs_module
from labeling.sources.scenes.discovery import find_scenes
from labeling.sources.scenes.files import SceneFiles
from labeling.sources.scenes.motion import adjust
from labeling.sources.scenes.photographs import find_cameras
from labeling.sources.scenes.retrieval import pairs_of
from labeling.sources.source import Source
from labeling.sources.view_sets import ViewOptions, make_row
from model.inputs import InputError
from pipelines.demo_data.scene import build_scene

VIEWS, SIZE = 8, 256


@pytest.fixture(scope="module")
def turntable(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> Path:
    """Eight views of the demo's still life, one of them twice, and a picture of something else."""
    folder = tmp_path_factory.mktemp("turntable")
    build_scene(folder / "scene.glb")
    (folder / "pictures").mkdir()
    views = render_views(folder / "scene.glb", 3 * VIEWS, SIZE, 0, "turntable")[:VIEWS]
    for index, view in enumerate(views):
        Image.fromarray(view.image).save(folder / "pictures" / f"{index}.png")
    shutil.copy(folder / "pictures" / "0.png", folder / "pictures" / "again.png")
    Image.open(photographs / "chelsea.png").resize((SIZE, SIZE)).save(folder / "pictures" / "cat.png")
    np.save(folder / "c2w.npy", np.stack([view.c2w for view in views]))
    return folder


def turn_errors(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Degrees by which rotations relative to the first view differ."""
    one, other = (np.einsum("ji,vjk->vik", poses[0, :3, :3], poses[:, :3, :3]) for poses in (found, true))
    cosine = (np.einsum("vij,vij->v", one, other) - 1) / 2
    return np.degrees(np.arccos(cosine.clip(-1, 1)))[1:]


def test_turntable_gives_its_cameras_points_and_what_is_no_view(turntable: Path) -> None:
    source = Source(str(turntable / "pictures"))
    (scene,) = find_scenes(source, photographs=True)
    row = make_row(source, scene, ViewOptions())
    assert row["reason"] is None, row["reason"]
    assert row["source"] == [f"{index}.png" for index in range(VIEWS)]
    assert json.loads(row["left_out"]) == {
        "again.png": "the same picture as 0.png",
        "cat.png": "shows nothing that another picture shows",
    }
    found = np.array(row["c2w"]).reshape(-1, 4, 4)
    assert np.median(turn_errors(found, np.load(turntable / "c2w.npy"))) < 1
    assert row["reprojection"] < 1 and 0.1 < row["overlap"] <= 1 and row["baseline"] > 0.1
    points = np.array(row["points"][0]).reshape(-1, 3)
    assert len(points) > 30 and (points[:, 2] > 0).all() and (points[:, :2] >= 0).all() and (points[:, :2] <= 1).all()
    again = make_row(source, scene, ViewOptions())
    assert (again["c2w"], again["points"]) == (row["c2w"], row["points"]), "the same pictures give the same cameras"


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["chelsea.png", "coffee.png", "rocket.jpg"], "no two of 3 pictures show the same"),
        (["chelsea.png", "chelsea.png", "chelsea.png", "coffee.png"], "2 of 4 pictures to find cameras of"),
        (["chelsea.png"], "1 of 1 pictures"),
    ],
)
def test_folders_without_a_scene_are_refused(names: list[str], reason: str, tmp_path: Path, photographs: Path) -> None:
    for number, name in enumerate(names):
        picture = Image.open(photographs / name)
        picture.resize((160, 120)).save(tmp_path / f"{number}.png")
    with pytest.raises(InputError, match=reason):
        find_cameras(SceneFiles(open_store(str(tmp_path))), sorted(path.name for path in tmp_path.iterdir()))


def test_model_of_a_camera_that_stood_still_is_none() -> None:
    """As of pictures of a board that is moved before it: no two rays of a point differ."""
    import pycolmap

    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_frames_per_rig, options.num_points3D = 1, 4, 60
    model = pycolmap.synthesize_dataset(options)
    assert adjust(model, 1) and model.num_points3D() == 60
    pose = model.images[min(model.images)].cam_from_world()
    for step, image in enumerate(model.images.values()):
        moved = pycolmap.Rigid3d(pose.rotation, pose.translation + 1e-3 * step)
        image.frame.set_cam_from_world(image.camera_id, moved)
        for seen in image.points2D:
            if seen.has_point3D():
                seen.xy = image.project_point(model.points3D[seen.point3D_id].xyz)
    assert not adjust(model, 1)


def test_process_that_dies_of_pictures_is_a_reason(turntable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photographs_module, "COMMAND", ("-c", "import os; os.abort()"))
    files = SceneFiles(open_store(str(turntable / "pictures")))
    with pytest.raises(InputError, match=r"structure from motion ended with -6"):
        find_cameras(files, ["0.png", "1.png", "2.png"])


def test_likely_pairs_are_of_one_scene() -> None:
    random = np.random.default_rng(0)
    scenes = [random.normal(size=(200, 128)) for _ in range(6)]
    features = {
        f"{scene}-{index}": (points[random.permutation(200)[:120]] + 0.05 * random.normal(size=(120, 128))).astype(
            np.float32
        )
        for scene, points in enumerate(scenes)
        for index in range(5)
    }
    pairs = pairs_of(features, nearest=3, neighbors=0)
    assert pairs == sorted(set(pairs)) and np.mean([one[0] == other[0] for one, other in pairs]) > 0.95


def test_pile_is_sorted_into_scenes(tmp_path: Path, photographs: Path) -> None:
    """Parts of three photographs that overlap, in one folder, and a picture of nothing."""
    for name in ("coffee.png", "rocket.jpg", "astronaut.png"):
        picture = Image.open(photographs / name).convert("RGB").resize((480, 360))
        for index in range(3):
            part = picture.crop((40 * index, 20 * index, 400 + 40 * index, 300 + 20 * index))
            part.save(tmp_path / f"{index}-{name[:3]}.png")
    Image.new("RGB", (64, 64), (90, 90, 90)).save(tmp_path / "gray.png")
    scenes = find_scenes(Source(str(tmp_path)), photographs=True, pile=True)
    assert [scene.pictures for scene in scenes] == [
        ("0-ast.png", "1-ast.png", "2-ast.png"),
        ("0-cof.png", "1-cof.png", "2-cof.png"),
        ("0-roc.png", "1-roc.png", "2-roc.png"),
        ("gray.png",),
    ]
    row = make_row(Source(str(tmp_path)), scenes[-1], ViewOptions())
    assert row["scene"] == ".#gray.png" and "1 of 1 pictures" in row["reason"]
