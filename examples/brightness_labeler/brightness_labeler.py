"""A labeler in its own package: how bright an image is, on the whole and in its center."""

from __future__ import annotations

import pyarrow as pa
from pydantic import Field

from labeling import labeler
from labeling.labeler import Labeler, Row, RowError


class BrightnessLabeler(Labeler):
    """Mean brightness of an image and of its center, 0 … 1."""

    name = "brightness"
    version = 1
    reads = ("images.image",)
    schema = pa.schema([("brightness", pa.float32()), ("center", pa.float32())])

    class Parameters(labeler.Parameters):
        """center: share of the width and height that counts as the center."""

        center: float = Field(0.25, gt=0, le=1)

    parameters: Parameters

    def label_row(self, row: Row) -> Row:
        """Columns of one row. image: (H, W, 3) uint8."""
        image = row["images.image"]
        if image is None:
            raise RowError("no image: images.image is missing")
        height, width = image.shape[:2]
        down = round(height * (1 - self.parameters.center) / 2)
        across = round(width * (1 - self.parameters.center) / 2)
        middle = image[down : height - down, across : width - across]
        return {"brightness": float(image.mean() / 255), "center": float(middle.mean() / 255)}
