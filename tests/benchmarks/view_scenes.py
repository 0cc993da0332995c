"""Textured meshes whose true cameras are known, and how far cameras that were found are from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.demo_data.scene import build_scene

Floats = NDArray[np.float64]
TEXTURES = {  # a solid on a square of ground, each with a photograph of scikit-image on it
    "box": ("astronaut.png", "gravel.png"),
    "ball": ("chelsea.png", "grass.png"),
    "column": ("rocket.jpg", "gravel.png"),
    "torus": ("astronaut.png", "brick.png"),
    "capsule": ("ihc.png", "coffee.png"),
}
TEXTURE = 512


def write_meshes(folder: Path) -> dict[str, Path]:
    """Six GLB files: the demo's still life, and a solid on the ground for each entry of TEXTURES."""
    import trimesh

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "life").mkdir(exist_ok=True)
    build_scene(folder / "life" / "still-life.glb")
    meshes = {"still life": folder / "life" / "still-life.glb"}
    solids = {
        "box": trimesh.creation.box((0.9, 0.9, 0.9)),
        "ball": trimesh.creation.icosphere(subdivisions=4, radius=0.55),
        "column": trimesh.creation.cylinder(0.4, 1.2, sections=64),
        "torus": trimesh.creation.torus(0.5, 0.22),
        "capsule": trimesh.creation.capsule(0.7, 0.35),
    }
    for name, (texture, ground) in TEXTURES.items():
        solid = _projected(solids[name], texture)
        solid.apply_translation((0, 0, -solid.bounds[0, 2]))
        floor = _projected(trimesh.creation.box((2.4, 2.4, 0.02)), ground)
        scene = trimesh.Scene([solid, floor])
        scene.apply_transform(trimesh.transformations.rotation_matrix(-np.pi / 2, (1, 0, 0)))  # glTF has y up
        meshes[name] = folder / f"{name}.glb"
        meshes[name].write_bytes(scene.export(file_type="glb"))
    return meshes


def _projected(mesh: Any, texture: str) -> Any:
    """The mesh with a photograph on every side, projected along the axis closest to its normal."""
    import skimage
    import trimesh
    from PIL import Image
    from trimesh.visual.material import PBRMaterial

    mesh = trimesh.Trimesh(mesh.triangles.reshape(-1, 3), np.arange(3 * len(mesh.faces)).reshape(-1, 3), process=False)
    axis = np.repeat(np.abs(mesh.face_normals).argmax(1), 3)
    across, up = np.array([1, 0, 0])[axis], np.array([2, 2, 1])[axis]
    rows = np.arange(len(axis))
    half = np.abs(mesh.vertices).max()
    # Each of six directions has a part of the photograph of its own: what looks the same after a turn fits two ways.
    sign = np.repeat(mesh.face_normals, 3, 0)[rows, axis] > 0
    part = np.stack([axis, sign], 1) / (3, 2)
    uv = part + (0.5 + 0.48 * np.stack([mesh.vertices[rows, across], mesh.vertices[rows, up]], 1) / half) / (3, 2)
    picture = Image.open(Path(skimage.__file__).parent / "data" / texture).convert("RGB").resize((TEXTURE, TEXTURE))
    material = PBRMaterial(baseColorTexture=picture, metallicFactor=0.0)
    mesh.visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    return mesh


def camera_errors(found: Floats, true: Floats) -> dict[str, float]:
    """Median degrees of relative rotation over all pairs, and the largest distance of centers after the similarity that
    fits best, as a share of the cameras' mean distance from their middle. found, true: (V, 4, 4)."""
    relative = [np.einsum("vji,wjk->vwik", poses[:, :3, :3], poses[:, :3, :3]) for poses in (found, true)]
    # The length of the difference, 2 √2 sin(θ / 2), tells small angles, which a cosine of nearly 1 does not.
    apart = np.linalg.norm(relative[0] - relative[1], axis=(2, 3))[np.triu_indices(len(found), 1)]
    degrees = np.degrees(2 * np.arcsin((apart / np.sqrt(8)).clip(0, 1)))
    one, other = (poses[:, :3, 3] - poses[:, :3, 3].mean(0) for poses in (found, true))
    u, sizes, vt = np.linalg.svd(one.T @ other)
    flip = np.diag([1, 1, np.sign(np.linalg.det(u @ vt))])
    moved = one @ (u @ flip @ vt) * (sizes * np.diag(flip)).sum() / (one**2).sum()
    off = np.linalg.norm(moved - other, axis=1) / np.linalg.norm(other, axis=1).mean()
    return {"degrees": float(np.median(degrees)), "center": float(off.max()), "median_center": float(np.median(off))}
