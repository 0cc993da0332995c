"""Photographs of lenses that bend lines: undistorted to a pinhole, the only camera whose rays are stored.

Lenses are described as nerfstudio, COLMAP and instant-ngp write them into a transforms.json, which all follow OpenCV
(https://docs.opencv.org, "Camera Calibration and 3D Reconstruction" and "Fisheye camera model").
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labeling.sources.normalize import EncodedImage
from model.inputs import InputError

_PINHOLES = ("PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "FULL_OPENCV", "PERSPECTIVE")
_FISHEYES = ("OPENCV_FISHEYE", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE", "FISHEYE")
_OTHERS = ("lonlat", "latlong")  # flags of instant-ngp for panoramas
_COEFFICIENTS = ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")  # in OpenCV's order
_LEAST_FOCAL = 0.13  # widths: a pinhole that sees 150 degrees across
_MOST_CHANGE = 4.0  # of the focal length: beyond it the coefficients are of another lens
_ROTATION = 1e-3  # by which a rotation may differ from one by rounding
_QUALITY = 95  # of a JPEG that is coded again


@dataclass(frozen=True)
class Lens:
    """How a lens bends. coefficients: k1, k2, p1, p2, k3 … of OpenCV, or k1 … k4 of a fisheye."""

    coefficients: tuple[float, ...]
    is_fisheye: bool = False

    def undistort(
        self, image: EncodedImage, intrinsics: NDArray[np.float64]
    ) -> tuple[EncodedImage, NDArray[np.float64]]:
        """The picture as a pinhole sees it, and that pinhole: the largest part without an empty border.

        intrinsics: (3, 3) for an image width of 1, also of the result. Raises InputError where the lens sees more than
        a pinhole can show.
        """
        import cv2

        from model.pictures import decode_picture

        cv2.setNumThreads(1)
        width, height = image.width, image.height
        seen = intrinsics * width / intrinsics[2, 2]
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
        source = decode_picture(image.encoded)
        picture = np.asarray(cv2.remap(source, *maps, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE), np.uint8)
        stored: NDArray[np.float64] = np.array(pinhole, np.float64)
        stored[:2, 2] += 0.5
        stored[:2] /= width
        return EncodedImage(_encode(picture, image.encoded), width, height), stored


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


def camera_to_world(matrix: Any) -> NDArray[np.float64]:
    """(4, 4) of the matrix of a frame, which may lack its last row and may be scaled, as programs of scenes write it.

    Raises InputError for what is no rotation and translation.
    """
    try:
        values = np.array(matrix, np.float64)
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.shape not in ((3, 4), (4, 4)) or not np.isfinite(values).all():
        raise InputError("transform_matrix is not 4 × 4 numbers")
    result = np.eye(4)
    result[:3] = values[:3]
    turn = result[:3, :3]
    off = np.abs(turn.T @ turn - np.eye(3)).max()
    if off > _ROTATION:
        lengths = np.linalg.norm(turn, axis=0)
        turn = turn / np.where(lengths > 0, lengths, 1)
        result[:3, :3] = turn
        off = np.abs(turn.T @ turn - np.eye(3)).max()
    if off > 10 * _ROTATION or np.linalg.det(turn) < 0:
        raise InputError("transform_matrix is no rotation and translation")
    return result


def _encode(picture: NDArray[np.uint8], source: bytes) -> bytes:
    """A photograph stays a JPEG, at little loss; what was coded without loss is so again."""
    from model.pictures import encode_png

    if not source.startswith(b"\xff\xd8"):
        return encode_png(picture)
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
    return buffer.getvalue()
