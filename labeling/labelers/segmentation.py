"""Segmentation: the pixels of each object, with class names and colors.

Which objects: those of the detected boxes, those that a model has classes for, or what words say.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from labeling.labeler import AddedLater, Prepared, Row, RowError, required
from labeling.networks.batches import in_batches, parts
from labeling.networks.box_masks import BoxMasks
from labeling.networks.pretrained import (
    MEDIAPIPE,
    PretrainedLabeler,
    files_digest,
    mediapipe_file,
    package_label,
)
from labeling.networks.prompted_masks import (
    BY_BOXES,
    BY_WORDS,
    MaskPrompts,
    masks_in_boxes,
    masks_of_words,
    numbered,
)
from labeling.networks.words import NamesParameters, names_of, reads_with
from model.inputs import InputError
from model.pictures import Picture, encode_png
from model.prompts import draw_colors

_PERSON = "person"
_NOTHING = ("background", "unlabeled", "void", "N/A")  # classes of some models that mean no class
_SEGMENT = ("id", "label_id", "score")  # what is used of a processor's segments_info
_CLASSES = 10  # of a picture (docs/paper.md, One-Gen)
_LEAST_SHARE = 0.0005  # of the picture: smaller regions are noise


class SegmentationLabeler(PretrainedLabeler):
    """People by mediapipe inside their boxes, every other object by GrabCut inside its box, unless a model is named."""

    name = "segmentation"
    role = "segmenter"
    version = 1  # of labels by a model that is named
    reads: tuple[str, ...] = ("images.image", "boxes.boxes", "boxes.names")
    packages = ("mmcv", "mediapipe")
    schema = pa.schema([("mask", pa.binary()), ("names", pa.list_(pa.string())), ("colors", pa.list_(pa.string()))])

    class Parameters(PretrainedLabeler.Parameters, NamesParameters):
        """model: hub name or path of a transformers segmentation model, "" for the embedded way; dtype: what it
        computes in; kind: which regions a model is asked for, "" for single things or, of a model that cannot tell them
        apart, classes of pixels; "boxes" for the objects in the boxes, of a SAM 2; "words" for what `names` or
        `names_from` say, of a SAM 3; working_side: pixels of the longer side that GrabCut works at; iterations: of
        GrabCut; threshold: least share of person in a pixel, or least score of a segment; full_people: whether people
        are looked at in the full picture, which finds small ones, and cut out by GrabCut where mediapipe finds nobody;
        new groups without a model have it."""

        kind: Literal["", "instance", "panoptic", "semantic", "boxes", "words"] = ""
        working_side: int = Field(320, ge=32)
        iterations: int = Field(4, ge=1)
        threshold: float = Field(0.5, ge=0, le=1)
        full_people: Annotated[bool, AddedLater()] = False

    parameters: Parameters

    @classmethod
    def first_parameters(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        return {} if given.get("model") else {"full_people": True}

    def __init__(self, group: str, parameters: BaseModel) -> None:
        super().__init__(group, parameters)
        own = self.parameters
        if own.are_named != (own.kind == "words"):
            raise InputError(f"{group}.names: names or names_from go with kind words, for a SAM 3")
        if own.kind in ("boxes", "words") and not own.model:
            raise InputError(f"{group}.kind: {own.kind} need a model; set model too")
        if own.model:
            self.reads = ("images.image",) if own.kind != "boxes" else type(self).reads
            self.reads = reads_with(self.reads, own)
        else:
            self.version = 2  # GrabCut sees the surroundings of a box only
        self._prompts: MaskPrompts | None = None

    @property
    def model(self) -> str:
        import cv2

        embedded = f"selfie_segmentation, {package_label(MEDIAPIPE)}; GrabCut, opencv {cv2.__version__}"
        return self._network_label or embedded

    def embedded_digest(self) -> str:
        return files_digest(mediapipe_file("selfie_segmentation/selfie_segmentation.tflite"))

    @property
    def _is_universal(self) -> bool:
        """Whether the model tells objects of a class apart; others give the class of each pixel."""
        from transformers import MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING

        return type(self._config) in MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING

    @property
    def _kind(self) -> str:
        return self.parameters.kind or ("instance" if self._is_universal else "semantic")

    def loader(self) -> Any:
        from transformers import AutoModelForSemanticSegmentation, AutoModelForUniversalSegmentation

        if self._config.model_type in BY_BOXES:
            from transformers import Sam2Model

            return Sam2Model
        if self._config.model_type in BY_WORDS:
            from transformers import Sam3Model

            return Sam3Model
        return AutoModelForUniversalSegmentation if self._is_universal else AutoModelForSemanticSegmentation

    def processor_of(self, folder: Path) -> Any:
        kind = self._config.model_type
        prompts = "boxes" if kind in BY_BOXES else "words" if kind in BY_WORDS else ""
        if prompts != (self.parameters.kind if self.parameters.kind in ("boxes", "words") else ""):
            raise InputError(
                f"{self.group}.kind: this model cuts out what it is told to; set it to {prompts}"
                if prompts
                else f"{self.group}.kind: {self.parameters.kind} are not what this model takes; name a SAM"
            )
        if not prompts:
            return super().processor_of(folder)
        self._prompts = MaskPrompts(prompts, folder)
        return None

    def load_processor(self) -> None:
        super().load_processor()
        if self._prompts is not None:
            self._scale = self._prompts.scale
        elif self.has_network and not hasattr(self._processor, f"post_process_{self._kind}_segmentation"):
            raise InputError(f"segmentation.kind: {self._kind} regions are not what this model gives; take semantic")

    def load_embedded(self) -> None:
        own = self.parameters
        self._boxes = BoxMasks(own.working_side, own.iterations, own.threshold, own.full_people)

    def prepare(self, row: Row) -> Prepared:
        required(row, "images.image")
        picture = row["images.image"]
        if self._prompts is None:
            return Prepared((self.pixels_of(picture), picture.shape[:2]), (row["id"], None))
        if self.parameters.kind == "words":
            names = names_of(row, self.parameters)
            given = self._prompts.with_words(picture, names) if names else None
        else:
            required(row, "boxes.boxes")
            names = list(row["boxes.names"])
            given = self._prompts.with_boxes(picture, row["boxes.boxes"]) if names else None
        return Prepared((given, picture.shape[:2]), (row["id"], names))

    def infer(self, inputs: list[Any]) -> list[Any]:
        """For each row the number of the segment of each pixel, in the smallest type, and what the segments are.

        The device finds the segments: masks of all that a network asks for would be a hundred times as much to send.
        """
        results: list[Any] = [(np.full(size, -1, np.int16), []) for _, size in inputs]
        indices = [index for index, (given, _) in enumerate(inputs) if given is not None]
        computed = in_batches(
            [inputs[index][0] for index in indices],
            self.device,
            self._segments if self._prompts is None else self._told_segments,
            [inputs[index][1] for index in indices],
        )
        for index, segments in zip(indices, computed, strict=True):
            results[index] = segments
        return results

    def finish(self, output: Any, context: Any) -> Row:
        identity, names = context
        called = self._config.id2label if names is None else dict(enumerate(names))
        numbers, segments = output
        return _columns(self._regions(numbers, segments, called), numbers.shape, identity)

    def label_row(self, row: Row) -> Row:
        if self.has_network:
            return super().label_row(row)
        required(row, "images.image")
        picture = np.asarray(row["images.image"])
        if row["boxes.boxes"] is None:
            raise RowError("no boxes: the objects to segment are not known")
        return _columns(self._cut_out(picture, row["boxes.boxes"], row["boxes.names"]), picture.shape[:2], row["id"])

    def _cut_out(
        self, picture: Picture, boxes: list[dict[str, float]], names: list[str]
    ) -> list[tuple[NDArray[np.bool_], str]]:
        corners = [tuple(box[key] for key in ("x0", "y0", "x1", "y1")) for box in boxes]
        masks = self._boxes.of(picture, [(one, name == _PERSON) for one, name in zip(corners, names, strict=True)])
        return [(mask, name) for mask, name in zip(masks, names, strict=True) if _share(mask) >= _LEAST_SHARE]

    def _segments(
        self, batch: dict[str, Any], counts: list[int], sizes: list[tuple[int, int]]
    ) -> list[tuple[NDArray[Any], list[dict[str, Any]]]]:
        import torch

        outputs = self.compute(batch)
        post_process = getattr(self._processor, f"post_process_{self._kind}_segmentation")
        results = []
        for part, size in zip(parts(outputs, counts), sizes, strict=True):
            if self._kind == "semantic":
                (numbers,) = post_process(part, target_sizes=[size])
                segments: list[dict[str, Any]] = []
            else:
                (result,) = post_process(part, threshold=self.parameters.threshold, target_sizes=[size])
                numbers, segments = result["segmentation"], result["segments_info"]
            # Numbers are those of classes or queries, −1 for none.
            results.append(
                (numbers.to(torch.int16).cpu().numpy(), [{key: one[key] for key in _SEGMENT} for one in segments])
            )
        return results

    def _told_segments(
        self, batch: dict[str, Any], counts: list[int], sizes: list[tuple[int, int]]
    ) -> list[tuple[NDArray[Any], list[dict[str, Any]]]]:
        given, results = self.prepared(batch), []
        if self.parameters.kind == "words":
            masks_by_row = masks_of_words(self._network, given, self.parameters.threshold)
        else:
            masks_by_row = [
                (masks, scores, list(range(len(masks)))) for masks, scores in masks_in_boxes(self._network, given)
            ]
        for (masks, scores, labels), size in zip(masks_by_row, sizes, strict=True):
            listed = zip(labels, scores.tolist(), strict=True)
            segments = [
                {"id": number, "label_id": label, "score": score} for number, (label, score) in enumerate(listed)
            ]
            results.append((numbered(masks, size), segments))
        return results

    def _regions(
        self, numbers: NDArray[Any], segments: list[dict[str, Any]], names: Mapping[int, str]
    ) -> list[tuple[NDArray[np.bool_], str]]:
        if self._kind == "semantic":
            regions = [(numbers == label, str(names[int(label)])) for label in np.unique(numbers)]
            regions.sort(key=lambda one: -np.count_nonzero(one[0]))
        else:
            surest = sorted(segments, key=lambda one: -one["score"])
            regions = [(numbers == one["id"], str(names[one["label_id"]])) for one in surest]
        regions = [
            (region, name) for region, name in regions if name not in _NOTHING and _share(region) >= _LEAST_SHARE
        ]
        kept = list(dict.fromkeys(name for _, name in regions))[:_CLASSES]  # the surest, or the largest
        return [(region, name) for region, name in regions if name in kept]


def _columns(regions: list[tuple[NDArray[np.bool_], str]], size: tuple[int, int], identity: str) -> Row:
    """The columns of a picture of (H, W) pixels, of the regions of its objects, each with its class."""
    import cv2

    classes = list(dict.fromkeys(name for _, name in regions))
    mask = np.zeros(size, np.uint8)
    for region, name in sorted(regions, key=lambda one: -np.count_nonzero(one[0])):  # small ones stay on top
        np.putmask(mask, region, classes.index(name) + 1)
    pixels = [np.count_nonzero(mask == index + 1) for index in range(len(classes))]
    shown = [name for name, count in zip(classes, pixels, strict=True) if count / mask.size >= _LEAST_SHARE]
    numbers = np.zeros(256, np.uint8)
    for name in shown:
        numbers[classes.index(name) + 1] = shown.index(name) + 1
    colors = draw_colors(shown, f"{identity} segmentation")
    return {"mask": encode_png(cv2.LUT(mask, numbers)), "names": shown, "colors": [colors[name] for name in shown]}


def _share(region: NDArray[np.bool_]) -> float:
    """A region's share of the picture. Its pixels are counted: a mean of booleans takes ten times as long."""
    return np.count_nonzero(region) / region.size
