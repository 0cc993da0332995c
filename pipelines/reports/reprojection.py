"""One view of a set drawn as another camera sees it, by the depth that is known of both: what a wrong camera or a wrong
unit of depth shows at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labeling.dataset import CAMERAS, IMAGES
from labeling.sources.rendering import SAME_DEPTH, seen_by
from model.pictures import Picture, decode_gray, decode_picture, fit_picture
from pipelines.reports.overlays import Drawing, Inliner

_UNSEEN = 128  # gray of what the first view does not show

Floats = NDArray[np.floating[Any]]


def reproject(
    image: Picture, inverse_depth: Floats, cameras: tuple[Floats, Floats], intrinsics: tuple[Floats, Floats]
) -> tuple[Picture, Floats]:
    """What a view shows as another camera sees it: its colors (H, W, 3) there, and their inverse depth (H, W), 0 where
    it shows nothing.

    image: (H, W, 3); inverse_depth: (H, W), 0 where unknown; cameras: OpenGL camera-to-world (4, 4) of the view and of
    the other one; intrinsics: (3, 3) of both, for an image width of 1.
    """
    height, width = inverse_depth.shape
    points = seen_by(inverse_depth, cameras, intrinsics)
    inside = np.nonzero(points.inside(width, height))[0]
    inside = inside[np.argsort(-points.depth[inside], kind="stable")]  # the nearest last
    at = (points.y[inside], points.x[inside])
    colors, inverse = np.full_like(image, _UNSEEN), np.zeros_like(inverse_depth, np.float64)
    colors[at] = image[points.rows[inside], points.columns[inside]]
    inverse[at] = 1 / points.depth[inside]
    return colors, inverse


def agreement(inverse: Floats, expected: Floats) -> float | None:
    """Share of pixels, of those where both are known, in which inverse depths differ by at most SAME_DEPTH."""
    both = (inverse > 0) & (expected > 0)
    return float((np.abs(inverse[both] / expected[both] - 1) <= SAME_DEPTH).mean()) if both.any() else None


def draw_reprojection(row: Mapping[str, Any], inline: Inliner, side: int, title: str) -> Drawing | None:
    """The first view of a set as its second camera sees it; None where the depth of the views is not known exactly."""
    names = (f"{IMAGES}.disparity", f"{IMAGES}.disparity_scale", f"{CAMERAS}.c2w", f"{CAMERAS}.intrinsics")
    levels, scales, c2w, intrinsics = (list(row.get(name) or [])[:2] for name in names)
    if not len(levels) == len(scales) == len(c2w) == len(intrinsics) == 2 or None in levels:
        return None
    depths = [decode_gray(raw).astype(np.float64) * scale for raw, scale in zip(levels, scales, strict=True)]
    first, second = depths[0], depths[1]
    cameras = [np.asarray(values, np.float64).reshape(4, 4) for values in c2w]
    matrices = [np.asarray(values, np.float64).reshape(3, 3) for values in intrinsics]
    image = decode_picture(row[f"{IMAGES}.image"][0])
    if first.shape != image.shape[:2] or second.shape != first.shape:
        return None
    colors, inverse = reproject(image, first, (cameras[0], cameras[1]), (matrices[0], matrices[1]))
    share = agreement(inverse, second)
    height, width = first.shape
    scale = min(1.0, side / max(height, width))
    shown = fit_picture(colors, max(1, round(width * scale)), max(1, round(height * scale)))
    note = "" if share is None else f"depth agrees with that of view 2 in {share:.0%} of the pixels that both see"
    alt = f"view 1 seen from view 2 of {title}"
    return Drawing("view 1 as view 2 sees it", inline(shown), alt, shown.shape[1], shown.shape[0], note=note)
