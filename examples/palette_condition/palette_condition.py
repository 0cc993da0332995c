"""A label that is a task too: the colors of a picture in large squares, and pictures made of such squares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from labeling import labeler
from labeling.labeler import Labeler, Row, RowError
from model.declared_conditions import Condition


class PaletteLabeler(Labeler):
    """The mean color of each square of a grid over the picture, row by row."""

    name = "palette"
    version = 1
    reads = ("images.image",)
    schema = pa.schema([("levels", pa.list_(pa.uint8())), ("across", pa.int32())])

    class Parameters(labeler.Parameters):
        """squares: of the longer side."""

        squares: int = Field(8, ge=2, le=64)

    parameters: Parameters

    def label_row(self, row: Row) -> Row:
        """Columns of one row. image: (H, W, 3) uint8."""
        image = row["images.image"]
        if image is None:
            raise RowError("no image: images.image is missing")
        height, width = image.shape[:2]
        side = max(height, width) / self.parameters.squares
        across, down = max(1, round(width / side)), max(1, round(height / side))
        means = cv2.resize(image, (across, down), interpolation=cv2.INTER_AREA)
        return {"levels": means.ravel(), "across": across}


def draw(row: Mapping[str, Any], width: int, height: int) -> NDArray[np.uint8]:
    """The squares as a (height, width, 3) picture."""
    grid = np.array(row["palette.levels"], np.uint8).reshape(-1, row["palette.across"], 3)
    return cv2.resize(grid, (width, height), interpolation=cv2.INTER_NEAREST)


CONDITION = Condition(
    group="palette",
    reads=("palette.levels", "palette.across"),
    draw=draw,
    token="[[palette2image]]",
)
