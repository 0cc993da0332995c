"""Cameras as frames: Plücker rays of latent pixels, and cameras recovered from them (docs/model.md, Cameras).

V views, h × w latent pixels, m = h·w. World and cameras as in PyTorch3D: x left, y up, z forward; row vectors,
x_cam = x_world R + T. What comes in are OpenGL camera-to-world matrices and intrinsics for an image width of 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import einsum, rearrange, repeat
from torch import Tensor

from model.constants import CAMERA_DISTANCE, FOCAL_LENGTH, RAY_SCALE
from model.inputs import InputError, one_line, shown
from model.pictures import fitted_matrix
from model.tensors import check_dense

Size = int | tuple[int, int]  # (h, w) in latent pixels, or the side of a square
_NO_DISTANCE = 1e-6  # of how far cameras are apart; radians between directions
_CHANNELS = (*range(6), *range(6), *range(4))  # of LATENT_CHANNELS: which number of a ray each holds


def orbit_cameras(
    azimuth: Tensor | Sequence[float], elevation: Tensor | Sequence[float], distance: Tensor | Sequence[float]
) -> Tensor:
    """OpenGL camera-to-world (V, 4, 4) of cameras that look at the origin from angles in degrees (V,), z up.

    Raises InputError for an elevation of ±90° or beyond, where up is not defined, a distance that is not more than 0,
    numbers that are not finite, and sequences of different lengths.
    """
    given = {"azimuth": azimuth, "elevation": elevation, "distance": distance}
    a, e, distance = (_angles(name, values) for name, values in given.items())
    if not len(a) == len(e) == len(distance):
        raise InputError(f"{len(a)} azimuths, {len(e)} elevations, {len(distance)} distances: give one of each a view")
    if bool((e.abs() >= 90).any()):
        raise InputError(f"elevation {float(e.abs().max()):g}° must be between -90° and 90°")
    if bool((distance <= 0).any()):
        raise InputError(
            f"distance {float(distance.min()):g}: a camera is away from what it looks at; give more than 0"
        )
    a, e = torch.deg2rad(a), torch.deg2rad(e)
    position = distance[:, None] * torch.stack([e.cos() * a.cos(), e.cos() * a.sin(), e.sin()], -1)
    forward = -position / position.norm(dim=-1, keepdim=True)
    right = torch.linalg.cross(forward, position.new_tensor([0.0, 0.0, 1.0]).expand_as(forward))
    right = right / right.norm(dim=-1, keepdim=True)
    up = torch.linalg.cross(right, forward)
    c2w = torch.eye(4, dtype=position.dtype, device=position.device).repeat(len(position), 1, 1)
    c2w[:, :3] = torch.stack([right, up, -forward, position], -1)
    return c2w.float()


def world_to_camera(c2w: Tensor) -> tuple[Tensor, Tensor]:
    """R (V, 3, 3), T (V, 3) in PyTorch3D's convention from OpenGL camera-to-world (V, 4, 4)."""
    c2w = c2w.double().clone()
    c2w[:, :, 1:3] *= -1  # OpenGL → OpenCV camera axes
    c2w = c2w[:, [1, 0, 2, 3]]
    c2w[:, 2] *= -1
    w2c = torch.linalg.inv(c2w)
    R, T = rearrange(w2c[:, :3, :3], "V i j -> V j i").clone(), w2c[:, :3, 3].clone()
    R[:, :, :2] *= -1  # OpenCV → PyTorch3D: x left, y up
    T[:, :2] *= -1
    return R, T


def camera_rays(c2w: Tensor, intrinsics: Tensor, size: Size, normalize: bool = False, scale: float = 1.0) -> Tensor:
    """Rays (V, h·w, 6): unit direction and origin × direction, relative to the first camera, row by row.

    c2w: (V, 4, 4) OpenGL camera-to-world; intrinsics: (V, 3, 3), image width 1; size: (h, w) in latent pixels, or the
    side of a square. normalize: as in training, optical axes meet at the origin, the first camera is `scale` from it.
    Raises InputError for other shapes, numbers that are not finite, matrices that cannot be inverted, and cameras whose
    rays are not finite.
    """
    as_matrices("c2w", c2w, 4)
    if len(as_matrices("intrinsics", intrinsics, 3)) != len(c2w):
        raise InputError(f"{len(intrinsics)} intrinsics for {len(c2w)} cameras: give one for each")
    R, T = world_to_camera(c2w)
    if normalize:
        R, T = _normalized(R, T, scale)
    else:
        # Relative to the first camera: world' = x_world R₀ + T₀.
        T = T - einsum(T[0], R[0].T @ R, "i, V i j -> V j")
        R = R[0].T @ R
    directions, centers = _unproject(R, T, intrinsics, size)
    directions = directions / directions.norm(dim=-1, keepdim=True)
    moments = torch.linalg.cross(centers[:, None].expand_as(directions), directions)
    rays = torch.cat([directions, moments], -1).to(c2w.dtype)
    if not bool(torch.isfinite(rays).all()):
        raise InputError(
            "cameras: they have no rays of finite numbers; the first must be away from where all look, none too far"
        )
    return rays


def rays_to_latents(rays: Tensor, h: int, w: int) -> Tensor:
    """(V, h·w, 6) → camera frames (V, 16, h, w)."""
    return rearrange(rays[..., _CHANNELS], "V (h w) C -> V C h w", h=h, w=w) * RAY_SCALE


def latents_to_rays(latents: Tensor) -> Tensor:
    """Camera frames (V, 16, h, w) → rays (V, h·w, 6), the mean of the copies that the channels hold."""
    channels = rearrange(latents, "V C h w -> V (h w) C") / RAY_SCALE
    index = torch.tensor(_CHANNELS, device=latents.device)
    return torch.stack([channels[..., index == value].mean(-1) for value in range(6)], -1)


def rays_to_cameras(rays: Tensor, intrinsics: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    """R (V, 3, 3), T (V, 3) that fit rays (V, h·w, 6): centers by least squares, rotations by Procrustes.

    x_cam = x_world R + T, in the world of the rays; directions are brought to unit length first. intrinsics: (V, 3, 3).
    Raises InputError for other shapes, numbers that are not finite, and rays without a direction.
    """
    h, w = _sides(size)
    if rays.ndim != 3 or rays.shape[1:] != (h * w, 6) or not len(rays):
        raise InputError(f"rays {tuple(rays.shape)}: give (V, {h * w}, 6)")
    if len(as_matrices("intrinsics", intrinsics, 3)) != len(rays):
        raise InputError(f"{len(intrinsics)} intrinsics for {len(rays)} views: give one for each")
    if not bool(torch.isfinite(rays).all()):
        raise InputError("rays: not all numbers are finite, so they belong to no camera")
    directions, moments = rays.double().split(3, dim=-1)
    lengths = directions.norm(dim=-1, keepdim=True)
    if not bool((lengths > 0).all()):
        raise InputError("rays: some have no direction, so they belong to no camera")
    directions = directions / lengths
    # The point nearest to all rays: Σ (I − d dᵀ) c = Σ (I − d dᵀ) p, with p = d × m on each ray.
    points = torch.linalg.cross(directions, moments)
    eye = torch.eye(3, dtype=torch.float64, device=rays.device)
    across = eye - einsum(directions, directions, "V m i, V m j -> V m i j")
    pull = einsum(across, points, "V m i j, V m j -> V i")
    centers = torch.linalg.lstsq(across.sum(1), pull[..., None]).solution[..., 0]
    identity = repeat(eye, "i j -> V i j", V=len(rays))
    own, _ = _unproject(identity, torch.zeros_like(centers), intrinsics, size)
    own = own / own.norm(dim=-1, keepdim=True)
    u, _, vt = torch.linalg.svd(einsum(directions, own, "V m i, V m j -> V i j"))
    flip = torch.ones(len(rays), 3, dtype=torch.float64, device=rays.device)
    flip[:, 2] = torch.det(u @ vt)
    R = (u * flip[:, None]) @ vt
    T = -einsum(centers, R, "V i, V i j -> V j")
    return R.to(rays.dtype), T.to(rays.dtype)


def _unproject(R: Tensor, T: Tensor, intrinsics: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    """Directions (V, h·w, 3) through pixel centers, and camera centers (V, 3), in world coordinates."""
    K = intrinsics.double().to(R.device)
    h, w = _sides(size)
    # The width spans ±1: image width 1 → 2. Directions are the same in PyTorch3D's units, ±1 over the shorter side.
    high = h / w
    focal = torch.stack([K[:, 0, 0], K[:, 1, 1]], -1) * 2
    principal = torch.stack([1 - K[:, 0, 2] * 2, high - K[:, 1, 2] * 2], -1)
    across, down = (1 - (2 * torch.arange(side, dtype=torch.float64, device=R.device) + 1) / side for side in (w, h))
    y, x = torch.meshgrid(down * high, across, indexing="ij")
    grid = rearrange(torch.stack([x, y], -1), "r c k -> 1 (r c) k")
    plane = (grid - principal[:, None]) / focal[:, None]
    local = torch.cat([plane, torch.ones_like(plane[..., :1])], -1)
    directions = einsum(local, R, "V m j, V i j -> V m i")
    centers = -einsum(T, R, "V j, V i j -> V i")
    return directions, centers


def _sides(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _normalized(R: Tensor, T: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Relative to the first camera, in a world where it is `scale` from where the optical axes meet."""
    centers = -einsum(T, R, "V j, V i j -> V i")
    axes = R[:, :, 2]
    across = torch.eye(3, dtype=R.dtype, device=R.device) - einsum(axes, axes, "V i, V j -> V i j")
    meeting = torch.linalg.lstsq(across.sum(0), einsum(across, centers, "V i j, V j -> i")[:, None]).solution[:, 0]
    reach = (centers - centers[0]).norm(dim=-1).max()
    away, least_turn = (meeting - centers[0]).norm(), torch.linalg.eigvalsh(across.mean(0))[0]
    if not bool((away > _NO_DISTANCE * reach) & (least_turn > _NO_DISTANCE**2)):
        # All look from one place, at the first camera, or in one direction: axes meet nowhere that has a distance.
        # What is seen is taken to be as far away as cameras are apart.
        meeting = centers[0] + axes[0] * (reach if bool(reach > 0) else reach.new_ones(()))
    T = T + einsum(meeting, R, "i, V i j -> V j")
    T = T * (scale / T[0].norm())
    return R[0].T @ R, T - einsum(T[0], R[0].T @ R, "i, V i j -> V j")


def as_matrices(name: str, value: Any, side: int) -> Tensor:
    """(V, side, side) floats that can be inverted. Raises InputError."""
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name}: no tensor ({one_line(error, 80)}); give (V, {side}, {side})") from None
    if tensor.ndim != 3 or tensor.shape[1:] != (side, side) or not len(tensor):
        raise InputError(f"{name} {tuple(tensor.shape)}: give (V, {side}, {side})")
    check_dense(name, tensor)
    if tensor.is_complex():
        raise InputError(f"{name} of {tensor.dtype}: give floats")
    tensor = tensor.float()
    if not bool(torch.isfinite(tensor).all()):
        raise InputError(f"{name}: not all numbers are finite")
    # The rotation of c2w. A camera that maps space to a plane or a point has no rays.
    axes = tensor[:, :3, :3].double()
    if bool((torch.linalg.det(axes).abs() <= 1e-12 * torch.linalg.matrix_norm(axes) ** 3).any()):
        raise InputError(f"{name}: a matrix cannot be inverted; cameras need three independent axes")
    return tensor


def _angles(name: str, values: Any) -> Tensor:
    """(V,) float64. Raises InputError for what are no finite numbers."""
    try:
        tensor = torch.as_tensor(values, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name}: no numbers ({one_line(error, 80)}); give one for each view") from None
    if tensor.ndim != 1 or not len(tensor) or not bool(torch.isfinite(tensor).all()):
        raise InputError(f"{name} {shown(values)}: give a finite number for each view")
    return tensor


def fitted_intrinsics(intrinsics: Tensor, sizes: Tensor, size: tuple[int, int]) -> Tensor:
    """(V, 3, 3) of pictures that `model.pictures.fit_picture` cropped and resized, for an image width of 1.

    intrinsics: (V, 3, 3) of the pictures before, for an image width of 1; sizes: (V, 2), their widths and heights;
    size: width and height that they were fitted to, in any unit of its own.
    """
    fitted = [
        torch.from_numpy(fitted_matrix(K.double().numpy(), before[0], before[1], *size))
        for K, before in zip(intrinsics, sizes.tolist(), strict=True)
    ]
    return torch.stack(fitted).to(intrinsics.dtype)


def default_intrinsics(views: int, size: Size = 1) -> Tensor:
    """(V, 3, 3) of the focal length that the published model is sampled with, image width 1.

    size: (h, w) in any unit. The focal length is that of the shorter side: a longer one shows more.
    """
    h, w = _sides(size)
    focal = FOCAL_LENGTH * min(h, w) / w
    return torch.tensor([[focal, 0, 0.5], [0, focal, 0.5 * h / w], [0, 0, 1.0]]).expand(views, 3, 3)


def camera_latents(c2w: Tensor, intrinsics: Tensor, size: Size, normalize: bool) -> Tensor:
    """Camera frames (V, 16, h, w) of OpenGL camera-to-world (V, 4, 4) and intrinsics (V, 3, 3).

    normalize: as training sees them, optical axes meeting at the origin, the first camera CAMERA_DISTANCE from it.
    """
    rays = camera_rays(c2w, intrinsics, size, normalize=normalize, scale=CAMERA_DISTANCE if normalize else 1.0)
    return rays_to_latents(rays, *_sides(size))


def recover_cameras(latents: Tensor, intrinsics: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """R (V, 3, 3) and T (V, 3) in PyTorch3D's convention from camera frames (V, 16, h, w)."""
    h, w = latents.shape[-2:]
    intrinsics = default_intrinsics(len(latents), (h, w)) if intrinsics is None else intrinsics
    return rays_to_cameras(latents_to_rays(latents), intrinsics, (h, w))
