"""What the model sees as a condition: labels drawn as pictures, and degraded pictures.

Labels are drawn at the picture's own size and fitted to a bucket with it, so they stay aligned to the pixel. Widths of
lines grow with the picture, so that they come out equal at training size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.declared_conditions import BOTH, Direction, declared_conditions
from model.inputs import InputError, nearest, one_line
from model.pictures import Picture, decode_gray, decode_picture
from model.prompts import DEGRADED, TASKS

CONDITION_READS: dict[str, tuple[str, ...]] = {
    "boxes": ("boxes.boxes", "boxes.names", "boxes.colors"),
    "segmentation": ("segmentation.mask", "segmentation.names", "segmentation.colors"),
    "pose": ("pose.skeleton",),
    "edges": ("edges.edges",),
    "depth": ("depth.depth",),
    "hed": ("hed.hed",),
    **{group: condition.reads for group, condition in declared_conditions().items()},
}

# A label shows nothing where this column is an empty list: it teaches nothing about its task, and is not drawn.
CONTENT_COLUMNS = {
    "boxes": "names",
    "segmentation": "names",
    "pose": "keypoints",
    **{group: condition.content for group, condition in declared_conditions().items() if condition.content},
}
DEGRADATIONS = tuple(task.name for task in TASKS.values() if task.condition == DEGRADED)
MASKED_GRAY = 128  # what inpainting puts over the picture: 0 in the codec's range
LIMB_SHADE = 0.6  # limbs are darker than the joints that they end in
MIN_SCORE = 0.3  # keypoints below are not drawn

# OpenPose's 18 points: nose, neck, right shoulder, elbow, wrist, left shoulder, elbow, wrist, right hip, knee, ankle,
# left hip, knee, ankle, right eye, left eye, right ear, left ear. The neck is between the shoulders.
_NECK = 1
_FROM_COCO = (0, None, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
_FROM_MEDIAPIPE = (0, None, 12, 14, 16, 11, 13, 15, 24, 26, 28, 23, 25, 27, 5, 2, 8, 7)
_LAYOUTS = {17: _FROM_COCO, 33: _FROM_MEDIAPIPE, 18: tuple(range(18))}
LIMBS = (
    *((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13)),
    *((1, 0), (0, 14), (14, 16), (0, 15), (15, 17)),
)
JOINT_COLORS = (
    *((255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0)),
    *((0, 255, 85), (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255)),
    *((170, 0, 255), (255, 0, 255), (255, 0, 170), (255, 0, 85)),
)


def condition_picture(group: str, row: Mapping[str, Any], width: int, height: int) -> Picture:
    """The condition that a label is, as a (height, width, 3) picture.

    `row` holds the columns CONDITION_READS[group] of a labeled row ("group.column" → value), width and height are the
    picture's. Raises InputError for a group that is no condition or has no label here.
    """
    if group not in CONDITION_READS:
        raise InputError(
            f"{group!r} is no condition{nearest(group, list(CONDITION_READS))}; there are {', '.join(CONDITION_READS)}"
        )
    values = [row[column] for column in CONDITION_READS[group]]
    if any(value is None for value in values):
        raise InputError(f"no {group} to draw: the label is in error")
    if group == "boxes":
        boxes, _, colors = values
        return draw_boxes(boxes, colors, width, height)
    if group == "segmentation":
        mask, _, colors = values
        drawn = draw_mask(decode_gray(mask), colors)
    elif group == "pose":
        drawn = decode_picture(values[0])
    elif group in ("edges", "hed"):
        drawn = np.repeat(decode_gray(values[0])[..., None], 3, axis=2)
    elif group in declared_conditions():
        drawn = _draw_declared(group, row, width, height)
    else:
        drawn = draw_depth(decode_gray(values[0]))
    if drawn.shape[:2] != (height, width):
        raise InputError(f"{group} of {drawn.shape[1]}×{drawn.shape[0]} pixels for a picture of {width}×{height}")
    return drawn


def _draw_declared(group: str, row: Mapping[str, Any], width: int, height: int) -> Picture:
    """What another package draws. Raises InputError where it draws none, or something that is no picture."""
    try:
        drawn = declared_conditions()[group].draw(row, width, height)
    except InputError:
        raise
    except Exception as error:  # whatever the package's code does
        raise InputError(f"{group} cannot be drawn: {type(error).__name__}: {one_line(error)}") from None
    if not (isinstance(drawn, np.ndarray) and drawn.dtype == np.uint8 and drawn.ndim == 3 and drawn.shape[2] == 3):
        raise InputError(f"{group} is drawn as something else than (height, width, 3) uint8")
    return drawn


def directions_of(task: str) -> tuple[Direction, ...]:
    """In which directions a task between an image and a condition of it is sampled for reports."""
    declared = declared_conditions().get(task)
    return declared.directions if declared else BOTH


def shows_nothing(group: str, row: Mapping[str, Any]) -> bool:
    """Whether a labeled row ("group.column" → value) is known to show nothing: no object, no person."""
    column = CONTENT_COLUMNS.get(group)
    return column is not None and row.get(f"{group}.{column}") == []


def draw_boxes(boxes: Sequence[Any], colors: Sequence[str], width: int, height: int) -> Picture:
    """Outlines on black, one color "#RRGGBB" a box; boxes are {x0, y0, x1, y1} or (x0, y0, x1, y1) in pixels.

    Large boxes first, so that a small one is never hidden.
    """
    assert len(boxes) == len(colors), f"{len(boxes)} boxes, {len(colors)} colors"
    corners = [
        [float(box[key]) for key in ("x0", "y0", "x1", "y1")] if isinstance(box, Mapping) else box for box in boxes
    ]
    canvas = np.zeros((height, width, 3), np.uint8)
    line = max(1, round(np.sqrt(width * height) / 64))
    order = sorted(
        range(len(corners)), key=lambda i: -(corners[i][2] - corners[i][0]) * (corners[i][3] - corners[i][1])
    )
    for index in order:
        x0, y0, x1, y1 = corners[index]
        left, right = sorted((_clip(x0, width), _clip(x1, width)))
        top, bottom = sorted((_clip(y0, height), _clip(y1, height)))
        color = rgb_of(colors[index])
        # The line lies inside the box: a box that fills the picture is still seen.
        canvas[top:bottom, left : min(left + line, right)] = color
        canvas[top:bottom, max(right - line, left) : right] = color
        canvas[top : min(top + line, bottom), left:right] = color
        canvas[max(bottom - line, top) : bottom, left:right] = color
    return canvas


def draw_mask(mask: NDArray[np.uint8], colors: Sequence[str]) -> Picture:
    """(H, W) of 0 = background, i + 1 = region i → (H, W, 3), colors[i] "#RRGGBB" on black."""
    assert mask.max(initial=0) <= len(colors), f"region {mask.max()} of {len(colors)} colors"
    palette = np.array([(0, 0, 0), *map(rgb_of, colors)], np.uint8)
    return palette[mask]


def draw_depth(depth: NDArray[np.uint16]) -> Picture:
    """(H, W) normalized inverse depth, 1 far … 65535 near, 0 unknown → gray (H, W, 3), near is white, unknown black."""
    gray = ((depth.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=2)


def draw_skeleton(people: Sequence[Sequence[Any]], width: int, height: int, min_score: float = MIN_SCORE) -> Picture:
    """People as OpenPose draws them: colored limbs at 60 % and joints at full strength, on black.

    people: for each, points {x, y, score} or (x, y, score) in pixels; 33 points in mediapipe's order, 17 in COCO's or
    18 in OpenPose's. Points outside the picture or below min_score are not drawn, nor limbs that end in one.
    Raises InputError for another number of points.
    """
    import cv2

    canvas = np.zeros((height, width, 3), np.uint8)
    thickness = max(1.0, np.sqrt(width * height) / 128)  # half the width of a limb: 4 at 512 × 512
    radius = max(1, round(thickness))
    bodies = [_openpose_points(points) for points in people]
    size = np.array((width, height))
    visible = [(b[:, 2] >= min_score) & ((b[:, :2] >= 0) & (b[:, :2] < size)).all(axis=1) for b in bodies]
    for body, shown in zip(bodies, visible, strict=True):
        for (start, end), color in zip(LIMBS, JOINT_COLORS, strict=False):
            if shown[start] and shown[end]:
                (x0, y0), (x1, y1) = body[start, :2], body[end, :2]
                center = (round((x0 + x1) / 2), round((y0 + y1) / 2))
                axes = (round(np.hypot(x1 - x0, y1 - y0) / 2), radius)
                angle = round(np.degrees(np.arctan2(y1 - y0, x1 - x0)))
                outline = np.array(cv2.ellipse2Poly(center, axes, angle, 0, 360, 1))
                cv2.fillConvexPoly(canvas, outline, tuple(round(LIMB_SHADE * channel) for channel in color))
    for body, shown in zip(bodies, visible, strict=True):
        for index in np.flatnonzero(shown):
            center = (round(body[index, 0]), round(body[index, 1]))
            cv2.circle(canvas, center, radius, JOINT_COLORS[index], thickness=-1)
    return canvas


def degrade(picture: Picture, kind: str, seed: int) -> Picture:
    """A degraded copy of a (H, W, 3) picture, the same for the same seed. Raises InputError for an unknown kind.

    deblurring: Gaussian or motion blur, half of the time at a lower resolution; inpainting: boxes and strokes in gray
    over a tenth to two thirds of the picture; upscaling: the picture at a half to an eighth of its resolution.
    """
    kinds: dict[str, Callable[[Picture, np.random.Generator], Picture]] = {
        "deblurring": _blur,
        "inpainting": _cover,
        "upscaling": lambda picture, random: _lower(picture, random.uniform(2, 8)),
    }
    if kind not in kinds:
        raise InputError(f"unknown degradation {kind!r}{nearest(kind, list(kinds))}; there are {', '.join(kinds)}")
    return kinds[kind](picture, np.random.default_rng(seed))


def _blur(picture: Picture, random: np.random.Generator) -> Picture:
    import cv2

    scale = np.sqrt(picture.shape[0] * picture.shape[1])
    if random.random() < 0.5:
        sigma = max(0.6, random.uniform(0.004, 0.016) * scale)
        blurred = cv2.GaussianBlur(picture, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101)
    else:
        length = max(3, round(random.uniform(0.015, 0.06) * scale))
        blurred = cv2.filter2D(picture, -1, _motion_kernel(length, random.uniform(0, np.pi)))
    if random.random() < 0.5:
        blurred = _lower(np.asarray(blurred, np.uint8), random.uniform(1.5, 4))
    return np.asarray(blurred, np.uint8)


def _motion_kernel(length: int, angle: float) -> NDArray[np.float32]:
    import cv2

    # Drawn at four times the size and averaged, so that a line one pixel wide has no steps.
    side, fine = length + 2 + length % 2 + 1, 4
    middle = (side * fine - 1) / 2
    reach = np.array([np.cos(angle), np.sin(angle)]) * length * fine / 2
    start, end = np.rint(middle - reach).astype(int), np.rint(middle + reach).astype(int)
    canvas = np.zeros((side * fine, side * fine), np.uint8)
    cv2.line(canvas, (int(start[0]), int(start[1])), (int(end[0]), int(end[1])), 255, thickness=fine)
    kernel = canvas.reshape(side, fine, side, fine).mean(axis=(1, 3), dtype=np.float64)
    return (kernel / kernel.sum()).astype(np.float32)


def _lower(picture: Picture, factor: float) -> Picture:
    import cv2

    height, width = picture.shape[:2]
    small = (max(1, round(width / factor)), max(1, round(height / factor)))
    reduced = cv2.resize(picture, small, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(reduced, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def _cover(picture: Picture, random: np.random.Generator) -> Picture:
    import cv2

    height, width = picture.shape[:2]
    share = random.uniform(0.1, 0.5)  # of the picture to cover, at least
    covered = np.zeros((height, width), np.uint8)
    strokes = random.random() < 0.5
    for _ in range(64):  # enough shapes of the smallest size; most often a few reach the share
        before = covered.copy()
        if strokes:
            points = random.uniform(0, 1, (int(random.integers(3, 8)), 2)) * (width, height)
            line = max(1, round(random.uniform(0.04, 0.12) * min(width, height)))
            cv2.polylines(covered, [np.rint(points).astype(np.int32)], isClosed=False, color=1, thickness=line)
        else:
            w, h = random.uniform(0.15, 0.5, 2) * (width, height)
            x, y = random.uniform(0, 1, 2) * (width - w, height - h)
            covered[round(y) : max(round(y) + 1, round(y + h)), round(x) : max(round(x) + 1, round(x + w))] = 1
        if covered.mean() > 2 / 3:  # with the last shape it is too much
            covered = before
        if covered.mean() >= share:
            break
    return np.where(covered[..., None] > 0, np.uint8(MASKED_GRAY), picture)


def _openpose_points(points: Sequence[Any]) -> NDArray[np.float64]:
    """(18, 3) x, y, score in OpenPose's order. Raises InputError for another number of points than a layout has."""
    if len(points) not in _LAYOUTS:
        raise InputError(f"a person of {len(points)} points: there must be 33 (mediapipe), 17 (COCO) or 18 (OpenPose)")
    coordinates = np.array(
        [[p["x"], p["y"], p["score"]] if isinstance(p, Mapping) else list(p) for p in points], dtype=np.float64
    )
    layout = _LAYOUTS[len(points)]
    body = np.array([coordinates[0 if source is None else source] for source in layout])
    if layout[_NECK] is None:
        right, left = body[2], body[5]
        body[_NECK] = [*(right[:2] + left[:2]) / 2, min(right[2], left[2])]
    return body


def _clip(value: float, limit: int) -> int:
    return int(np.clip(round(value), 0, limit))


def rgb_of(code: str) -> tuple[int, int, int]:
    """(red, green, blue) of "#RRGGBB"."""
    return int(code[1:3], 16), int(code[3:5], 16), int(code[5:7], 16)
