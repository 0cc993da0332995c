"""Labels read back from the pictures that the model draws of them: the other way round from model.conditions.

H, W are pixels. What is drawn is soft and noisy, so nothing here asks for exact colors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from model.conditions import JOINT_COLORS, LIMB_SHADE, LIMBS, rgb_of
from model.pictures import Picture
from model.prompts import COLORS

NEAR = 0.3  # largest distance of a joint's pixels from its color, in RGB with channels of 0…1
_SMALLEST_REGION = 1 / 2000  # of the picture's pixels; less is noise


def read_depth(picture: Picture) -> NDArray[np.float32]:
    """(H, W) inverse depth up to scale: 0 farthest (or unknown), 1 nearest."""
    return picture.mean(axis=2, dtype=np.float32) / np.float32(255)


def read_masks(picture: Picture, colors: Mapping[str, str]) -> dict[str, NDArray[np.bool_]]:
    """A mask (H, W) for each class, of the pixels nearest to its color.

    colors: class → "#RRGGBB", as in the prompt. Black is the background, which no class has.
    """
    return dict(zip(colors, _nearest(picture, list(colors.values())), strict=True))


def read_boxes(picture: Picture, colors: Mapping[str, str]) -> dict[str, list[tuple[int, int, int, int]]]:
    """For each class the boxes (x0, y0, x1, y1), in pixels, around the connected outlines of its color."""
    import cv2

    boxes: dict[str, list[tuple[int, int, int, int]]] = {}
    least = _SMALLEST_REGION * picture.shape[0] * picture.shape[1]
    for name, mask in read_masks(picture, colors).items():
        # Closes the gaps where another box crosses a line or noise breaks it.
        closed = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
        _, _, statistics, _ = cv2.connectedComponentsWithStats(closed, connectivity=8)
        boxes[name] = [(int(x), int(y), int(x + w), int(y + h)) for x, y, w, h, area in statistics[1:] if area >= least]
    return boxes


def read_keypoints(picture: Picture) -> NDArray[np.float32]:
    """(18, 3) x, y in pixels and score 0…1 of the points of one drawn person, in OpenPose's order.

    A joint is a disc of its own color, brighter than the limbs that meet in it. Where no such disc is found the row
    is NaN, NaN, 0. Of several people the points cannot be told apart: each is where its color is densest.
    """
    import cv2

    height, width = picture.shape[:2]
    radius = max(1, round(max(1.0, np.sqrt(width * height) / 128)))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2).astype(np.float32)
    pixels = picture.astype(np.float32) / 255
    # Limbs have the joints' colors, darker. Each pixel belongs to the nearest color of joints, limbs and background.
    joints = np.array(JOINT_COLORS, np.float32) / 255
    limbs = joints[: len(LIMBS)] * LIMB_SHADE
    palette = np.concatenate([joints, limbs, np.zeros((1, 3), np.float32)])
    distance = np.stack([np.linalg.norm(pixels - color, axis=2) for color in palette])
    nearest = distance.argmin(axis=0)
    points = np.full((len(joints), 3), (np.nan, np.nan, 0), np.float32)
    for joint in range(len(joints)):
        own = ((nearest == joint) & (distance[joint] < NEAR)).astype(np.float32)
        share = cv2.filter2D(own, -1, disc / disc.sum(), borderType=cv2.BORDER_CONSTANT)
        row, column = np.unravel_index(int(share.argmax()), share.shape)
        score = float(share[row, column])
        if score >= 0.5:
            near = np.s_[max(row - radius, 0) : row + radius + 1, max(column - radius, 0) : column + radius + 1]
            y, x = np.nonzero(own[near])
            points[joint] = (x.mean() + max(column - radius, 0), y.mean() + max(row - radius, 0), min(score, 1.0))
    return points


def _nearest(picture: Picture, colors: Sequence[str]) -> list[NDArray[np.bool_]]:
    """For each color "#RRGGBB" the pixels (H, W) that are nearer to it than to the others and to black."""
    assert all(color.upper() in COLORS.values() for color in colors)
    palette = np.array([(0, 0, 0), *map(rgb_of, colors)], np.float32)
    distance = ((picture[:, :, None].astype(np.float32) - palette) ** 2).sum(-1)
    nearest = distance.argmin(-1)
    return [nearest == index + 1 for index in range(len(colors))]
