"""The demo's mesh: a still life of simple solids, textured with photographs of the scikit-image package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

TEXTURE = 256  # pixels a side
DESCRIPTION = "A still life of a box, a ball and a column with photographs on them, standing on a square of grass."


def build_scene(path: Path) -> None:
    """Write the scene as one GLB (y up), the same bytes every time, and metadata.csv beside it."""
    import trimesh

    ground = _flat(2.6, "grass.png")
    box = _solid(trimesh.creation.box((0.8, 0.8, 0.8)), "coffee.png", (-0.55, 0.4, -0.35))
    ball = _solid(trimesh.creation.uv_sphere(0.45, count=[24, 48]), "chelsea.png", (0.55, 0.45, 0.3))
    column = _solid(trimesh.creation.cylinder(0.25, 1.3, sections=48), "brick.png", (0.25, 0.65, -0.7), upright=True)
    small = _solid(trimesh.creation.box((0.4, 0.4, 0.4)), "astronaut.png", (-0.35, 0.2, 0.65))
    scene = trimesh.Scene()
    for name, mesh in (("ground", ground), ("box", box), ("ball", ball), ("column", column), ("small", small)):
        scene.add_geometry(mesh, node_name=name, geom_name=name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(scene.export(file_type="glb"))
    path.with_name("metadata.csv").write_text(f'file_name,licence,text\n{path.name},CC0,"{DESCRIPTION}"\n')


def _texture(name: str) -> Any:
    import skimage
    from PIL import Image
    from trimesh.visual.material import PBRMaterial

    picture = Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB")
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = picture.crop((left, top, left + side, top + side)).resize((TEXTURE, TEXTURE))
    square.format = "JPEG"  # the format that the GLB stores
    return PBRMaterial(baseColorTexture=square, metallicFactor=0.0, roughnessFactor=1.0)


def _flat(side: float, texture: str) -> Any:
    import trimesh

    half = side / 2
    vertices = [(-half, 0, half), (half, 0, half), (half, 0, -half), (-half, 0, -half)]
    mesh = trimesh.Trimesh(vertices, [(0, 1, 2), (0, 2, 3)], process=False)
    uv = np.array([(0, 0), (1, 0), (1, 1), (0, 1)], float)
    mesh.visual = trimesh.visual.TextureVisuals(uv=uv, material=_texture(texture))
    return mesh


def _solid(mesh: Any, texture: str, position: tuple[float, float, float], upright: bool = False) -> Any:
    """A mesh with the texture on every side, projected on each triangle along the axis closest to its normal."""
    import trimesh

    if upright:  # from z up to y up
        mesh.apply_transform(trimesh.transformations.rotation_matrix(-np.pi / 2, (1, 0, 0)))
    mesh.unmerge_vertices()
    vertices, normals = np.asarray(mesh.vertices), np.repeat(np.asarray(mesh.face_normals), 3, axis=0)
    radius = np.abs(vertices).max(0)
    axis = np.abs(normals).argmax(1)
    planes = {0: (2, 1), 1: (0, 2), 2: (0, 1)}
    uv = np.empty((len(vertices), 2))
    for main, (across, up) in planes.items():
        facing = axis == main
        sign = np.where(normals[facing, main] < 0, -1, 1) * (-1 if main == 0 else 1)
        uv[facing, 0] = 0.5 + 0.5 * sign * vertices[facing, across] / radius[across]
        uv[facing, 1] = 0.5 + 0.5 * vertices[facing, up] / radius[up]
    mesh.visual = trimesh.visual.TextureVisuals(uv=np.clip(uv, 0.01, 0.99), material=_texture(texture))
    mesh.apply_translation(position)
    return mesh
