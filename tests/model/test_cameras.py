"""Camera rays against those of the published code, and cameras recovered from them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from reference_vectors import DESCRIPTION, cases, relative
from torch import Tensor

from model.cameras import camera_rays, latents_to_rays, orbit_cameras, rays_to_cameras, rays_to_latents
from model.inputs import InputError


@pytest.mark.parametrize("name", cases("rays"))
def test_rays_match_published_numbers_and_invert_to_cameras(name: str, vectors: dict[str, Tensor]) -> None:
    case = DESCRIPTION["cases"][name]
    values = {key: vectors[f"{name}.{key}"] for key in ("azimuth", "elevation", "distance", "c2w", "K", "rays")}
    assert relative(orbit_cameras(values["azimuth"], values["elevation"], values["distance"]), values["c2w"]) < 1e-4
    rays = camera_rays(values["c2w"], values["K"], case["size"], case["normalize"], case["scale"])
    assert relative(rays, values["rays"]) < 1e-4
    R, T = rays_to_cameras(rays, values["K"], case["size"])
    assert relative(R, vectors[f"{name}.recovered_R"]) < 1e-4
    assert relative(T, vectors[f"{name}.recovered_T"]) < 1e-4


def intrinsics(views: int, focal: float = 1.3887) -> Tensor:
    return torch.tensor([[focal, 0, 0.5], [0, focal, 0.5], [0, 0, 1]]).expand(views, 3, 3)


def test_first_camera_is_the_origin_of_rays() -> None:
    rays = camera_rays(orbit_cameras([20.0, 70.0], [10.0, -5.0], [1.5, 2.0]), intrinsics(2), 9)
    directions, moments = rays.split(3, dim=-1)
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(2, 81))
    torch.testing.assert_close(moments[0], torch.zeros(81, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(directions[0, 40], torch.tensor([0.0, 0.0, 1.0]))  # z forward in the middle
    assert directions[0, 0, 0] > 0 and directions[0, 0, 1] > 0  # x left, y up at the top left


def test_normalized_rays_do_not_depend_on_world_frame() -> None:
    """A world moved, turned and scaled gives the same rays; the first camera stays where `scale` puts it."""
    c2w = orbit_cameras([0.0, 30.0, 75.0], [5.0, 10.0, -20.0], [1.5, 1.7, 2.5])
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))[0]
    turn = turn * torch.det(turn)
    moved = c2w.clone()
    moved[:, :3, :3] = turn @ c2w[:, :3, :3]
    moved[:, :3, 3] = 3 * c2w[:, :3, 3] @ turn.T + torch.tensor([1.0, -2.0, 4.0])
    rays, expected = (camera_rays(one, intrinsics(3), 8, normalize=True, scale=1.7) for one in (moved, c2w))
    torch.testing.assert_close(rays, expected, atol=1e-5, rtol=1e-4)
    R, T = rays_to_cameras(expected, intrinsics(3), 8)
    # Axes met at the origin of the orbit: 1.7 along z from the first camera, distances in proportion.
    meeting = torch.tensor([0.0, 0.0, 1.7])
    distances = (meeting @ R + T).norm(dim=-1)
    torch.testing.assert_close(distances, 1.7 * torch.tensor([1.5, 1.7, 2.5]) / 1.5, atol=1e-4, rtol=1e-4)


def test_ray_latents_invert_to_rays_averaging_copies() -> None:
    rays = camera_rays(orbit_cameras([0.0, 40.0], [0.0, 10.0], [1.5, 1.5]), intrinsics(2), 8)
    latents = rays_to_latents(rays, 8, 8)
    assert latents.shape == (2, 16, 8, 8)
    torch.testing.assert_close(latents[1, 7, 2, 3], 1.658 * rays[1, 19, 1])
    torch.testing.assert_close(latents_to_rays(latents), rays)
    noisy = latents + 0.3 * torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    R, T = rays_to_cameras(latents_to_rays(noisy), intrinsics(2), 8)
    true_R, true_T = rays_to_cameras(rays, intrinsics(2), 8)
    angle = torch.rad2deg(((torch.einsum("vij,vij->v", R, true_R) - 1) / 2).clamp(-1, 1).arccos())
    assert angle.max() < 5 and (T - true_T).norm(dim=-1).max() < 0.2


def test_camera_straight_above_is_refused() -> None:
    with pytest.raises(ValueError, match="elevation 90"):
        orbit_cameras([0.0], [90.0], [1.5])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: orbit_cameras([0], [90], [1]), "elevation 90° must be between"),
        (lambda: orbit_cameras([0], [0], [0]), "distance 0: a camera is away"),
        (lambda: orbit_cameras([float("nan")], [0], [1]), "azimuth [nan]: give a finite number for each view"),
        (lambda: orbit_cameras([0, 1], [0], [1]), "2 azimuths, 1 elevations, 1 distances"),
        (lambda: orbit_cameras(["north"], [0], [1]), "azimuth: no numbers"),
        (
            lambda: camera_rays(torch.full((1, 4, 4), torch.nan), torch.eye(3)[None], 4),
            "c2w: not all numbers are finite",
        ),
        (lambda: camera_rays(torch.zeros(1, 4, 4), torch.eye(3)[None], 4), "c2w: a matrix cannot be inverted"),
        (lambda: camera_rays(torch.eye(4), torch.eye(3)[None], 4), "c2w (4, 4): give (V, 4, 4)"),
        (lambda: camera_rays(torch.eye(4)[None], torch.eye(3).repeat(2, 1, 1), 4), "2 intrinsics for 1 cameras"),
        (lambda: rays_to_cameras(torch.full((1, 16, 6), torch.nan), torch.eye(3)[None], 4), "belong to no camera"),
        (lambda: rays_to_cameras(torch.zeros(1, 16, 6), torch.eye(3)[None], 4), "some have no direction"),
        (lambda: rays_to_cameras(torch.zeros(1, 15, 6), torch.eye(3)[None], 4), "rays (1, 15, 6): give (V, 16, 6)"),
    ],
)
def test_cameras_that_there_are_not_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError) as error:
        call()
    assert message in str(error.value)
