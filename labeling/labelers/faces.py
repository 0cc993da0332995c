"""Faces: where they are, five points of each, and 128 numbers that are close for pictures of the same person."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from labeling.labeler import Prepared, Row, required
from labeling.networks.batches import Outputs
from labeling.networks.pretrained import (
    MEDIAPIPE,
    PretrainedLabeler,
    files_digest,
    mediapipe_file,
    mediapipe_solution,
    package_file,
    package_label,
)
from model.pictures import Picture

PACKAGE = "face-recognition-models"
_MODULE = "face_recognition_models"
_POINTS = "models/shape_predictor_5_face_landmarks.dat"
_IDENTITY = "models/dlib_face_recognition_resnet_model_v1.dat"
_DETECTORS = (
    "face_detection/face_detection_short_range.tflite",
    "face_detection/face_detection_full_range_sparse.tflite",
)
_SHARED = 0.25  # of a tile that lies in its neighbor too, so that a face at a border is whole in one of them

Face = tuple[list[float], float]  # box in pixels (x0, y0, x1, y1), score
_BOX = pa.struct([("x0", pa.float32()), ("y0", pa.float32()), ("x1", pa.float32()), ("y1", pa.float32())])
_POINT = pa.struct([("x", pa.float32()), ("y", pa.float32())])


class FacesLabeler(PretrainedLabeler):
    """Faces, the largest first: found by mediapipe, or by a transformers detector; points and identity are dlib's.

    Two pictures are most likely of the same person where their embeddings are less than 0.6 apart.
    """

    name = "faces"
    role = "face detector"
    version = 1
    packages = ("mediapipe", "dlib")
    outputs = ("logits", "pred_boxes")
    schema = pa.schema(
        [
            ("boxes", pa.list_(_BOX)),
            ("scores", pa.list_(pa.float32())),
            ("landmarks", pa.list_(pa.list_(_POINT))),
            ("embeddings", pa.list_(pa.list_(pa.float32()))),
        ]
    )

    class Parameters(PretrainedLabeler.Parameters):
        """model: hub name or path of a transformers detector whose every class is a face, "" for mediapipe; dtype: what
        it computes in; threshold: least score; tiles: pieces across and down in which small faces are looked for
        besides the whole picture, 1 for none; least_side: pixels of a face, below which it is left out; most: faces."""

        threshold: float = Field(0.75, ge=0, le=1)  # leaves and a panda had 0.7, people 0.88 and more
        tiles: int = Field(3, ge=1, le=4)
        least_side: int = Field(16, ge=4)
        most: int = Field(20, ge=1)

    parameters: Parameters

    def __init__(self, group: str, parameters: Any) -> None:
        super().__init__(group, parameters)
        self._points: Any = None
        self._identity: Any = None

    @property
    def model(self) -> str:
        return f"{self._network_label or f'face_detection, {package_label(MEDIAPIPE)}'}; {package_label(PACKAGE)}"

    def weights_digest(self) -> str:
        detectors = super().weights_digest()
        return detectors + files_digest(package_file(_MODULE, _POINTS), package_file(_MODULE, _IDENTITY))

    def embedded_digest(self) -> str:
        return files_digest(*(mediapipe_file(name) for name in _DETECTORS))

    def loader(self) -> Any:
        from transformers import AutoModelForObjectDetection

        return AutoModelForObjectDetection

    def load_processor(self) -> None:
        super().load_processor()
        if self._points is None:
            import dlib

            self._points = dlib.shape_predictor(str(package_file(_MODULE, _POINTS)))
            self._identity = dlib.face_recognition_model_v1(str(package_file(_MODULE, _IDENTITY)))

    def load_embedded(self) -> None:
        solution = mediapipe_solution("face_detection")
        # One model knows faces of people near the camera, the other those up to five meters away.
        self._network = [
            solution.FaceDetection(model_selection=number, min_detection_confidence=self.parameters.threshold)
            for number in (0, 1)
        ]

    def prepare(self, row: Row) -> Prepared:
        required(row, "images.image")
        picture = np.asarray(row["images.image"])
        return Prepared(self.pixels_of(picture), picture)  # points and identity are of the picture itself

    def finish(self, output: Any, context: Any) -> Row:
        (result,) = self._processor.post_process_object_detection(
            Outputs(output), threshold=self.parameters.threshold, target_sizes=[context.shape[:2]]
        )
        detections = [
            (box.tolist(), float(score)) for box, score in zip(result["boxes"], result["scores"], strict=True)
        ]
        return self._columns(detections, context)

    def label_row(self, row: Row) -> Row:
        if self.has_network:
            return super().label_row(row)
        required(row, "images.image")
        picture = np.ascontiguousarray(row["images.image"])
        return self._columns(self._detect(picture), picture)

    def _detect(self, picture: Picture) -> list[Face]:
        faces: list[Face] = []
        for left, top, right, bottom in _windows(picture.shape[1], picture.shape[0], self.parameters.tiles):
            window = np.ascontiguousarray(picture[top:bottom, left:right])
            across, down = right - left, bottom - top
            for detector in self._network:
                for one in detector.process(window).detections or ():
                    box = one.location_data.relative_bounding_box
                    x0, y0 = left + box.xmin * across, top + box.ymin * down
                    corners = [x0, y0, x0 + box.width * across, y0 + box.height * down]
                    faces.append((corners, float(one.score[0])))
        return faces

    def _columns(self, faces: list[Face], picture: Picture) -> Row:
        import dlib

        picture = np.ascontiguousarray(picture)
        kept = _keep(faces, picture.shape[1], picture.shape[0], self.parameters)
        landmarks, embeddings = [], []
        for box, _ in kept:
            points = self._points(picture, dlib.rectangle(*(round(value) for value in box)))
            landmarks.append([{"x": float(point.x), "y": float(point.y)} for point in points.parts()])
            embeddings.append(np.asarray(self._identity.compute_face_descriptor(picture, points, 0), np.float32))
        return {
            "boxes": [dict(zip(("x0", "y0", "x1", "y1"), box, strict=True)) for box, _ in kept],
            "scores": [score for _, score in kept],
            "landmarks": landmarks,
            "embeddings": embeddings,
        }


def _windows(width: int, height: int, tiles: int) -> list[tuple[int, int, int, int]]:
    """The whole picture, and tiles that overlap."""
    windows = [(0, 0, width, height)]
    if tiles > 1:
        across, down = (round(side * (1 + _SHARED) / tiles) for side in (width, height))
        for row in range(tiles):
            for column in range(tiles):
                left = round(column * (width - across) / (tiles - 1))
                top = round(row * (height - down) / (tiles - 1))
                windows.append((left, top, left + across, top + down))
    return [one for one in windows if one[2] - one[0] >= 8 and one[3] - one[1] >= 8]


def _keep(faces: list[Face], width: int, height: int, parameters: FacesLabeler.Parameters) -> list[Face]:
    """The surest of boxes that are of one face, inside the picture; the largest first."""
    kept: list[Face] = []
    for corners, score in sorted(faces, key=lambda one: -one[1]):
        x0, y0, x1, y1 = corners
        box = [max(0.0, x0), max(0.0, y0), min(float(width), x1), min(float(height), y1)]
        if score < parameters.threshold or min(box[2] - box[0], box[3] - box[1]) < parameters.least_side:
            continue
        if all(_shared(np.array(box), np.array(other)) <= 0.5 for other, _ in kept):
            kept.append((box, score))
    kept.sort(key=lambda one: -(one[0][2] - one[0][0]) * (one[0][3] - one[0][1]))
    return kept[: parameters.most]


def _shared(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """What two boxes share, of the smaller one: a tile may have seen a part of a face."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    least = min(float(np.prod(a[2:] - a[:2])), float(np.prod(b[2:] - b[:2])))
    return float(np.prod(sides.clip(0))) / least
