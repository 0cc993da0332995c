"""Degraded: a picture as the tasks of repair see it, stored, so that it can be looked at, given to others, and encoded.

Training draws its own degradations, another one each time that it sees a picture, unless a source of its mixture says
`degraded: stored`: then it reads the latents of these.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from labeling import labeler
from labeling.labeler import Labeler, Row, required
from labeling.networks.text_writer import seed_of
from model.conditions import DEGRADATIONS, degrade
from model.inputs import InputError, nearest
from model.pictures import encode_png


class DegradedLabeler(Labeler):
    """The group degraded-KIND: deblurring, inpainting or upscaling, drawn by the row's id and `draw`."""

    name = "degraded"
    version = 1
    schema = pa.schema([("picture", pa.binary()), ("seed", pa.int64())])

    class Parameters(labeler.Parameters):
        """draw: number of the draw; another one gives other degradations of the same rows."""

        draw: int = 0

    parameters: Parameters

    def __init__(self, group: str, parameters: Any) -> None:
        super().__init__(group, parameters)
        self.kind = group.partition("-")[2]
        if self.kind not in DEGRADATIONS:
            kinds = list(DEGRADATIONS)
            hint = nearest(self.kind, kinds) or f"; there are {', '.join(kinds)}"
            raise InputError(f"{group!r} says no degradation: name it degraded-KIND{hint}")

    def load(self) -> None:
        import cv2

        cv2.setNumThreads(1)

    def label_row(self, row: Row) -> Row:
        required(row, "images.image")
        seed = seed_of(f"{row['id']} {self.parameters.draw}")
        return {"picture": encode_png(degrade(np.asarray(row["images.image"]), self.kind, seed)), "seed": seed}
