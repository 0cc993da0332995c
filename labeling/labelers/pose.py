"""Pose: keypoints of the people in a picture, and the skeleton as the model sees it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from labeling.labeler import Row, RowError, required
from labeling.pretrained import (
    MEDIAPIPE,
    PretrainedLabeler,
    files_digest,
    mediapipe_file,
    mediapipe_solution,
    package_label,
)
from model.conditions import draw_skeleton
from model.pictures import Picture, encode_png

Points = list[dict[str, float]]  # x, y in pixels of the picture, score


class PoseLabeler(PretrainedLabeler):
    """33 points of each person that mediapipe finds in a person box, or 17 by a transformers keypoint model."""

    name = "pose"
    role = "pose"
    version = 1
    reads = ("images.image", "boxes.boxes", "boxes.names")
    packages = ("mmcv", "mediapipe")
    schema = pa.schema(
        [
            (
                "keypoints",
                pa.list_(pa.list_(pa.struct([("x", pa.float32()), ("y", pa.float32()), ("score", pa.float32())]))),
            ),
            ("skeleton", pa.binary()),
        ]
    )

    class Parameters(PretrainedLabeler.Parameters):
        """model: hub name or path of a ViTPose model, "" for mediapipe; people: at most so many, the largest first;
        confidence: least, that there is a person; margin: of a person's crop, as a share of the box."""

        people: int = Field(6, ge=1)
        confidence: float = Field(0.5, ge=0, le=1)
        margin: float = Field(0.25, ge=0)

    parameters: Parameters

    @property
    def model(self) -> str:
        return self._network_label or f"pose_landmark_full, {package_label(MEDIAPIPE)}"

    def embedded_digest(self) -> str:
        files = ("pose_detection/pose_detection.tflite", "pose_landmark/pose_landmark_full.tflite")
        return files_digest(*(mediapipe_file(name) for name in files))

    def load(self) -> None:
        import cv2

        cv2.setNumThreads(1)
        if not self.parameters.model:
            self._network = mediapipe_solution("pose").Pose(
                static_image_mode=True, model_complexity=1, min_detection_confidence=self.parameters.confidence
            )
            return
        from transformers import AutoImageProcessor, VitPoseForPoseEstimation

        self._processor = AutoImageProcessor.from_pretrained(self.model_folder(), local_files_only=True)
        self.load_network(VitPoseForPoseEstimation)

    def label_row(self, row: Row) -> Row:
        required(row, "images.image")
        picture = row["images.image"]
        if row["boxes.boxes"] is None:
            raise RowError("no boxes: where people are is not known")
        height, width = picture.shape[:2]
        boxes = [
            np.array([box[key] for key in ("x0", "y0", "x1", "y1")])
            for box, name in zip(row["boxes.boxes"], row["boxes.names"], strict=True)
            if name == "person"
        ]
        boxes = sorted(boxes, key=lambda box: -(box[2] - box[0]) * (box[3] - box[1]))[: self.parameters.people]
        if self._processor is not None:
            people = self._vitpose(picture, boxes)
        else:
            # Without any box the whole image is tried, for people whom the detector overlooked. Where it detected other
            # things, this would put a person on a bird.
            whole = [] if row["boxes.boxes"] else [np.array([0.0, 0.0, width, height])]
            people = self._mediapipe(picture, boxes or whole)
        return {"keypoints": people, "skeleton": encode_png(draw_skeleton(people, width, height))}

    def _mediapipe(self, picture: Picture, boxes: list[NDArray[np.float64]]) -> list[Points]:
        """At most one person per box, from a crop around it."""
        height, width = picture.shape[:2]
        people: list[Points] = []
        for box in boxes:
            margin = self.parameters.margin * max(box[2] - box[0], box[3] - box[1])
            left, top = (int(max(0, value - margin)) for value in box[:2])
            right, bottom = (
                int(min(limit, value + margin)) for value, limit in zip(box[2:], (width, height), strict=True)
            )
            crop, scale = _enlarged(picture[top:bottom, left:right])
            landmarks = self._network.process(crop).pose_landmarks
            if landmarks is None:
                continue
            across, down = crop.shape[1] / scale, crop.shape[0] / scale
            points = [
                {"x": left + one.x * across, "y": top + one.y * down, "score": one.visibility}
                for one in landmarks.landmark
            ]
            if _is_another(points, people):
                people.append(points)
        return people

    def _vitpose(self, picture: Picture, boxes: list[NDArray[np.float64]]) -> list[Points]:
        import torch

        if not boxes:
            return []
        corners = np.stack([np.array([b[0], b[1], b[2] - b[0], b[3] - b[1]]) for b in boxes])
        inputs = self._processor(picture, boxes=[corners], return_tensors="pt", input_data_format="channels_last")
        if getattr(self._network.config.backbone_config, "num_experts", 1) > 1:
            inputs["dataset_index"] = torch.zeros(len(boxes), dtype=torch.int64)  # COCO is the first expert
        with torch.no_grad():
            outputs = self._network(**inputs.to(self._network.device))
        (people,) = self._processor.post_process_pose_estimation(outputs, boxes=[corners])
        return [
            [
                {"x": float(x), "y": float(y), "score": float(score)}
                for (x, y), score in zip(person["keypoints"], person["scores"], strict=True)
            ]
            for person in people
        ]


def _enlarged(crop: Picture) -> tuple[Picture, float]:
    """Small crops enlarged to 256 pixels: mediapipe finds few people in pictures below that."""
    import mmcv

    scale = max(1.0, 256 / max(crop.shape[:2]))
    if scale > 1:
        crop = mmcv.imrescale(crop, scale, interpolation="bilinear")
    return np.ascontiguousarray(crop), scale


def _is_another(points: Points, people: list[Points]) -> bool:
    """Whether a person is not one that an overlapping crop has given already."""
    mine = np.array([(point["x"], point["y"]) for point in points])
    size = np.ptp(mine, axis=0).max()
    return all(
        np.abs(mine - np.array([(point["x"], point["y"]) for point in other])).mean() > 0.1 * size for other in people
    )
