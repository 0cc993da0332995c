"""Depth: normalised inverse depth from a model, a stereo pair, or the true disparity that came with the picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from labeling import labeler
from labeling.labeler import Labeler, Row, RowError
from model.pictures import Picture, decode_gray, decode_picture, encode_png

Inverse = NDArray[np.float32]  # (H, W) inverse depth in any unit, NaN where unknown


class DepthLabeler(Labeler):
    """A model where one is named, else a stereo pair, else the given disparity; without any the row is in error."""

    name = "depth"
    version = 1
    reads = ("images.image", "images.right", "images.disparity", "images.disparity_scale")
    schema = pa.schema([("depth", pa.binary()), ("near", pa.float32()), ("far", pa.float32()), ("method", pa.string())])

    class Parameters(labeler.Parameters):
        """model: hub name or path of a transformers depth model, "" for none; disparities: the largest shift between
        the pictures of a pair, as a share of the width; block: of the stereo matcher, in pixels."""

        model: str = ""
        disparities: float = Field(0.15, gt=0, le=1)
        block: int = Field(5, ge=1, le=21)

    parameters: Parameters

    def __init__(self, group: str, parameters: labeler.Parameters) -> None:
        super().__init__(group, parameters)
        self._network: Any = None
        self._processor: Any = None

    @property
    def model(self) -> str:
        import cv2

        return self.parameters.model or f"opencv {cv2.__version__} stereo"

    def weights_digest(self) -> str:
        if not self.parameters.model:
            return ""
        from model.weights import model_folder, weights_digest

        return weights_digest(model_folder(self.parameters.model, "depth"))

    def load(self) -> None:
        import cv2

        cv2.setNumThreads(1)
        if not self.parameters.model:
            return
        import torch
        from transformers import AutoImageProcessor, AutoModelForDepthEstimation

        from model.weights import model_folder

        folder = model_folder(self.parameters.model, "depth")
        self._device = "cuda" if self.gpus and torch.cuda.is_available() else "cpu"
        if self._device == "cpu":
            torch.set_num_threads(1)
        self._processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        network = AutoModelForDepthEstimation.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        self._network = network.to(self._device).eval()

    def label_row(self, row: Row) -> Row:
        picture = row["images.image"]
        if picture is None:
            raise RowError("no images: images.image is missing")
        if self._network is not None:
            inverse, method = self._estimate(np.asarray(picture)), self.parameters.model
        elif row["images.right"] is not None:
            inverse, method = self._match(np.asarray(picture), decode_picture(row["images.right"])), "stereo"
        elif row["images.disparity"] is not None:
            levels = decode_gray(row["images.disparity"]).astype(np.float32)
            inverse, method = np.where(levels > 0, levels * row["images.disparity_scale"], np.nan), "given"
        else:
            raise RowError("no depth model, stereo pair or true disparity: name a model with depth.model")
        known = np.isfinite(inverse)
        if inverse.shape != picture.shape[:2]:
            raise RowError(f"{method} of {inverse.shape[1]}×{inverse.shape[0]} pixels for a picture of another size")
        if known.sum() < 2 or np.ptp(inverse[known]) <= 0:
            raise RowError(f"{method}: no depth could be told apart")
        far, near = float(inverse[known].min()), float(inverse[known].max())
        levels = np.zeros(inverse.shape, np.uint16)
        levels[known] = np.rint(1 + (inverse[known] - far) / (near - far) * 65534).astype(np.uint16)
        return {"depth": encode_png(levels), "near": near, "far": far, "method": method}

    def _match(self, left: Picture, right: Picture) -> Inverse:
        """Disparities by semi-global matching; NaN where the two directions disagree or nothing fits."""
        import cv2

        if left.shape != right.shape:
            raise RowError(f"right picture of {right.shape[1]}×{right.shape[0]} pixels for a left one of another size")
        most = max(16, -(-round(left.shape[1] * self.parameters.disparities) // 16) * 16)
        area = self.parameters.block**2
        matcher = cv2.StereoSGBM.create(
            minDisparity=0,
            numDisparities=most,
            blockSize=self.parameters.block,
            P1=8 * 3 * area,
            P2=32 * 3 * area,
            disp12MaxDiff=1,
            uniquenessRatio=8,
            speckleWindowSize=120,
            speckleRange=2,
            mode=cv2.STEREO_SGBM_MODE_SGBM_3WAY,
        )
        # The border on the left lets shifts of pixels near it be found at all.
        padded = [cv2.copyMakeBorder(side, 0, 0, most, 0, cv2.BORDER_REPLICATE) for side in (left, right)]
        found = matcher.compute(*padded)[:, most:].astype(np.float32) / 16
        return np.where(found > 0, found, np.nan).astype(np.float32)

    def _estimate(self, picture: Picture) -> Inverse:
        import torch

        inputs = self._processor(images=picture, return_tensors="pt", input_data_format="channels_last")
        with torch.no_grad():
            outputs = self._network(**inputs.to(self._device))
        (found,) = self._processor.post_process_depth_estimation(outputs, target_sizes=[picture.shape[:2]])
        return found["predicted_depth"].float().cpu().numpy()
