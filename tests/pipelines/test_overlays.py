"""Labels drawn for the page: in their place, in their colors, and never a crash."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from model.pictures import encode_png
from pipelines.reports.overlays import EDGE, Inliner, depth_colors, draw_label, inline_file, thumbnail


class Exact(Inliner):
    """Without JPEG's losses."""

    def __call__(self, picture: Any, sharp: bool = False) -> str:
        return super().__call__(picture, sharp=True)


def decoded(source: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1]))).convert("RGB")).astype(int)


def test_labels_are_drawn_at_thumbnail_scale() -> None:
    """Drawn over a thumbnail of half the picture's size, at half the coordinates."""
    picture = thumbnail(np.full((128, 128, 3), 100, np.uint8), 64)
    mask = np.zeros((128, 128), np.uint8)
    mask[:, 64:] = 1
    depth = np.full((128, 128), 65535, np.uint16)
    depth[64:] = 0
    row = {
        "images.width": 128,
        "images.height": 128,
        "boxes.boxes": [{"x0": 20, "y0": 40, "x1": 120, "y1": 120}],
        "boxes.scores": [0.9],
        "boxes.names": ["cat"],
        "boxes.colors": ["#FF0000"],
        "segmentation.mask": encode_png(mask),
        "segmentation.names": ["cat"],
        "segmentation.colors": ["#00FF00"],
        "edges.edges": encode_png(mask * np.uint8(255)),
        "depth.depth": encode_png(depth),
        "depth.near": 1.0,
        "depth.far": 0.0,
        "pose.skeleton": encode_png(np.stack([mask * np.uint8(150)] + [mask * 0] * 2, -1)),
        "pose.keypoints": [[]],
    }

    def draw(group: str) -> np.ndarray:
        drawing = draw_label(group, row, picture, Exact(), "x")
        return decoded(drawing.source)

    boxes = draw("boxes")
    assert boxes[50, 10].tolist() == [255, 0, 0]
    assert boxes[50, 59].tolist() == [255, 0, 0]
    assert boxes[50, 30].tolist() == [100, 100, 100]
    masked = draw("segmentation")
    assert masked[30, 50, 1] > masked[30, 50, 0] + 100
    assert len(set(masked[30, 10].tolist())) == 1
    edges = draw("edges")
    assert edges[30, 50].tolist() == list(EDGE)
    assert max(edges[30, 10]) < 60
    near = draw("depth")
    assert near[10, 10].tolist() == depth_colors()[-1].tolist()
    assert np.ptp(near[50, 10]) < 20, "unknown depth is gray"
    pose = draw("pose")
    assert pose[30, 50].tolist() == [225, 0, 0]
    assert pose[30, 10].tolist() == [50, 50, 50]


def test_broken_labels_become_notes() -> None:
    """Labels come from anyone's labelers: what does not fit its picture is named, and the page goes on."""
    picture = np.full((32, 32, 3), 100, np.uint8)
    base = {"images.width": 32, "images.height": 32}
    mask = {"segmentation.mask": encode_png(np.full((32, 32), 3, np.uint8)), "segmentation.names": ["a"]}
    wrong = [
        ("segmentation", {**mask, "segmentation.colors": ["#FF0000"]}, "cannot be drawn"),
        ("edges", {"edges.edges": b"no picture"}, "cannot be drawn"),
        ("edges", {"edges.error": "too dark", "edges.edges": None}, "no label: too dark"),
        ("depth", {}, "not labeled yet"),
    ]
    for group, row, note in wrong:
        drawing = draw_label(group, {**base, **row}, picture, Inliner(), "x")
        assert not drawing.source
        assert note in drawing.note
    assert inline_file(b"no picture", Inliner(), "x").note == "not a readable picture"


def test_degenerate_boxes_and_colors_are_drawn_safely() -> None:
    """Boxes that are empty, tiny or outside, a color that is none, and names that would lie over each other."""
    corners = [(0, 0, 0, 0), (5, 5, 5.3, 5.4), (-10, -10, 90, 90), (2, 2, 30, 30), (2, 3, 30, 29)]
    boxes = [dict(zip(("x0", "y0", "x1", "y1"), corner, strict=True)) for corner in corners]
    row = {
        "images.width": 64,
        "images.height": 64,
        "boxes.boxes": boxes,
        "boxes.names": ["a\nb", "x" * 500, "", "cat", "cat"],
        "boxes.colors": ["red;background:url(x)", "#FF0000", "#00FF00", "#0000FF", "#0000FF"],
    }
    drawing = draw_label("boxes", row, np.zeros((64, 64, 3), np.uint8), Inliner(), "x")
    assert drawing.source, drawing.note
    assert next(chip.color for chip in drawing.chips) == "#808080"
    assert max(len(chip.text) for chip in drawing.chips) <= 50


def test_faces_have_boxes_and_points_and_degraded_pictures_are_shown() -> None:
    picture = thumbnail(np.full((128, 128, 3), 100, np.uint8), 64)
    row = {
        "images.width": 128,
        "images.height": 128,
        "faces.boxes": [{"x0": 20, "y0": 40, "x1": 120, "y1": 120}],
        "faces.scores": [0.9],
        "faces.landmarks": [[{"x": 60, "y": 80}]],
        "degraded-inpainting.picture": encode_png(np.full((128, 128, 3), (7, 8, 9), np.uint8)),
    }
    faces = draw_label("faces", row, picture, Exact(), "x")
    drawn = decoded(faces.source)
    assert [chip.text for chip in faces.chips] == ["face 0.90"]
    for y, x in ((50, 10), (40, 30)):
        assert drawn[y, x].tolist() == [255, 215, 0]
    assert drawn[45, 20].tolist() == [100, 100, 100]
    assert draw_label("faces", {**row, "faces.boxes": []}, picture, Exact(), "x").note == "nothing found"
    degraded = draw_label("degraded-inpainting", row, picture, Exact(), "x")
    assert decoded(degraded.source)[30, 30].tolist() == [7, 8, 9]
    assert draw_label("degraded-upscaling", row, picture, Exact(), "x").note == "not labeled yet"
