"""Quality: size, sharpness, traces of JPEG blocks and light by arithmetic; the share of text and decency by networks in
packages, where they are asked for; beauty, decency and watermarks by models by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from labeling import labeler
from labeling.labeler import AddedLater, Labeler, Prepared, Row, RowError, required
from labeling.networks.batches import as_inputs, in_batches
from labeling.networks.packaged import Indecency, TextShare
from labeling.networks.pretrained import TORCH_TYPES, Dtype, files_digest
from model.inputs import InputError
from model.pictures import Picture
from model.weights import model_folder, weights_digest

_SIDE = 512  # pixels of the longer side that sharpness and light are measured at, whatever the picture's size
_BLOCK = 8  # pixels of a block of JPEG
_UNSAFE = re.compile(r"nsfw|porn|hentai|sexy|explicit|unsafe|nude", re.IGNORECASE)
_MARKED = re.compile(r"^(?!.*\b(?:no|not|non|without|un)\b)(?!.*(?:no|un)[-_]?water).*watermark", re.IGNORECASE)
PACKAGED = "packaged"  # what stands for the embedded model in the place of a name


class QualityLabeler(Labeler):
    """Numbers to select pictures by. What no model is named for is null, or has no column."""

    name = "quality"
    version = 1
    packages = ("mmcv",)
    schema = pa.schema(
        [
            ("pixels", pa.int64()),
            ("sharpness", pa.float32()),
            ("blockiness", pa.float32()),
            ("brightness", pa.float32()),
            ("contrast", pa.float32()),
            ("colorfulness", pa.float32()),
            ("aesthetic", pa.float32()),
            ("nsfw", pa.float32()),
        ]
    )
    batch_size = 16

    class Parameters(labeler.Parameters):
        """aesthetic: hub name or path of a transformers image classifier with one output, a score as it was trained, or
        several classes "1" … "10", whose mean it is then; nsfw: of one whose classes say what is not safe for work, or
        "packaged" for Yahoo's open_nsfw; unsafe: those of its classes whose probabilities are added up, found by their
        names where none is given; watermark: of one that knows watermarked pictures, with a column of its own; marked:
        its classes; text: whether to look for text, for the column text_share; dtype: what the named models compute
        in."""

        aesthetic: str = ""
        nsfw: str = ""
        unsafe: tuple[str, ...] = ()
        watermark: Annotated[str, AddedLater()] = ""
        marked: Annotated[tuple[str, ...], AddedLater()] = ()
        text: Annotated[bool, AddedLater()] = False
        dtype: Dtype = "fp32"

    parameters: Parameters

    def __init__(self, group: str, parameters: Any) -> None:
        super().__init__(group, parameters)
        own = self.parameters
        named = {"aesthetic": own.aesthetic, "nsfw": own.nsfw, "watermark": own.watermark}
        self._packaged: dict[str, type[TextShare | Indecency]] = {}
        if own.nsfw == PACKAGED:
            named["nsfw"], self._packaged["nsfw"] = "", Indecency
        added = [("watermark", pa.float32())] if own.watermark else []
        if own.text:
            self._packaged["text_share"] = TextShare
            added.append(("text_share", pa.float32()))
        if added:  # shards of before have no such columns
            self.schema = pa.schema([*type(self).schema, *added])
        self._named = {score: name for score, name in named.items() if name}
        self._measures: dict[str, Callable[[Picture], float]] = {}
        self._processors: dict[str, Any] = {}
        self._configs: dict[str, Any] = {}
        self._networks: dict[str, Any] = {}

    @classmethod
    def first_parameters(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """The packaged networks, where their packages are installed."""
        installed = {"text": TextShare.is_installed(), "nsfw": Indecency.is_installed()}
        values = {"text": True, "nsfw": PACKAGED}
        return {name: value for name, value in values.items() if installed[name]}

    @property
    def has_network(self) -> bool:
        return bool(self._named)

    @property
    def model(self) -> str:
        models = [f"{score} {weights_digest(self._folder(score))[:8]}" for score in self._named]
        return ", ".join(["arithmetic", *models, *(packaged.model() for packaged in self._packaged.values())])

    def weights_digest(self) -> str:
        named = "".join(weights_digest(self._folder(score)) for score in self._named)
        return named + "".join(files_digest(packaged.weights()) for packaged in self._packaged.values())

    def _folder(self, score: str) -> Path:
        return model_folder(self._named[score], f"{score} model")

    def load_processor(self) -> None:
        import cv2

        cv2.setNumThreads(1)
        self._measures = self._measures or {score: packaged() for score, packaged in self._packaged.items()}
        if not self._named or self._processors:
            return
        import torch
        from transformers import AutoConfig, AutoImageProcessor

        torch.set_num_threads(1)
        for score in self._named:
            folder = self._folder(score)
            self._configs[score] = AutoConfig.from_pretrained(folder, local_files_only=True)
            self._processors[score] = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        for score in {"nsfw", "watermark"} & self._processors.keys():
            self._classes(score)

    def load(self) -> None:
        self.load_processor()
        if not self._named or self._networks:
            return
        from transformers import AutoModelForImageClassification

        for score in self._named:
            network = AutoModelForImageClassification.from_pretrained(
                self._folder(score),
                local_files_only=True,
                use_safetensors=True,
                dtype=TORCH_TYPES[self.parameters.dtype],
            )
            self._networks[score] = network.to(self.device).eval()

    def prepare(self, row: Row) -> Prepared:
        required(row, "images.image")
        picture = np.asarray(row["images.image"])
        inputs = {
            score: as_inputs(processor(images=picture, return_tensors="pt", input_data_format="channels_last"))
            for score, processor in self._processors.items()
        }
        return Prepared(inputs, self._measure(picture))

    def infer(self, inputs: list[Any]) -> list[Any]:
        outputs: list[dict[str, NDArray[np.float32]]] = [{} for _ in inputs]
        for score, network in self._networks.items():

            def run(batch: Any, _counts: Any, network: Any = network) -> list[Any]:
                pixels = batch["pixel_values"].to(network.dtype)
                return list(network(pixel_values=pixels).logits.float().cpu().numpy())

            for output, logits in zip(
                outputs, in_batches([one[score] for one in inputs], self.device, run), strict=True
            ):
                output[score] = logits
        return outputs

    def finish(self, output: Any, context: Any) -> Row:
        scores = {}
        for score, logits in output.items():
            if score == "aesthetic":
                scores[score] = self._aesthetic(logits)
            else:
                shares = _shares(logits)
                scores[score] = float(sum(shares[number] for number in self._classes(score)))
        return {**context, **scores}

    def label_row(self, row: Row) -> Row:
        if self.has_network:
            return super().label_row(row)
        required(row, "images.image")
        return self._measure(np.asarray(row["images.image"]))

    def _measure(self, picture: Picture) -> Row:
        """What needs no named model."""
        found = {score: packaged(picture) for score, packaged in self._measures.items()}
        return {**measure(picture), "aesthetic": None, "nsfw": None, **found}

    def _aesthetic(self, logits: NDArray[np.float32]) -> float:
        if len(logits) == 1:
            return float(logits[0])
        marks = [re.search(r"\d+(\.\d+)?", str(name)) for name in self._configs["aesthetic"].id2label.values()]
        if not all(marks):
            raise RowError("the aesthetic model has classes without numbers: name one with one output")
        values = np.array([float(mark.group()) for mark in marks if mark])
        return float((_shares(logits) * values).sum())

    def _classes(self, score: str) -> list[int]:
        """The classes of a named model that count: what is not safe, or is watermarked. Raises InputError for none."""
        names = {int(number): str(name) for number, name in self._configs[score].id2label.items()}
        if score == "nsfw":
            parameter, wanted, pattern = "unsafe", self.parameters.unsafe, _UNSAFE
        else:
            parameter, wanted, pattern = "marked", self.parameters.marked, _MARKED
        found = [number for number, name in names.items() if (name in wanted if wanted else pattern.search(name))]
        if not found or (wanted and len(found) != len(wanted)):
            raise InputError(
                f"{self.group}.{parameter}: the model's classes are {', '.join(names.values())}; name some of them"
            )
        return found


def measure(picture: Picture) -> dict[str, float | int]:
    """What arithmetic says of a (H, W, 3) picture.

    sharpness: how much of its edges a blur takes away, 0 for a picture that is as blurred already, … 1 (Crete et al.
    2007, "The blur effect", 1 minus it); blockiness: mean difference of levels across the borders of JPEG's blocks over
    that beside them, minus 1, 0 where there are none; brightness, contrast: mean and deviation of light, 0 … 1;
    colorfulness: of Hasler & Süsstrunk (2003), 0 for gray, about 1 for a very colorful picture.
    """
    import cv2
    import mmcv

    height, width = picture.shape[:2]
    small = np.asarray(picture)
    if max(height, width) > _SIDE:
        small = np.asarray(mmcv.imrescale(small, (_SIDE, _SIDE), interpolation="area"))
    light = np.asarray(cv2.cvtColor(np.ascontiguousarray(small), cv2.COLOR_RGB2GRAY), np.float32)
    red, green, blue = (small[..., channel].astype(np.float32) for channel in range(3))
    first, second = red - green, (red + green) / 2 - blue
    spread = np.hypot(first.std(), second.std()) + 0.3 * np.hypot(first.mean(), second.mean())
    return {
        "pixels": height * width,
        "sharpness": _sharpness(light),
        "blockiness": _blockiness(np.asarray(picture)),
        "brightness": float(light.mean() / 255),
        "contrast": float(light.std() / 127.5),
        "colorfulness": float(spread / 109),
    }


def _sharpness(light: NDArray[np.float32]) -> float:
    """1 minus the larger of the blur effects across and down, each the share of variation that a blur leaves."""
    import cv2

    left = 0.0
    for axis in (0, 1):
        if light.shape[axis] < 3:
            continue
        kernel = (1, 9) if axis == 0 else (9, 1)  # (width, height)
        blurred = cv2.blur(light, kernel, borderType=cv2.BORDER_REFLECT_101)
        before, after = (np.abs(np.diff(one, axis=axis)) for one in (light, blurred))
        total = float(before.sum())
        if total == 0:
            return 0.0
        left = max(left, float(total - np.maximum(0, before - after).sum()) / total)
    return 1 - left


def _blockiness(picture: Picture) -> float:
    """Of the picture's own pixels, since blocks lie where the file has them."""
    light = picture.astype(np.float32).mean(axis=2)
    shares = []
    for axis in (0, 1):
        steps = np.abs(np.diff(light, axis=axis)).mean(axis=1 - axis)  # of one line of pixels to the next
        at = np.arange(len(steps)) % _BLOCK
        border, beside = steps[at == _BLOCK - 1], steps[(at != _BLOCK - 1) & (at != 0) & (at != _BLOCK - 2)]
        if len(border) and len(beside):
            shares.append(float(border.mean() / max(float(beside.mean()), 0.25)))
    return max(0.0, float(np.mean(shares)) - 1) if shares else 0.0


def _shares(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    powers = np.exp(logits.astype(np.float64) - logits.max())
    return powers / powers.sum()
