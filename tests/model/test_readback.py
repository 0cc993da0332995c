"""What is drawn comes back, also when it is noisy."""

import numpy as np
import pytest

from model.conditions import draw_boxes, draw_depth, draw_mask, draw_skeleton
from model.readback import read_boxes, read_depth, read_keypoints, read_masks

COLORS = {"dog": "#00FFFF", "cat": "#FF0000", "sofa": "#A52A2A"}
# A person who stands with bent arms, in OpenPose's points, on 512 × 512.
PERSON = [
    *((256, 90), (256, 140), (215, 142), (180, 200), (205, 255), (297, 142), (340, 195), (310, 250), (230, 270)),
    *((225, 360), (222, 450), (282, 270), (288, 360), (292, 450), (245, 80), (267, 80), (232, 88), (280, 88)),
]


def noisy(picture, scale=20):
    noise = np.random.default_rng(0).normal(0, scale, picture.shape)
    return (picture + noise).clip(0, 255).astype(np.uint8)


def test_depth_is_read_from_gray():
    levels = np.linspace(1, 65535, 64 * 48).astype(np.uint16).reshape(48, 64)
    depth = read_depth(noisy(draw_depth(levels), 2))
    assert depth.dtype == np.float32
    assert np.abs(depth - levels / 65535).max() < 0.04


def test_masks_take_the_nearest_color():
    regions = np.zeros((60, 80), np.uint8)
    regions[10:40, 5:30], regions[20:50, 40:70], regions[0:8, 0:80] = 1, 2, 3
    masks = read_masks(noisy(draw_mask(regions, list(COLORS.values()))), COLORS)
    for index, name in enumerate(COLORS, start=1):
        assert (masks[name] == (regions == index)).mean() > 0.995


def test_crossing_boxes_are_read_separately():
    boxes = [(20, 30, 120, 160), (150, 40, 230, 200), (90, 100, 180, 220)]
    colors = [COLORS["dog"], COLORS["dog"], COLORS["cat"]]
    found_boxes = read_boxes(noisy(draw_boxes(boxes, colors, 256, 256)), COLORS)
    assert found_boxes["sofa"] == []
    for name, expected in (("dog", boxes[:2]), ("cat", boxes[2:])):
        assert len(found_boxes[name]) == len(expected)
        for one, box in zip(sorted(found_boxes[name]), sorted(expected), strict=True):
            assert np.abs(np.subtract(one, box)).max() <= 3


@pytest.mark.parametrize("size", [256, 512])
def test_keypoints_are_read_where_drawn(size):
    scale = size / 512
    points = [(x * scale, y * scale, 1.0) for x, y in PERSON]
    points[4] = (*points[4][:2], 0.0)  # an unseen wrist
    keypoints = read_keypoints(noisy(draw_skeleton([points], size, size)))
    assert keypoints[4, 2] == 0 and np.isnan(keypoints[4, :2]).all()
    seen = [index for index in range(18) if index != 4]
    assert (keypoints[seen, 2] > 0.5).all()
    assert np.abs(keypoints[seen, :2] - np.array(points)[seen, :2]).max() < 3 * max(scale, 1)


def test_nothing_is_read_from_black_or_noise():
    assert (read_keypoints(noisy(np.zeros((128, 128, 3)), 40))[:, 2] == 0).all()
    assert read_boxes(noisy(np.zeros((128, 128, 3)), 20), COLORS) == {name: [] for name in COLORS}
