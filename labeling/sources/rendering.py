"""Images and exact depth of textured meshes, by casting rays on the CPU: needs neither a GPU nor OpenGL.

V views of size × size pixels; world z up; cameras in OpenGL convention, focal lengths for an image width of 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from model.constants import FOCAL_LENGTH
from model.inputs import InputError, one_line

SUPERSAMPLING = 2  # rays per pixel and axis
AMBIENT = 0.45
LIGHT = np.array([0.4, 0.3, 0.86])  # direction toward the light
BACKGROUND = (235, 238, 242)
SAME_DEPTH = 0.02  # by which depths of one point may differ, as a share of it
PLAIN = (200, 200, 200, 255)  # of what has no color

CameraPath = Literal["orbit", "turntable", "random"]

AnyFloats = NDArray[np.floating[Any]]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class View:
    """One rendered view.

    image: (H, W, 3) uint8; inverse_depth: (H, W) float32, 1 / z along the optical axis at pixel centers, 0 where no
    surface is hit; c2w: (4, 4) OpenGL camera-to-world; intrinsics: (3, 3), image width 1.
    """

    image: NDArray[np.uint8]
    inverse_depth: NDArray[np.float32]
    c2w: Floats
    intrinsics: Floats


def render_views(mesh_path: Path, views: int, size: int, seed: int, path: CameraPath = "orbit") -> list[View]:
    """Render a mesh, scaled to the unit ball, from cameras drawn from `seed`. Raises InputError."""
    surface = Surface(mesh_path)
    return [surface.render(c2w, size) for c2w in CAMERA_PATHS[path](views, seed)]


def orbit(views: int, seed: int) -> list[Floats]:
    """OpenGL camera-to-world matrices around the origin: azimuths evenly spread, elevations and distances drawn."""
    random = np.random.Generator(np.random.PCG64(seed))
    azimuth = (360 / views) * np.arange(views) + random.uniform(0, 360)
    elevation = random.uniform(12, 40, views)
    distance = random.uniform(2.6, 3.0, views)
    return _orbit_cameras(azimuth, elevation, distance)


def turntable(views: int, seed: int) -> list[Floats]:
    """As `orbit`, all cameras at one elevation and distance: the mesh on a turntable."""
    random = np.random.Generator(np.random.PCG64(seed))
    first, elevation = random.uniform(0, 360), random.uniform(12, 40)
    azimuth = (360 / views) * np.arange(views) + first
    return _orbit_cameras(azimuth, np.full(views, elevation), np.full(views, 2.8))


def anywhere(views: int, seed: int) -> list[Floats]:
    """Cameras in directions spread evenly over the ball, but for what is right above and below."""
    random = np.random.Generator(np.random.PCG64(seed))
    azimuth, height = random.uniform(0, 360, views), random.uniform(-0.94, 0.94, views)
    return _orbit_cameras(azimuth, np.degrees(np.arcsin(height)), random.uniform(2.4, 3.2, views))


def _orbit_cameras(azimuth: NDArray[Any], elevation: NDArray[Any], distance: NDArray[Any]) -> list[Floats]:
    import torch

    from model.cameras import orbit_cameras

    cameras = orbit_cameras(*(torch.from_numpy(value) for value in (azimuth, elevation, distance)))
    return list(cameras.numpy())


def overlap(views: Sequence[View]) -> float | None:
    """Mean share of the surface that a view shows which the next one shows too. None: nothing is seen."""
    shares = [share for one, other in pairwise(views) if (share := _shown_again(one, other)) is not None]
    return float(np.mean(shares)) if shares else None


def _shown_again(one: View, other: View) -> float | None:
    height, width = other.inverse_depth.shape
    points = seen_by(one.inverse_depth, (one.c2w, other.c2w), (one.intrinsics, other.intrinsics))
    if not len(points.depth):
        return None
    inside = points.inside(width, height)
    there = other.inverse_depth[points.y.clip(0, height - 1), points.x.clip(0, width - 1)]
    return float((inside & (np.abs(there * points.depth - 1) < SAME_DEPTH)).mean())


@dataclass(frozen=True)
class SeenPoints:
    """What P pixels of a view show, as another camera sees it.

    rows, columns: (P,) of the pixels; x, y: (P,) int64, of the other view's pixels; depth: (P,) along its optical axis,
    not above 0 behind it.
    """

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    x: NDArray[np.int64]
    y: NDArray[np.int64]
    depth: Floats

    def inside(self, width: int, height: int) -> NDArray[np.bool_]:
        """(P,): which are within the other view."""
        return (self.depth > 0) & (self.x >= 0) & (self.x < width) & (self.y >= 0) & (self.y < height)


def seen_by(
    inverse_depth: AnyFloats, cameras: tuple[AnyFloats, AnyFloats], intrinsics: tuple[AnyFloats, AnyFloats]
) -> SeenPoints:
    """Project the pixels of a view whose depth is known into another one of its width.

    inverse_depth: (H, W), 0 where unknown; cameras: OpenGL camera-to-world (4, 4) of the view and of the other one;
    intrinsics: (3, 3) of both, for an image width of 1.
    """
    width = inverse_depth.shape[1]
    rows, columns = np.nonzero(inverse_depth > 0)
    depth = 1 / inverse_depth[rows, columns].astype(np.float64)
    (own, other), (own_matrix, other_matrix) = cameras, intrinsics
    across = np.stack([(columns + 0.5) / width, (rows + 0.5) / width, np.ones(len(rows))], -1)
    local = across @ np.linalg.inv(own_matrix).T * depth[:, None] * (1, -1, -1)  # OpenGL: y up, z backward
    there = (local @ own[:3, :3].T + own[:3, 3] - other[:3, 3]) @ other[:3, :3] * (1, -1, -1)
    seen = (there / np.maximum(there[:, 2:], 1e-9)) @ np.asarray(other_matrix).T * width
    x, y = (np.floor(seen[:, axis].clip(-1, 1 << 30)).astype(np.int64) for axis in (0, 1))
    return SeenPoints(rows, columns, x, y, there[:, 2])


def _check(name: str, vertices: Floats, faces: NDArray[Any]) -> None:
    """Raise InputError for a mesh on which the caster of rays would fail, or of which nothing could be seen."""
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise InputError(f"{name}: has triangles with points that are not there")
    used = vertices[np.unique(faces)]
    if not np.isfinite(vertices).all():
        raise InputError(f"{name}: has points whose coordinates are no numbers")
    if not (np.ptp(used, axis=0) > 0).sum() >= 2:
        raise InputError(f"{name}: has no extent")


class Surface:
    """A mesh ready to be hit by rays: one triangle soup with a color lookup for each part."""

    def __init__(self, path: Path) -> None:
        """Load and scale to the unit ball around the origin. Raises InputError for what holds no triangles."""
        import trimesh

        try:
            scene = trimesh.load_scene(path)
            parts = scene.dump()
        except Exception as error:  # trimesh raises whatever its many readers do
            raise InputError(f"{path.name}: cannot be read as a mesh ({one_line(error)})") from None
        self.parts: list[Any] = [mesh for mesh in parts if isinstance(mesh, trimesh.Trimesh) and len(mesh.faces)]
        if not self.parts:
            raise InputError(f"{path.name}: has no triangles to render")
        whole: Any = trimesh.util.concatenate([trimesh.Trimesh(m.vertices, m.faces, process=False) for m in self.parts])
        vertices = np.asarray(whole.vertices)
        _check(path.name, vertices, np.asarray(whole.faces))
        if scene.metadata.get("file_type", path.suffix.lstrip(".")) in ("glb", "gltf", "obj"):
            # These formats have y up, our world z.
            vertices = vertices @ np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], float)
        center = (vertices.min(0) + vertices.max(0)) / 2
        vertices = (vertices - center) / np.linalg.norm(vertices - center, axis=1).max()
        self.mesh = trimesh.Trimesh(vertices, whole.faces, process=False)
        self.first_face = np.cumsum([0, *(len(mesh.faces) for mesh in self.parts)])
        from trimesh.ray.ray_pyembree import RayMeshIntersector

        self.caster = RayMeshIntersector(self.mesh)

    def cast(self, origins: Floats, directions: Floats) -> tuple[NDArray[np.int64], Floats]:
        """Triangle hit first by each ray (−1: none) and the hit point, from exact plane equations in float64."""
        faces = np.asarray(self.caster.intersects_first(origins, directions), np.int64)
        hit = faces >= 0
        points = np.zeros_like(origins)
        normals = np.asarray(self.mesh.face_normals)[faces[hit]]
        corner = np.asarray(self.mesh.triangles)[faces[hit], 0]
        toward = (directions[hit] * normals).sum(1)
        along = ((corner - origins[hit]) * normals).sum(1) / np.where(toward == 0, np.nan, toward)
        points[hit] = origins[hit] + along[:, None] * directions[hit]
        faces[hit] = np.where(np.isfinite(along), faces[hit], -1)  # a triangle without area has no normal
        return faces, points

    def render(self, c2w: Floats, size: int) -> View:
        """One view of size × size pixels."""
        intrinsics = np.array([[FOCAL_LENGTH, 0, 0.5], [0, FOCAL_LENGTH, 0.5], [0, 0, 1]])
        fine = size * SUPERSAMPLING
        origins, directions = pixel_rays(c2w, fine)
        faces, points = self.cast(origins, directions)
        colors = np.tile(np.array(BACKGROUND, float), (len(faces), 1))
        hit = faces >= 0
        colors[hit] = self._colors(faces[hit], points[hit]) * self._light(faces[hit], directions[hit])[:, None]
        blocks = colors.reshape(size, SUPERSAMPLING, size, SUPERSAMPLING, 3).mean((1, 3))
        image = np.clip(np.rint(blocks), 0, 255).astype(np.uint8)
        # Depth is that of pixel centers, through which no ray of the supersampled grid goes.
        origins, directions = pixel_rays(c2w, size)
        faces, points = self.cast(origins, directions)
        depth = -((points - c2w[:3, 3]) @ c2w[:3, 2])
        inverse = np.where(faces >= 0, 1 / np.where(faces >= 0, depth, 1), 0).astype(np.float32)
        return View(image, inverse.reshape(size, size), c2w, intrinsics)

    def _light(self, faces: NDArray[np.int64], directions: Floats) -> Floats:
        normals = np.asarray(self.mesh.face_normals)[faces]
        # Both sides of a triangle are lit: many meshes have faces that look inwards.
        normals = np.where((normals * directions).sum(1, keepdims=True) > 0, -normals, normals)
        return AMBIENT + (1 - AMBIENT) * np.clip(normals @ (LIGHT / np.linalg.norm(LIGHT)), 0, 1)

    def _colors(self, faces: NDArray[np.int64], points: Floats) -> Floats:
        import trimesh

        corners = np.asarray(self.mesh.triangles)[faces]
        weights = trimesh.triangles.points_to_barycentric(corners, points)
        colors = np.empty_like(points)
        part = np.searchsorted(self.first_face, faces, side="right") - 1
        for index in np.unique(part):
            some = part == index
            mesh = self.parts[index]
            corner = np.asarray(mesh.faces)[faces[some] - self.first_face[index]]
            colors[some] = _part_colors(mesh, corner, weights[some])
        return colors


def pixel_rays(c2w: Floats, size: int) -> tuple[Floats, Floats]:
    """Origins and directions (size², 3) through pixel centers, row by row from the top; unit step along the axis."""
    axis = (np.arange(size) + 0.5) / size - 0.5
    x, y = np.meshgrid(axis / FOCAL_LENGTH, -axis / FOCAL_LENGTH)
    local = np.stack([x, y, -np.ones_like(x)], -1).reshape(-1, 3)
    directions = local @ c2w[:3, :3].T
    return np.broadcast_to(c2w[:3, 3], directions.shape).copy(), directions


CAMERA_PATHS: dict[CameraPath, Callable[[int, int], list[Floats]]] = {
    "orbit": orbit,
    "turntable": turntable,
    "random": anywhere,
}


def _part_colors(mesh: Any, corner: NDArray[np.int64], weights: Floats) -> Floats:
    """Colors 0…255 at barycentric points: from the texture, the vertices, or the material."""
    material = getattr(mesh.visual, "material", None)
    image = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
    uv = getattr(mesh.visual, "uv", None)
    if uv is not None and len(uv) != len(mesh.vertices):
        uv = None
    if uv is not None and image is not None:
        where = (np.asarray(uv)[corner] * weights[..., None]).sum(1)
        return _tinted(_bilinear(np.asarray(image.convert("RGB"), float), where), material)
    if material is not None:  # a texture without coordinates has no place on the surface
        if getattr(material, "baseColorFactor", None) is not None:
            return np.tile(_tinted(np.full((1, 3), 255.0), material), (len(corner), 1))
        plain = np.asarray(getattr(material, "main_color", PLAIN), float)[:3]
        return np.tile(plain, (len(corner), 1))
    vertices = np.asarray(mesh.visual.vertex_colors, float)[:, :3]
    return (vertices[corner] * weights[..., None]).sum(1)


def _tinted(colors: Floats, material: Any) -> Floats:
    """Colors of a texture times glTF's factor, which counts light: a half is a darker gray than half of the level."""
    factor = getattr(material, "baseColorFactor", None)
    if factor is None:
        return colors
    share = np.asarray(factor, float)[:3] / 255
    return colors if (share >= 1).all() else _levels(_light_of(colors) * share)


def _light_of(levels: Floats) -> Floats:
    """sRGB levels 0…255 → light 0…1 (IEC 61966-2-1)."""
    value = levels / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def _levels(light: Floats) -> Floats:
    """Light 0…1 → sRGB levels 0…255."""
    return 255 * np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def _bilinear(image: Floats, uv: Floats) -> Floats:
    """Texture colors; u to the right, v upwards, both repeating."""
    height, width = image.shape[:2]
    x, y = (uv[:, 0] % 1) * width - 0.5, (1 - uv[:, 1] % 1) * height - 0.5
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    fx, fy = (x - left)[:, None], (y - top)[:, None]

    def at(row: NDArray[np.int64], column: NDArray[np.int64]) -> Floats:
        return image[row % height, column % width]

    above = at(top, left) * (1 - fx) + at(top, left + 1) * fx
    below = at(top + 1, left) * (1 - fx) + at(top + 1, left + 1) * fx
    return above * (1 - fy) + below * fy
