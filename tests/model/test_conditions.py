import numpy as np
import pytest
from skimage import data

from model.conditions import (
    CONDITION_READS,
    DEGRADATIONS,
    MASKED_GRAY,
    condition_picture,
    degrade,
    draw_boxes,
    draw_depth,
    draw_mask,
    draw_skeleton,
)
from model.inputs import InputError
from model.pictures import encode_png

# A standing person in a 100 × 200 picture: x, y of COCO's 17 points.
COCO = np.array(
    [
        *((50, 20), (54, 16), (46, 16), (58, 18), (42, 18), (65, 45), (35, 45), (75, 75), (25, 75)),
        *((78, 105), (22, 105), (60, 110), (40, 110), (62, 150), (38, 150), (63, 190), (37, 190)),
    ],
    dtype=float,
)
MEDIAPIPE_OF_COCO = (0, 2, 5, 7, 8, 11, 12, 13, 14, 15, 16, 23, 24, 25, 26, 27, 28)


def as_points(xy, score=0.9):
    return [{"x": float(x), "y": float(y), "score": score} for x, y in xy]


def test_boxes_are_outlines_with_small_ones_on_top():
    boxes = [{"x0": 40, "y0": 40, "x1": 60, "y1": 60}, {"x0": 0, "y0": 0, "x1": 128, "y1": 128}]
    drawn = draw_boxes(boxes, ["#00FFFF", "#FF0000"], 128, 128)
    assert drawn[0, 0].tolist() == [255, 0, 0]
    assert drawn[127, 127].tolist() == [255, 0, 0]
    assert drawn[40, 50].tolist() == [0, 255, 255]
    assert drawn[50, 50].tolist() == [0, 0, 0]
    same = draw_boxes(
        [(30, 30, 90, 90), (30, 30, 90, 90), (30, 30, 60, 90)], ["#00FF00", "#FF0000", "#0000FF"], 128, 128
    )
    assert same[30, 40].tolist() == [0, 0, 255]  # the smaller is on top
    outside = draw_boxes([(-50, -50, 500, 64)], ["#FF0000"], 128, 128)
    assert outside[0, 64].tolist() == [255, 0, 0]
    assert not outside[64:].any()


def test_masks_and_depth_are_drawn_in_their_colors():
    mask = np.array([[0, 1], [2, 1]], np.uint8)
    assert draw_mask(mask, ["#FFA500", "#000080"]).tolist() == [
        [[0, 0, 0], [255, 165, 0]],
        [[0, 0, 128], [255, 165, 0]],
    ]
    with pytest.raises(AssertionError, match="region 2 of 1 colors"):
        draw_mask(mask, ["#FFA500"])
    depth = np.array([[0, 1, 32768, 65535]], np.uint16)
    assert draw_depth(depth)[0, :, 0].tolist() == [0, 0, 128, 255]


def test_skeleton_is_the_same_for_every_keypoint_layout():
    mediapipe = np.full((33, 2), -1.0)  # the other points (hands, feet, mouth) are not drawn
    mediapipe[list(MEDIAPIPE_OF_COCO)] = COCO
    drawn = draw_skeleton([as_points(COCO)], 100, 200)
    np.testing.assert_array_equal(drawn, draw_skeleton([as_points(mediapipe)], 100, 200))
    # The right shoulder-to-neck limb is red, the left is orange-red; the right is on the left of who looks at us.
    assert drawn[45, 42].tolist() == [153, 0, 0]
    assert drawn[45, 58].tolist() == [153, 51, 0]
    assert drawn[45, 35].tolist() == [255, 170, 0]  # joint of the right shoulder


def test_low_score_and_outside_points_are_not_drawn():
    assert not draw_skeleton([], 100, 200).any()
    assert not draw_skeleton([as_points(COCO, score=0.1)], 100, 200).any()
    points = as_points(COCO)
    points[16]["x"] = -5.0  # right ankle outside the picture
    drawn = draw_skeleton([points], 100, 200)
    assert not drawn[160:, :50].any()
    assert drawn[160:, 50:].any()
    with pytest.raises(InputError, match="21 points"):
        draw_skeleton([as_points(COCO[:1]) * 21], 100, 200)


def test_condition_pictures_from_rows():
    height, width = 40, 60
    gray = np.zeros((height, width), np.uint8)
    gray[10:20, 10:30] = 1
    row = {
        "boxes.boxes": [{"x0": 10, "y0": 10, "x1": 30, "y1": 20}],
        "boxes.names": ["dog"],
        "boxes.colors": ["#00FFFF"],
        "segmentation.mask": encode_png(gray),
        "segmentation.names": ["dog"],
        "segmentation.colors": ["#00FFFF"],
        "pose.skeleton": encode_png(np.zeros((height, width, 3), np.uint8)),
        "edges.edges": encode_png(gray * np.uint8(255)),
        "depth.depth": encode_png(gray * np.uint16(65535)),
        "hed.hed": encode_png(gray * np.uint8(255)),
    }
    for group, reads in CONDITION_READS.items():
        drawn = condition_picture(group, {column: row[column] for column in reads}, width, height)
        assert drawn.shape == (height, width, 3)
        assert drawn.dtype == np.uint8
        expected = [0, 0, 0] if group == "pose" else [0, 255, 255] if group in ("boxes", "segmentation") else [255] * 3
        assert drawn[10, 10].tolist() == expected
        assert drawn[30, 50].tolist() == [0, 0, 0]
    empty = {"boxes.boxes": [], "boxes.names": [], "boxes.colors": []}
    assert not condition_picture("boxes", empty, width, height).any()
    with pytest.raises(InputError, match="no depth to draw"):
        condition_picture("depth", {"depth.depth": None}, width, height)
    with pytest.raises(InputError, match="no condition"):
        condition_picture("edge", row, width, height)
    with pytest.raises(InputError, match="60×40 pixels for a picture of 30×20"):
        condition_picture("edges", row, 30, 20)


@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_degradations_are_seeded_and_change_the_image(kind):
    picture = data.astronaut()[::2, ::2]
    changed = []
    for seed in range(12):
        degraded = degrade(picture, kind, seed)
        assert degraded.shape == picture.shape
        np.testing.assert_array_equal(degraded, degrade(picture, kind, seed))
        changed.append(degraded)
    assert len({picture.tobytes() for picture in changed}) >= 10
    if kind == "inpainting":
        shares = [np.all(degraded == MASKED_GRAY, axis=2).mean() for degraded in changed]
        assert min(shares) >= 0.1
        assert max(shares) <= 0.67
    else:
        detail = [np.abs(np.diff(degraded.astype(int), axis=1)).mean() for degraded in [picture, *changed]]
        assert max(detail[1:]) < 0.8 * detail[0]
    with pytest.raises(InputError, match="unknown degradation"):
        degrade(picture, "blur", 0)
