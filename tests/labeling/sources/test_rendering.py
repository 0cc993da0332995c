"""Rendered views: exact depth, cameras that agree with the model's rays, pictures that agree with each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from labeling.sources.rendering import Surface, orbit, pixel_rays, render_views
from model.cameras import camera_rays, world_to_camera
from model.constants import FOCAL_LENGTH
from model.inputs import InputError
from pipelines.demo_data.scene import build_scene


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scene") / "still-life.glb"
    build_scene(path)
    return path


def test_depth_of_a_ball_is_exact(tmp_path: Path) -> None:
    trimesh.creation.icosphere(subdivisions=6).export(tmp_path / "ball.ply")
    surface = Surface(tmp_path / "ball.ply")
    for c2w in orbit(3, seed=1):
        view = surface.render(c2w, 65)
        distance = np.linalg.norm(c2w[:3, 3])
        assert 1 / view.inverse_depth[32, 32] == pytest.approx(distance - 1, abs=1e-3)  # facets lie inside the ball
        assert view.inverse_depth[0, 0] == 0
        # Everywhere: the hit point lies on the facets of the unit ball.
        origins, directions = pixel_rays(c2w, 65)
        hit = view.inverse_depth.ravel() > 0
        points = origins[hit] + directions[hit] / view.inverse_depth.ravel()[hit, None]
        assert np.abs(np.linalg.norm(points, axis=1) - 1).max() < 1e-3


def test_depth_of_a_plane_is_exact(tmp_path: Path) -> None:
    trimesh.Trimesh([(-1, -1, 0), (1, -1, 0), (1, 1, 0), (-1, 1, 0)], [(0, 1, 2), (0, 2, 3)]).export(tmp_path / "p.ply")
    c2w = orbit(1, seed=2)[0]
    view = Surface(tmp_path / "p.ply").render(c2w, 32)
    origins, directions = pixel_rays(c2w, 32)
    hit = view.inverse_depth.ravel() > 0
    depth = -origins[:, 2] / directions[:, 2]  # where z = 0; directions step by one along the optical axis
    assert hit.sum() > 100
    assert np.abs(view.inverse_depth.ravel()[hit] * depth[hit] - 1).max() < 1e-4


def test_rays_of_the_model_hit_the_rendered_depth(scene: Path) -> None:
    views = render_views(scene, 4, 32, seed=0)
    c2w = torch.tensor(np.stack([view.c2w for view in views]))
    intrinsics = torch.tensor(np.stack([view.intrinsics for view in views]))
    rays = camera_rays(c2w, intrinsics, 32).double()
    R, T = (value.double() for value in world_to_camera(c2w))
    for index, view in enumerate(views):
        hit = torch.from_numpy(view.inverse_depth.ravel() > 0)
        origins, directions = (torch.from_numpy(value) for value in pixel_rays(view.c2w, 32))
        world = origins + directions / torch.from_numpy(view.inverse_depth.ravel().astype(float))[:, None].clamp(
            min=1e-9
        )
        # The model's world: axes permuted as docs/model.md says, relative to the first camera.
        world = world[:, [1, 0, 2]] * torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
        relative = world @ R[0] + T[0]
        direction, moment = rays[index].split(3, dim=-1)
        off = torch.linalg.cross(relative, direction) - moment  # a point p lies on the ray when p × d = m
        assert off[hit].norm(dim=-1).max() < 1e-4, index


def test_surface_point_has_one_color_in_every_view(scene: Path) -> None:
    one, other = render_views(scene, 12, 128, seed=0)[:2]
    origins, directions = pixel_rays(one.c2w, 128)
    hit = one.inverse_depth.ravel() > 0
    points = origins[hit] + directions[hit] / one.inverse_depth.ravel()[hit, None]
    local = (points - other.c2w[:3, 3]) @ other.c2w[:3, :3]
    x = (0.5 + FOCAL_LENGTH * local[:, 0] / -local[:, 2]) * 128
    y = (0.5 - FOCAL_LENGTH * local[:, 1] / -local[:, 2]) * 128
    inside = (x >= 0) & (x < 128) & (y >= 0) & (y < 128)
    column, row = x[inside].astype(int), y[inside].astype(int)
    visible = np.abs(other.inverse_depth[row, column] * -local[inside, 2] - 1) < 0.01
    colors = one.image.reshape(-1, 3)[hit][inside][visible].astype(float)
    there = other.image[row, column][visible].astype(float)
    assert visible.sum() > 1000
    shuffled = np.random.default_rng(0).permutation(there)
    assert np.abs(colors - there).mean() < 0.5 * np.abs(colors - shuffled).mean()


def test_scene_and_views_are_deterministic(scene: Path, tmp_path: Path) -> None:
    build_scene(tmp_path / "again.glb")
    assert (tmp_path / "again.glb").read_bytes() == scene.read_bytes()
    assert scene.stat().st_size < 1 << 20
    first, second = (render_views(scene, 2, 32, seed=5) for _ in range(2))
    assert all(np.array_equal(a.image, b.image) for a, b in zip(first, second, strict=True))


def test_unreadable_mesh_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.glb").write_bytes(b"not a mesh")
    with pytest.raises(InputError, match=r"bad\.glb: cannot be read as a mesh"):
        Surface(tmp_path / "bad.glb")
