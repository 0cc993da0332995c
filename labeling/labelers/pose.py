"""Pose: keypoints of the people in a picture, and the skeleton as the model sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, field_validator

from labeling.labeler import AddedLater, Prepared, Row, RowError, required
from labeling.networks.batches import Inputs, Outputs
from labeling.networks.pretrained import (
    MEDIAPIPE,
    PretrainedLabeler,
    files_digest,
    mediapipe_file,
    mediapipe_solution,
    package_label,
)
from model.conditions import draw_skeleton
from model.pictures import Picture, encode_png

_FURTHER_MARGINS = (0.25, 0.5, 0.05)  # of further looks at a box
_FURTHER_CONFIDENCE = 0.2  # that there is a person, whom the detector of boxes saw already
_GRAY = 127

Points = list[dict[str, float]]  # x, y in pixels of the picture, score


class PoseLabeler(PretrainedLabeler):
    """33 points of each person that mediapipe finds in a person box, or 17 by a transformers keypoint model."""

    name = "pose"
    role = "pose"
    version = 1
    reads = ("images.image", "boxes.boxes", "boxes.names")
    packages = ("mmcv", "mediapipe")
    outputs = ("heatmaps",)
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
        """model: hub name or path of a ViTPose model, "" for mediapipe; dtype: what it computes in; people: at most so
        many, the largest first; confidence: least, that there is a person; margin: of a person's crop, as a share of
        the box; person: what the boxes call a person, in small or capital letters; of a detector whose classes have
        numbers only, that of a person ("0", or "LABEL_0" as transformers write it); looks: at a box in which
        mediapipe finds nobody, or one of another box, up to 4: the further ones are less sure and have the other
        boxes gray. New groups have 4."""

        people: int = Field(6, ge=1)
        confidence: float = Field(0.5, ge=0, le=1)
        margin: float = Field(0.25, ge=0)
        person: Annotated[tuple[str, ...], AddedLater()] = ("person",)
        looks: Annotated[int, AddedLater()] = Field(1, ge=1, le=1 + len(_FURTHER_MARGINS))

        @field_validator("person", mode="before")
        @classmethod
        def _as_texts(cls, person: Any) -> Any:
            return [str(one) for one in (person if isinstance(person, (list, tuple)) else [person])]

    parameters: Parameters

    @classmethod
    def first_parameters(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        return {} if given.get("model") else {"looks": 1 + len(_FURTHER_MARGINS)}

    @property
    def model(self) -> str:
        return self._network_label or f"pose_landmark_full, {package_label(MEDIAPIPE)}"

    def embedded_digest(self) -> str:
        files = ("pose_detection/pose_detection.tflite", "pose_landmark/pose_landmark_full.tflite")
        return files_digest(*(mediapipe_file(name) for name in files))

    def loader(self) -> Any:
        from transformers import VitPoseForPoseEstimation

        return VitPoseForPoseEstimation

    def load_embedded(self) -> None:
        self._network = self._of_confidence(self.parameters.confidence)
        self._less_sure = None
        if self.parameters.looks > 1:
            self._less_sure = self._of_confidence(min(self.parameters.confidence, _FURTHER_CONFIDENCE))

    def _of_confidence(self, confidence: float) -> Any:
        return mediapipe_solution("pose").Pose(
            static_image_mode=True, model_complexity=1, min_detection_confidence=confidence
        )

    def process(self, picture: Picture, **settings: Any) -> Inputs:
        whole = [np.array([[0.0, 0.0, picture.shape[1], picture.shape[0]]])]
        return super().process(picture, **{"boxes": whole, **settings})

    def prepare(self, row: Row) -> Prepared:
        picture, boxes = self._people(row)
        if not boxes:
            return Prepared(None, (picture.shape[:2], None))
        corners = np.stack([np.array([b[0], b[1], b[2] - b[0], b[3] - b[1]]) for b in boxes])
        inputs = dict(self.pixels_of(picture, boxes=[corners]))
        if getattr(self._config.backbone_config, "num_experts", 1) > 1:
            inputs["dataset_index"] = np.zeros(len(boxes), np.int64)  # COCO is the first expert
        return Prepared(inputs, (picture.shape[:2], corners))

    def finish(self, output: Any, context: Any) -> Row:
        size, corners = context
        if output is None:
            return _columns([], size)
        (people,) = self._processor.post_process_pose_estimation(Outputs(output), boxes=[corners])
        return _columns(
            [
                [
                    {"x": float(x), "y": float(y), "score": float(score)}
                    for (x, y), score in zip(person["keypoints"], person["scores"], strict=True)
                ]
                for person in people
            ],
            size,
        )

    def label_row(self, row: Row) -> Row:
        if self.has_network:
            return super().label_row(row)
        picture, boxes = self._people(row)
        # Without any box the whole image is tried, for people whom the detector overlooked. Where it detected other
        # things, this would put a person on a bird.
        whole = [] if row["boxes.boxes"] else [np.array([0.0, 0.0, picture.shape[1], picture.shape[0]])]
        further = self.parameters.looks - 1 if boxes else 0
        return _columns(self._mediapipe(picture, boxes or whole, further), picture.shape[:2])

    def _people(self, row: Row) -> tuple[Picture, list[NDArray[np.float64]]]:
        """The picture, and the boxes of people in it, the largest first."""
        required(row, "images.image")
        if row["boxes.boxes"] is None:
            raise RowError("no boxes: where people are is not known")
        classes = {_class_name(name) for name in self.parameters.person}
        names = [_class_name(name) for name in row["boxes.names"]]
        if names and all(name.isdecimal() for name in names) and not any(one.isdecimal() for one in classes):
            raise RowError(f"the boxes' classes are numbers ({', '.join(sorted(set(names)))}): set pose.person to one")
        boxes = [
            np.array([box[key] for key in ("x0", "y0", "x1", "y1")])
            for box, name in zip(row["boxes.boxes"], names, strict=True)
            if name in classes
        ]
        return row["images.image"], sorted(boxes, key=lambda box: -(box[2] - box[0]) * (box[3] - box[1]))[
            : self.parameters.people
        ]

    def _mediapipe(self, picture: Picture, boxes: list[NDArray[np.float64]], further: int) -> list[Points]:
        """At most one person per box, from a crop around it. further: looks, where the first has found nobody new."""
        people: list[Points] = []
        elsewhere: list[Points] = []  # in no box that they were looked for in: someone else's, or larger than the box
        for box in boxes:
            points = self._look(self._network, picture, box, self.parameters.margin)
            if points is not None and _is_another(points, people):
                if not further or _is_within(points, box):
                    people.append(points)
                    continue
                elsewhere.append(points)
            others = [other for other in boxes if other is not box]
            for margin in _FURTHER_MARGINS[:further]:
                points = self._look(self._less_sure, _without(picture, others, box), box, margin)
                if points is not None and _is_another(points, people) and _is_within(points, box):
                    people.append(points)
                    break
        for points in elsewhere:
            if len(people) < len(boxes) and _is_another(points, people):
                people.append(points)
        return people

    def _look(self, network: Any, picture: Picture, box: NDArray[np.float64], margin: float) -> Points | None:
        """The person in a crop around a box. margin: as a share of the box's longer side."""
        height, width = picture.shape[:2]
        around = margin * max(box[2] - box[0], box[3] - box[1])
        left, top = (int(max(0, value - around)) for value in box[:2])
        right, bottom = (int(min(limit, value + around)) for value, limit in zip(box[2:], (width, height), strict=True))
        crop, scale = _enlarged(picture[top:bottom, left:right])
        landmarks = network.process(crop).pose_landmarks
        if landmarks is None:
            return None
        across, down = crop.shape[1] / scale, crop.shape[0] / scale
        return [
            {"x": left + one.x * across, "y": top + one.y * down, "score": one.visibility} for one in landmarks.landmark
        ]


def _without(picture: Picture, others: list[NDArray[np.float64]], box: NDArray[np.float64]) -> Picture:
    """The picture with other boxes gray, but for what lies in this one."""
    hidden = picture.copy()
    for x0, y0, x1, y1 in np.array(others, int).reshape(-1, 4):
        hidden[y0:y1, x0:x1] = _GRAY
    x0, y0, x1, y1 = box.astype(int)
    hidden[y0:y1, x0:x1] = picture[y0:y1, x0:x1]
    return hidden


def _is_within(points: Points, box: NDArray[np.float64]) -> bool:
    """Whether the middle of a person lies in a box."""
    x, y = np.median([[point["x"], point["y"]] for point in points], axis=0)
    return bool(box[0] <= x <= box[2] and box[1] <= y <= box[3])


def _class_name(name: str) -> str:
    """A class as detectors write it, for comparison: "Person" and "person", "LABEL_0" and "0" are the same."""
    return name.strip().casefold().removeprefix("label_")


def _columns(people: list[Points], size: tuple[int, int]) -> Row:
    """size: (H, W) of the picture."""
    return {"keypoints": people, "skeleton": encode_png(draw_skeleton(people, size[1], size[0]))}


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
