"""Depth: normalized inverse depth from a model, a stereo pair, or the true disparity that came with the picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, field_validator

from labeling.labeler import MissingParameterError, Prepared, Row, RowError, required
from labeling.networks.batches import Outputs
from labeling.networks.pretrained import PretrainedLabeler
from model.pictures import Picture, decode_gray, decode_picture, encode_png

_METRIC = ("depth_pro", "glpn", "zoedepth")  # predict meters, which their configurations do not say
_NEAREST = 0.01  # meters; what is predicted nearer is noise, and would leave no levels for the rest
Inverse = NDArray[np.float32]  # (H, W) inverse depth in any unit, NaN where unknown


class DepthLabeler(PretrainedLabeler):
    """A model where one is named, else a stereo pair, else the given disparity; without any the row has none."""

    name = "depth"
    role = "depth"
    version = 1
    reads: tuple[str, ...] = ("images.image", "images.right", "images.disparity", "images.disparity_scale")
    network_reads = ("images.image",)
    packages = ("mmcv",)
    outputs = ("predicted_depth", "field_of_view")
    schema = pa.schema([("depth", pa.binary()), ("near", pa.float32()), ("far", pa.float32()), ("method", pa.string())])

    class Parameters(PretrainedLabeler.Parameters):
        """model: hub name or path of a transformers depth model, "" for none; dtype: what it computes in; gives: what
        the model predicts, inverse depth (as MiDaS and Depth Anything) or depth in meters, "auto" to go by its
        configuration; disparities: the largest shift between the pictures of a pair, as a share of the width; block:
        side of what the stereo matcher compares, an odd number of pixels; long_side: pixels that a larger pair is
        reduced to before matching."""

        gives: Literal["auto", "inverse", "depth"] = "auto"
        disparities: float = Field(0.15, gt=0, le=0.5)
        block: int = Field(3, ge=1, le=21)
        long_side: int = Field(1280, ge=64)

        @field_validator("block")
        @classmethod
        def _odd(cls, block: int) -> int:
            if block % 2 == 0:
                raise ValueError(f"{block} has no middle pixel; take {block + 1}")
            return block

    parameters: Parameters

    @property
    def model(self) -> str:
        import cv2

        return self._network_label or f"opencv {cv2.__version__} stereo"

    def loader(self) -> Any:
        from transformers import AutoModelForDepthEstimation

        return AutoModelForDepthEstimation

    def prepare(self, row: Row) -> Prepared:
        required(row, "images.image")
        picture = row["images.image"]
        return Prepared(self.pixels_of(picture), picture.shape[:2])

    def finish(self, output: Any, context: Any) -> Row:
        return _levels(self._inverse(output, context), context, self._network_label)

    def label_row(self, row: Row) -> Row:
        if self.has_network:
            return super().label_row(row)
        required(row, "images.image")
        picture = row["images.image"]
        if row["images.right"] is not None:
            inverse, method = self._match(np.asarray(picture), decode_picture(row["images.right"])), "stereo"
        elif row["images.disparity"] is not None:
            if row["images.disparity_scale"] is None:
                raise RowError("given: images.disparity without images.disparity_scale; ingest it with its scale")
            steps = decode_gray(row["images.disparity"]).astype(np.float32)
            inverse, method = np.where(steps > 0, steps * row["images.disparity_scale"], np.nan), "given"
        else:
            raise MissingParameterError("no depth model, stereo pair or true disparity", "depth.model")
        return _levels(inverse, picture.shape[:2], method)

    def _match(self, left: Picture, right: Picture) -> Inverse:
        """Disparities by semi-global matching; NaN where the two directions disagree or nothing fits."""
        import mmcv

        if left.shape != right.shape:
            raise RowError(f"right picture of {right.shape[1]}×{right.shape[0]} pixels for a left one of another size")
        width, height = left.shape[1], left.shape[0]
        # Time grows with the third power of the side, and training does not see the finest shifts.
        limit = self.parameters.long_side
        if max(width, height) > limit:
            left, right = (mmcv.imrescale(side, (limit, limit), interpolation="area") for side in (left, right))
        shifts = self._shifts(left, right)
        # The right image is matched too, which is a left one when mirrored. Where the two disagree, a pixel is hidden
        # from one of them, or the match is wrong.
        back = self._shifts(right[:, ::-1].copy(), left[:, ::-1].copy())[:, ::-1]
        columns = np.arange(shifts.shape[1])[None] - np.rint(np.nan_to_num(shifts)).astype(np.int64)
        there = np.take_along_axis(back, columns.clip(0), axis=1)
        # A comparison with NaN is false.
        shifts = np.where((columns >= 0) & (np.abs(shifts - there) <= 1), shifts, np.nan).astype(np.float32)
        if shifts.shape == (height, width):
            return shifts
        nearest = np.asarray(mmcv.imresize(shifts, (width, height), interpolation="nearest"), np.float32)
        return nearest * np.float32(width / shifts.shape[1])

    def _shifts(self, left: Picture, right: Picture) -> Inverse:
        """How far each pixel of the left picture lies to the left in the right one, NaN where nothing fits."""
        import cv2

        most = max(16, -(-round(left.shape[1] * self.parameters.disparities) // 16) * 16)
        area = 3 * self.parameters.block**2  # channels × pixels, what the costs are sums over
        matcher = cv2.StereoSGBM.create(
            minDisparity=0,
            numDisparities=most,
            blockSize=self.parameters.block,
            P1=8 * area,
            P2=32 * area,
            disp12MaxDiff=1,
            uniquenessRatio=5,
            speckleWindowSize=100,
            speckleRange=2,
            mode=cv2.STEREO_SGBM_MODE_SGBM_3WAY,
        )
        # Without a border on the left, pixels near it would have no shift.
        padded = [cv2.copyMakeBorder(side, 0, 0, most, 0, cv2.BORDER_REPLICATE) for side in (left, right)]
        shifts = matcher.compute(*padded)[:, most:].astype(np.float32) / 16
        return np.where(shifts > 0, shifts, np.nan).astype(np.float32)

    def _inverse(self, output: Mapping[str, NDArray[np.float32]], size: tuple[int, int]) -> Inverse:
        """What the network gave, at the picture's (H, W)."""
        sources = {"source_sizes": [size]} if self._config.model_type == "zoedepth" else {}  # it pads
        (result,) = self._processor.post_process_depth_estimation(Outputs(output), target_sizes=[size], **sources)
        predicted = result["predicted_depth"].numpy()
        gives = self.parameters.gives
        if gives == "inverse" or (gives == "auto" and not _is_metric(self._config)):
            return predicted
        return np.where(predicted > 0, 1 / np.maximum(predicted, _NEAREST), np.nan).astype(np.float32)


def _levels(inverse: Inverse, size: tuple[int, int], method: str) -> Row:
    """The columns of a picture of (H, W) pixels. Raises RowError where the inverse depth is of no use."""
    known = np.isfinite(inverse)
    if inverse.shape != size:
        raise RowError(f"{method} of {inverse.shape[1]}×{inverse.shape[0]} pixels for a picture of another size")
    values = inverse[known]
    if len(values) < 2 or np.ptp(values) <= 0:
        raise RowError(f"{method}: no depth could be told apart")
    far, near = float(values.min()), float(values.max())
    levels = np.zeros(inverse.shape, np.uint16)
    levels[known] = np.rint(1 + (values - far) / (near - far) * 65534).astype(np.uint16)
    return {"depth": encode_png(levels), "near": near, "far": far, "method": method}


def _is_metric(config: Any) -> bool:
    """Whether a transformers depth model of this configuration predicts meters instead of inverse depth."""
    stated = getattr(config, "depth_estimation_type", None)
    return stated == "metric" if stated else config.model_type in _METRIC
