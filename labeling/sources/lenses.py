"""Photographs of lenses that bend lines: undistorted to a pinhole, the only camera whose rays are stored.

Lenses are described as nerfstudio, COLMAP and instant-ngp write them into a transforms.json, which all follow OpenCV
(https://docs.opencv.org, "Camera Calibration and 3D Reconstruction" and "Fisheye camera model").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.inputs import InputError

_PINHOLES = ("PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "FULL_OPENCV", "PERSPECTIVE")
_FISHEYES = ("OPENCV_FISHEYE", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE", "FISHEYE")
_OTHERS = ("lonlat", "latlong")  # flags of instant-ngp for panoramas
_COEFFICIENTS = ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")  # in OpenCV's order
_LEAST_FOCAL = 0.13  # widths: a pinhole that sees 150 degrees across
_MOST_CHANGE = 4.0  # of the focal length: beyond it the coefficients are of another lens


@dataclass(frozen=True)
class Lens:
    """How a lens bends. coefficients: k1, k2, p1, p2, k3 … of OpenCV, or k1 … k4 of a fisheye."""

    coefficients: tuple[float, ...]
    is_fisheye: bool = False

    def turned(self) -> Lens:
        """Of a picture turned clockwise by a quarter: what bends around the middle is the same, tangents turn."""
        if self.is_fisheye or len(self.coefficients) < 4:
            return self
        k1, k2, p1, p2, *rest = self.coefficients
        return Lens((k1, k2, p2, -p1, *rest))

    def pinhole(self, width: int, height: int, matrix: NDArray[np.float64]) -> Undistortion:
        """The pinhole that shows the largest part of a picture of this lens without an empty border.

        matrix: (3, 3) for an image width of 1. Raises InputError where the lens sees more than a pinhole can show.
        """
        import cv2

        cv2.setNumThreads(1)
        seen = matrix * width / matrix[2, 2]
        seen[2] = (0, 0, 1)
        # OpenCV counts from the middle of the first pixel, and cameras of scenes from its corner.
        seen[:2, 2] -= 0.5
        bends, size = np.array(self.coefficients), (width, height)
        if self.is_fisheye:
            pinhole = cv2.fisheye.estimateNewCameraMatrixForUndistortRectify(seen, bends, size, np.eye(3), balance=0.0)
            maps = cv2.fisheye.initUndistortRectifyMap(seen, bends, np.eye(3), pinhole, size, cv2.CV_32FC1)
        else:
            pinhole, _ = cv2.getOptimalNewCameraMatrix(seen, bends, size, 0)
            maps = cv2.initUndistortRectifyMap(seen, bends, np.eye(3), pinhole, size, cv2.CV_32FC1)
        focal = pinhole[0, 0] if np.isfinite(pinhole).all() else 0.0
        if not max(_LEAST_FOCAL * width, seen[0, 0] / _MOST_CHANGE) < focal < _MOST_CHANGE * seen[0, 0]:
            raise InputError("its lens bends more than a pinhole camera can show; crop or undistort it first")
        stored: NDArray[np.float64] = np.array(pinhole, np.float64)
        stored[:2, 2] += 0.5
        stored[:2] /= width
        return Undistortion(stored, maps)


@dataclass(frozen=True)
class Undistortion:
    """How pixels move from a lens to a pinhole. matrix: (3, 3) of the pinhole, for an image width of 1."""

    matrix: NDArray[np.float64]
    maps: tuple[Any, Any]  # (H, W) float32 each: where OpenCV takes a pixel from

    def apply(self, picture: NDArray[np.uint8], is_mask: bool = False) -> NDArray[np.uint8]:
        """A picture (H, W, 3), or a mask (H, W) that keeps its levels, as the pinhole sees it."""
        import cv2

        kind = cv2.INTER_NEAREST if is_mask else cv2.INTER_CUBIC
        return np.asarray(
            cv2.remap(picture, self.maps[0], self.maps[1], kind, borderMode=cv2.BORDER_REPLICATE), np.uint8
        )


def lens_of(camera: Mapping[str, Any]) -> Lens | None:
    """The lens that a frame or its scene describes; None for one that bends nothing.

    Raises InputError for a camera that is no pinhole even without its bends, and for a model that is not known.
    """
    model = str(camera.get("camera_model") or "").upper()
    panorama = next((flag for flag in _OTHERS if camera.get(flag)), "")
    if panorama or (model and model not in (*_PINHOLES, *_FISHEYES)):
        raise InputError(f"camera model {model or panorama} is no pinhole; cut perspective views out of it first")
    is_fisheye = model in _FISHEYES or (not model and bool(camera.get("is_fisheye")))
    names = ("k1", "k2", "k3", "k4") if is_fisheye else _COEFFICIENTS
    coefficients = tuple(float(camera.get(name) or 0.0) for name in names)
    if is_fisheye:  # which bends also with coefficients of 0
        return Lens(coefficients, is_fisheye=True)
    if any(coefficients[5:]) and model != "FULL_OPENCV":
        raise InputError('k4 and more of a lens that is not named; say "camera_model": OPENCV_FISHEYE or FULL_OPENCV')
    return Lens(coefficients if any(coefficients[5:]) else coefficients[:5]) if any(coefficients) else None
