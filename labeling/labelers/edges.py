"""Edges: where brightness or color changes, as white lines on black (Canny, as for the published model)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, model_validator

from labeling import labeler
from labeling.labeler import Labeler, Row, required
from model.pictures import Picture, encode_png

# Width of a line as a share of √(W·H): over half a pixel when the image is fitted to the smallest training size, 96.
_LINE = 1 / 150


class EdgesLabeler(Labeler):
    """Canny edges at the picture's size, as wide as training needs to see them."""

    name = "edges"
    version = 1
    packages = ("mmcv",)
    schema = pa.schema([("edges", pa.binary())])

    class Parameters(labeler.Parameters):
        """method: "canny"; low, high: its thresholds, on the gradient of 8-bit levels; blur: sigma of the Gaussian
        before it, in pixels at long_side; long_side: pixels that a larger picture is reduced to before."""

        method: Literal["canny"] = "canny"
        low: float = Field(60.0, ge=0)
        high: float = Field(140.0, gt=0)
        blur: float = Field(1.0, ge=0)
        long_side: int = Field(512, ge=16)

        @model_validator(mode="after")
        def _in_order(self) -> EdgesLabeler.Parameters:
            if self.low > self.high:
                raise ValueError(f"low {self.low:g} is above high {self.high:g}")
            return self

    parameters: Parameters

    @property
    def model(self) -> str:
        import cv2

        return f"opencv {cv2.__version__} canny"

    def load(self) -> None:
        import cv2

        cv2.setNumThreads(1)

    def label_row(self, row: Row) -> Row:
        required(row, "images.image")
        picture = row["images.image"]
        return {"edges": encode_png(draw_edges(np.asarray(picture), self.parameters))}


def draw_edges(picture: Picture, parameters: EdgesLabeler.Parameters) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 → (H, W) uint8, 255 on an edge and 0 elsewhere."""
    import cv2
    import mmcv

    height, width = picture.shape[:2]
    # Images of all sizes have edges of one scale: noise and texture of a large image are no edges when it is small.
    small: Any = picture
    if max(height, width) > parameters.long_side:
        small = mmcv.imrescale(picture, (parameters.long_side, parameters.long_side), interpolation="area")
    if parameters.blur > 0:
        small = cv2.GaussianBlur(small, (0, 0), parameters.blur, borderType=cv2.BORDER_REFLECT_101)
    # It looks at colors, not gray: Canny takes the channel with the steepest gradient, so red beside green is an edge.
    lines = cv2.Canny(small, parameters.low, parameters.high, L2gradient=True)
    # Canny's lines are one pixel wide; at training size they would fade to dark gray.
    width_of_line = float(np.sqrt(lines.shape[0] * lines.shape[1])) * _LINE
    line = max(1, 2 * round((width_of_line - 1) / 2) + 1)  # odd, so that it stays centered on the edge
    if line > 1:
        lines = cv2.dilate(lines, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (line, line)))
    if lines.shape != (height, width):
        lines = mmcv.imresize(lines, (width, height), interpolation="bilinear")
    return np.asarray(cv2.threshold(lines, 127, 255, cv2.THRESH_BINARY)[1], np.uint8)
