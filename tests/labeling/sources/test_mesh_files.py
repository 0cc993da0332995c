"""Meshes of a source: what they name is copied and nothing else, what cannot be rendered is refused with its reason."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from PIL import Image
from trimesh.visual.material import PBRMaterial

from labeling.sources.scenes.discovery import SceneSource, find_scenes
from labeling.sources.source import Source
from labeling.sources.view_sets import ViewOptions, make_row
from model.pictures import decode_gray, decode_picture

OPTIONS = ViewOptions(count=2, size=48)
BOX = trimesh.creation.box()
TEXTURED = (
    "mtllib {library}\nusemtl red\n"
    + "".join(f"v {x} {y} {z}\n" for x in (0, 1) for y in (0, 1) for z in (0, 1))
    + "vt 0.5 0.5\n"
    + "".join(
        f"f {a}/1 {b}/1 {c}/1\nf {a}/1 {c}/1 {d}/1\n"
        for a, b, c, d in ((1, 2, 4, 3), (5, 7, 8, 6), (1, 5, 6, 2), (3, 4, 8, 7), (1, 3, 7, 5), (2, 6, 8, 4))
    )
)


def row_of(folder: Path) -> dict[str, Any]:
    (scene,) = find_scenes(Source(str(folder)), photographs=False)
    return make_row(Source(str(folder)), scene, OPTIONS)


def color_of(row: dict[str, Any]) -> np.ndarray[Any, Any]:
    """The most frequent color of the surface."""
    shown = decode_picture(row["image"][0])[decode_gray(row["mask"][0]) > 0]
    values, counts = np.unique(shown, axis=0, return_counts=True)
    return values[counts.argmax()].astype(float)


def red(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (200, 20, 20)).save(path)


@pytest.mark.parametrize(
    ("library", "named"),
    [
        ("box.mtl", "map_Kd tex/red.png"),
        (".\\box.mtl", "map_Kd tex\\red.png"),
        ("BOX.MTL", "map_Kd -s 1 1 1 -o 0 0 0 tex/Red.PNG"),
        ("box.mtl", "map_Kd C:\\Users\\me\\tex\\red.png"),
    ],
)
def test_textures_are_found_as_windows_names_them(library: str, named: str, tmp_path: Path) -> None:
    (tmp_path / "box.obj").write_text(TEXTURED.format(library=library))
    (tmp_path / "box.mtl").write_text(f"newmtl red\nKd 1 1 1\n{named}\n")
    red(tmp_path / ("red.png" if "Users" in named else "tex/red.png"))
    color = color_of(row_of(tmp_path))
    assert color[0] > 80 and color[1] < 0.2 * color[0], color


class CountedStore:
    """A store that remembers what was read."""

    def __init__(self, store: Any) -> None:
        self._store, self.reads = store, list[str]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def read(self, name: str) -> bytes:
        self.reads.append(name)
        data: bytes = self._store.read(name)
        return data


def test_each_mesh_is_read_once_and_of_other_files_those_that_it_names(tmp_path: Path) -> None:
    (tmp_path / "box.obj").write_text(TEXTURED.format(library="box.mtl"))
    (tmp_path / "box.mtl").write_text("newmtl red\nmap_Kd red.png\n")
    red(tmp_path / "red.png")
    for index in range(4):
        BOX.export(tmp_path / f"{index}.glb")
        (tmp_path / f"large-{index}.bin").write_bytes(bytes(1 << 16))
    source = Source(str(tmp_path))
    source.store = CountedStore(source.store)  # type: ignore[assignment]
    scenes = find_scenes(source, photographs=False)
    assert [make_row(source, scene, OPTIONS)["reason"] for scene in scenes] == [None] * 5
    assert sorted(source.store.reads) == [*(f"{index}.glb" for index in range(4)), "box.mtl", "box.obj", "red.png"]  # type: ignore[attr-defined]


def glb(scene: dict[str, Any]) -> bytes:
    text = json.dumps(scene).encode()
    text += b" " * (-len(text) % 4)
    return struct.pack("<4sII", b"glTF", 2, 20 + len(text)) + struct.pack("<I4s", len(text), b"JSON") + text


def test_compressed_meshes_are_refused_by_name(tmp_path: Path) -> None:
    draco = {"primitives": [{"attributes": {}, "extensions": {"KHR_draco_mesh_compression": {"bufferView": 0}}}]}
    (tmp_path / "a.glb").write_bytes(glb({"asset": {"version": "2.0"}, "meshes": [draco]}))
    assert "compressed by Draco (KHR_draco_mesh_compression)" in row_of(tmp_path)["reason"]


def test_factor_of_a_texture_and_material_without_coordinates_have_their_color(tmp_path: Path) -> None:
    gray = Image.new("RGB", (4, 4), (255, 255, 255))
    colors = {}
    for name, uv in (("textured", np.full((8, 2), 0.5)), ("plain", None)):
        mesh = trimesh.creation.box()
        material = PBRMaterial(baseColorTexture=gray if uv is not None else None, baseColorFactor=[255, 0, 0, 255])
        mesh.visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
        (tmp_path / name).mkdir()
        mesh.export(tmp_path / name / "a.glb")
        colors[name] = color_of(row_of(tmp_path / name))
    np.testing.assert_allclose(colors["textured"], colors["plain"], atol=1)
    assert colors["plain"][0] > 100 and colors["plain"][1] < 5


@pytest.mark.parametrize("path", ["orbit", "turntable", "random"])
def test_sets_of_meshes_have_masks_and_quality(path: Any, tmp_path: Path) -> None:
    BOX.export(tmp_path / "a.ply")
    options = ViewOptions(count=6, size=48, path=path)
    row = make_row(Source(str(tmp_path)), SceneSource("mesh", "a.ply"), options)
    c2w = np.array(row["c2w"]).reshape(-1, 4, 4)
    heights = c2w[:, 2, 3] / np.linalg.norm(c2w[:, :3, 3], axis=1)
    assert {"turntable": np.ptp(heights) < 1e-6, "orbit": np.ptp(heights) > 0.02, "random": heights.min() < 0}[path]
    assert 0.05 < row["overlap"] < 1 and row["baseline"] > 0.3
    for mask, levels in zip(row["mask"], row["disparity"], strict=True):
        np.testing.assert_array_equal(decode_gray(mask) > 0, decode_gray(levels) > 0)
