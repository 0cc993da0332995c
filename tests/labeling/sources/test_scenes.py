"""Scenes as other programs write them: the same cameras give the same rays, whoever wrote them down."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from labeling.dataset import open_store
from labeling.sources.scenes.discovery import SceneSource, find_scenes
from labeling.sources.scenes.files import SceneFiles
from labeling.sources.scenes.stored_views import store_views
from labeling.sources.source import Source
from labeling.sources.view_sets import ViewOptions, _scene_of, make_row
from model.cameras import camera_rays, orbit_cameras, rays_to_cameras, world_to_camera

VIEWS, WIDTH, HEIGHT = 4, 96, 64
FX, FY, CX, CY = 80.0, 78.0, 50.0, 30.0
SIZE = (8, 12)  # latent pixels
C2W = orbit_cameras([0.0, 40.0, 90.0, 200.0], [10.0, 20.0, 35.0, 15.0], [2.0, 2.2, 1.9, 2.4]).double().numpy()
CAMERA = {"fl_x": FX, "fl_y": FY, "cx": CX, "cy": CY, "w": WIDTH, "h": HEIGHT}


def pictures(folder: Path, names: list[str], width: int = WIDTH, height: int = HEIGHT) -> None:
    random = np.random.default_rng(0)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (height, width, 3), np.uint8)).save(folder / name)


def numbered(prefix: str = "images/", suffix: str = ".png") -> list[str]:
    return [f"{prefix}{index}{suffix}" for index in range(VIEWS)]


def opencv() -> list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """World-to-camera R, t of each view."""
    w2c = [np.linalg.inv(c2w @ np.diag([1.0, -1, -1, 1])) for c2w in C2W]
    return [(one[:3, :3], one[:3, 3]) for one in w2c]


def write_transforms(folder: Path, name: str = "transforms.json", **values: Any) -> None:
    frames = [{"file_path": path, "transform_matrix": c2w.tolist()} for path, c2w in zip(numbered(), C2W, strict=True)]
    (folder / name).write_text(json.dumps({**CAMERA, "frames": frames, **values}))


def transforms(folder: Path) -> None:
    pictures(folder, numbered())
    write_transforms(folder)


def colmap(folder: Path, text: bool) -> None:
    import pycolmap

    pictures(folder, numbered())
    model = pycolmap.Reconstruction()
    camera = pycolmap.Camera(model="PINHOLE", width=WIDTH, height=HEIGHT, params=[FX, FY, CX, CY], camera_id=1)
    model.add_camera_with_trivial_rig(camera)
    for index, (R, t) in enumerate(opencv()):
        image = pycolmap.Image(name=f"{index}.png", camera_id=1, image_id=index + 1)
        pose = pycolmap.Rigid3d(pycolmap.Rotation3d(R), t)
        model.add_image_with_trivial_frame(image, pose)
    (folder / "sparse" / "0").mkdir(parents=True)
    (model.write_text if text else model.write_binary)(folder / "sparse" / "0")


def colmap_text(folder: Path) -> None:
    colmap(folder, text=True)


def colmap_binary(folder: Path) -> None:
    colmap(folder, text=False)


def co3d(folder: Path) -> None:
    pictures(folder, numbered("toy/seq/images/"))
    R, T = world_to_camera(torch.tensor(C2W))
    # The project's world has other axes than the source's: undo what it does to them before PyTorch3D's.
    swap = torch.tensor([[0.0, 1, 0], [1, 0, 0], [0, 0, -1]], dtype=torch.float64)
    frames = [
        {
            "sequence_name": "seq",
            "frame_number": index,
            "image": {"path": path, "size": [HEIGHT, WIDTH]},
            "viewpoint": {
                "R": (swap @ R[index]).tolist(),
                "T": T[index].tolist(),
                "focal_length": [2 * FX / WIDTH, 2 * FY / HEIGHT],
                "principal_point": [1 - 2 * CX / WIDTH, 1 - 2 * CY / HEIGHT],
                "intrinsics_format": "ndc_norm_image_bounds",
            },
        }
        for index, path in enumerate(numbered("toy/seq/images/"))
    ]
    (folder / "toy" / "frame_annotations.jgz").write_bytes(gzip.compress(json.dumps(frames).encode()))


def realestate(folder: Path) -> None:
    pictures(folder, [f"clip/{1000 + index}.jpg" for index in range(VIEWS)])
    lines = ["https://www.youtube.com/watch?v=abcdefghijk"]
    for index, (R, t) in enumerate(opencv()):
        pose = np.concatenate([R, t[:, None]], 1).ravel()
        lines.append(
            " ".join(map(repr, [1000 + index, FX / WIDTH, FY / HEIGHT, CX / WIDTH, CY / HEIGHT, 0, 0, *pose.tolist()]))
        )
    (folder / "clip.txt").write_text("\n".join(lines) + "\n")


WRITERS = [transforms, colmap_text, colmap_binary, co3d, realestate]


def stored(folder: Path) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """(V, 4, 4) and (V, 3, 3) of the only scene of a source, and its row."""
    (scene,) = find_scenes(Source(str(folder)), photographs=True)
    row = make_row(Source(str(folder)), scene, ViewOptions())
    assert row["reason"] is None, row["reason"]
    return torch.tensor(row["c2w"]).reshape(-1, 4, 4), torch.tensor(row["intrinsics"]).reshape(-1, 3, 3), row


def true_rays() -> torch.Tensor:
    K = torch.tensor([[FX, 0, CX], [0, FY, CY], [0, 0, WIDTH]]) / WIDTH
    return camera_rays(torch.tensor(C2W).float(), K.expand(VIEWS, 3, 3), SIZE)


@pytest.mark.parametrize("write", WRITERS)
def test_every_convention_gives_the_same_rays_and_cameras_come_back(
    write: Callable[[Path], None], tmp_path: Path
) -> None:
    write(tmp_path)
    c2w, intrinsics, row = stored(tmp_path)
    rays = camera_rays(c2w, intrinsics, SIZE)
    assert (rays - true_rays()).abs().max() < 1e-4
    assert row["width"] == [WIDTH] * VIEWS and row["height"] == [HEIGHT] * VIEWS
    R, T = rays_to_cameras(rays, intrinsics, SIZE)
    again, moved = world_to_camera(c2w)
    relative = again[0].T @ again
    assert (R - relative).abs().max() < 1e-4
    assert (T - (moved - torch.einsum("i,vij->vj", moved[0], relative))).abs().max() < 1e-4


def test_spellings_of_transforms_that_programs_have(tmp_path: Path) -> None:
    spellings: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        "per-frame": lambda scene: {"frames": [{**frame, **CAMERA} for frame in scene["frames"]]},
        "windows": lambda scene: {
            **scene,
            "frames": [{**frame, "file_path": frame["file_path"].replace("/", "\\")} for frame in scene["frames"]],
        },
        "no-extension": lambda scene: {
            **scene,
            "frames": [{**frame, "file_path": "./" + frame["file_path"][:-4]} for frame in scene["frames"]],
        },
        "three-rows": lambda scene: {
            **scene,
            "frames": [{**frame, "transform_matrix": frame["transform_matrix"][:3]} for frame in scene["frames"]],
        },
        "applied": lambda scene: {**scene, "applied_transform": [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0]]},
        "matrix": lambda scene: {
            "frames": scene["frames"],
            "intrinsic_matrix": [[FX, 0, CX], [0, FY, CY], [0, 0, 1]],
            "w": WIDTH,
            "h": HEIGHT,
        },
    }
    for name, spell in spellings.items():
        folder = tmp_path / name
        pictures(folder, numbered())
        write_transforms(folder, "transforms_train.json")
        path = folder / "transforms_train.json"
        path.write_text(json.dumps(spell(json.loads(path.read_text()))))
        c2w, intrinsics, _ = stored(folder)
        assert (camera_rays(c2w, intrinsics, SIZE) - true_rays()).abs().max() < 1e-4, name


def test_pictures_that_are_there_at_a_quarter_alone_keep_the_rays(tmp_path: Path) -> None:
    pictures(tmp_path, numbered("images_4/"))
    full = {"fl_x": 4 * FX, "fl_y": 4 * FY, "cx": 4 * CX, "cy": 4 * CY, "w": 4 * WIDTH, "h": 4 * HEIGHT}
    write_transforms(tmp_path, **full)
    c2w, intrinsics, row = stored(tmp_path)
    assert row["width"] == [WIDTH] * VIEWS
    assert (camera_rays(c2w, intrinsics, SIZE) - true_rays()).abs().max() < 1e-4


@pytest.mark.parametrize("orientation", [6, 8, 3])
def test_cameras_are_turned_with_photographs_that_exif_turns(orientation: int, tmp_path: Path) -> None:
    """The picture lies in its file as it was taken; cameras found by programs that do not look at EXIF are of that."""
    pictures(tmp_path / "plain", numbered(suffix=".jpg"))
    frames = [
        {"file_path": path, "transform_matrix": c2w.tolist()}
        for path, c2w in zip(numbered(suffix=".jpg"), C2W, strict=True)
    ]
    for folder in ("plain", "turned"):
        (tmp_path / folder / "images").mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "transforms.json").write_text(json.dumps({**CAMERA, "frames": frames}))
    for path in (tmp_path / "plain" / "images").iterdir():
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.open(path).save(tmp_path / "turned" / "images" / path.name, exif=exif)
    (c2w, K, row), (turned, turned_K, turned_row) = stored(tmp_path / "plain"), stored(tmp_path / "turned")
    width, height = turned_row["width"][0], turned_row["height"][0]
    assert (width, height) == ((HEIGHT, WIDTH) if orientation != 3 else (WIDTH, HEIGHT))

    def directions(pose: torch.Tensor, matrix: torch.Tensor, width: int, height: int) -> np.ndarray[Any, Any]:
        """(height, width, 3) of the rays of all pixels in the world."""
        y, x = np.mgrid[:height, :width] + 0.5
        own = np.linalg.inv(matrix.double().numpy())
        local = np.stack([x / width, y / width, np.ones_like(x)], -1) @ own.T
        return local * (1, -1, -1) @ pose.double().numpy()[:3, :3].T

    upright = directions(turned[1], turned_K[1], width, height)
    plain = directions(c2w[1], K[1], row["width"][0], row["height"][0])
    quarters = {6: 3, 8: 1, 3: 2}[orientation]
    np.testing.assert_allclose(upright, np.rot90(plain, quarters), atol=1e-5)


def test_views_of_several_sizes_are_cut_to_one_shape_with_their_cameras(tmp_path: Path) -> None:
    pictures(tmp_path, numbered()[:2])
    pictures(tmp_path, [numbered()[2]], 100, 60)
    pictures(tmp_path, [numbered()[3]], 40, 120)
    sizes = [(WIDTH, HEIGHT)] * 2 + [(100, 60), (40, 120)]
    frames = [
        {"file_path": path, "transform_matrix": c2w.tolist(), "fl_x": 80.0, "w": width, "h": height}
        for path, c2w, (width, height) in zip(numbered(), C2W, sizes, strict=True)
    ]
    (tmp_path / "transforms.json").write_text(json.dumps({"frames": frames}))
    _, intrinsics, row = stored(tmp_path)
    assert row["width"] == [WIDTH] * 3 and row["height"] == [HEIGHT] * 3
    assert list(json.loads(row["left_out"])) == ["images/3.png"]
    # 90 × 60 pixels of the middle, made 96 wide.
    np.testing.assert_allclose(intrinsics[2], [[80 / 90, 0, 0.5], [0, 80 / 90, 1 / 3], [0, 0, 1]], atol=1e-5)


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda folder: (folder / "sparse/0/cameras.bin").unlink(), "without 'sparse/0/cameras.bin'"),
        (lambda folder: (folder / "images/2.png").unlink(), "'2.png' is not there"),
        (lambda folder: (folder / "sparse/0/images.bin").write_bytes(b"\x04\0\0\0\0\0\0\0\1"), "a broken COLMAP model"),
        (lambda folder: (folder / "sparse/0/images.bin").write_bytes(bytes(8)), "without pictures"),
    ],
)
def test_broken_models_say_what_is_wrong(break_it: Callable[[Path], Any], reason: str, tmp_path: Path) -> None:
    colmap_binary(tmp_path)
    break_it(tmp_path)
    (scene,) = find_scenes(Source(str(tmp_path)), photographs=True)
    assert reason in make_row(Source(str(tmp_path)), scene, ViewOptions())["reason"]


def test_masks_and_points_come_with_their_views(tmp_path: Path) -> None:
    pictures(tmp_path, numbered())
    Image.fromarray(np.kron([[0, 255]], np.ones((HEIGHT, WIDTH // 2))).astype(np.uint8)).save(tmp_path / "mask.png")
    frames = [
        {"file_path": path, "transform_matrix": c2w.tolist(), "mask_path": "mask.png"}
        for path, c2w in zip(numbered(), C2W, strict=True)
    ]
    (tmp_path / "transforms.json").write_text(json.dumps({**CAMERA, "frames": frames}))
    _, _, row = stored(tmp_path)
    from model.pictures import decode_gray

    mask = decode_gray(row["mask"][0])
    assert mask.shape == (HEIGHT, WIDTH) and not mask[:, : WIDTH // 2].any() and (mask[:, WIDTH // 2 :] == 255).all()
    assert row["baseline"] > 0.2 and row["kind"] == "transforms"


def test_a_capture_is_one_scene_however_many_programs_described_it(tmp_path: Path) -> None:
    colmap_binary(tmp_path / "capture")
    write_transforms(tmp_path / "capture")
    pictures(tmp_path / "raw", numbered(""))
    found = find_scenes(Source(str(tmp_path)), photographs=True)
    assert [(scene.kind, scene.title) for scene in found] == [
        ("transforms", "capture/transforms.json"),
        ("photographs", "raw"),
    ]
    assert [scene.kind for scene in find_scenes(Source(str(tmp_path)), photographs=False)] == ["transforms"]


def test_lens_of_a_model_is_undistorted_and_one_that_is_no_pinhole_refused(tmp_path: Path) -> None:
    colmap_text(tmp_path)
    path = tmp_path / "sparse/0/cameras.txt"
    path.write_text(f"1 OPENCV {WIDTH} {HEIGHT} {FX} {FY} {CX} {CY} -0.1 0.01 0 0\n")
    files, source = SceneFiles(open_store(str(tmp_path))), SceneSource("colmap", "sparse/0/images.txt")
    views, _ = store_views(files, _scene_of(files, source, ViewOptions()))
    assert views[0].image.encoded != (tmp_path / "images/0.png").read_bytes(), "undistorted"
    path.write_text(f"1 FOV {WIDTH} {HEIGHT} {FX} {FY} {CX} {CY} 0.9\n")
    row = make_row(Source(str(tmp_path)), source, ViewOptions())
    assert "camera model FOV is no pinhole" in row["reason"]
