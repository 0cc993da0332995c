"""Masks of what a SAM is told to cut out: the objects in boxes (SAM 2), or what words mean (SAM 3).

The image processors of these models need torchvision, which not every torch has beside it; what they do to a picture is
done here: resizing to a square, and scaling (`image_processing_sam2.py`, `image_processing_sam3.py` of transformers).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labeling.networks.batches import PixelScale
from model.pictures import Picture

BY_BOXES = ("sam2", "sam2_video")  # types of configurations; those of published weights are of the video models
BY_WORDS = ("sam3", "sam3_video")
_SIDES = {"boxes": 1024, "words": 1008}
_SCALES = {
    "boxes": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "words": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
_LONGEST_NAME = 32  # tokens


class MaskPrompts:
    """What goes into a SAM: pictures with boxes or words. kind: "boxes" or "words"."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        stated = _stated(folder)
        size = stated.get("size") or {}
        self.side = int(size.get("height", _SIDES[kind]) if isinstance(size, Mapping) else size)
        mean, std = _SCALES[kind]
        self.scale = PixelScale(
            float(stated.get("rescale_factor", 1 / 255)),
            tuple(stated.get("image_mean", mean)),
            tuple(stated.get("image_std", std)),
            fused=True,
        )
        self.tokenizer: Any = None
        if kind == "words":
            from transformers import AutoTokenizer

            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def with_boxes(self, picture: Picture, boxes: Sequence[Mapping[str, float]]) -> dict[str, NDArray[Any]]:
        """pixel_values (1, 3, S, S) uint8, input_boxes (1, N, 4) in pixels of the square."""
        height, width = picture.shape[:2]
        across, down = self.side / width, self.side / height
        corners = [(box["x0"] * across, box["y0"] * down, box["x1"] * across, box["y1"] * down) for box in boxes]
        return {"pixel_values": self._square(picture), "input_boxes": np.array([corners], np.float32)}

    def with_words(self, picture: Picture, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        """pixel_values (1, 3, S, S) uint8, input_ids and attention_mask (1, N, L)."""
        longest = min(_LONGEST_NAME, self.tokenizer.model_max_length)
        tokens = self.tokenizer(
            list(names), padding="max_length", max_length=longest, truncation=True, return_tensors="np"
        )
        words = {name: np.asarray(tokens[name], np.int64)[None] for name in ("input_ids", "attention_mask")}
        return {"pixel_values": self._square(picture), **words}

    def _square(self, picture: Picture) -> NDArray[np.uint8]:
        from PIL import Image

        resized = Image.fromarray(np.asarray(picture)).resize((self.side, self.side), Image.Resampling.BILINEAR)
        return np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1)[None])


def masks_in_boxes(network: Any, inputs: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """For each picture the masks (N, h, w), above 0 inside, and how good the model takes them to be (N,)."""
    outputs = network(**inputs, multimask_output=False)
    return [
        (masks[:, 0].float(), scores[:, 0].float())
        for masks, scores in zip(outputs.pred_masks, outputs.iou_scores, strict=True)
    ]


def masks_of_words(network: Any, inputs: Mapping[str, Any], threshold: float) -> list[tuple[Any, Any, list[int]]]:
    """For each picture the masks (M, h, w), above 0 inside, their scores (M,), and which name each is of.

    What the network sees of a picture is computed once, for all of its names.
    """
    import torch

    features = network.vision_encoder(inputs["pixel_values"])
    count = len(inputs["pixel_values"])
    by_row: list[list[tuple[Any, Any, int]]] = [[] for _ in range(count)]
    for index in range(inputs["input_ids"].shape[1]):
        outputs = network(
            vision_embeds=features,
            input_ids=inputs["input_ids"][:, index],
            attention_mask=inputs["attention_mask"][:, index],
        )
        scores = outputs.pred_logits.float().sigmoid()
        if outputs.presence_logits is not None:
            scores = scores * outputs.presence_logits.float().sigmoid()
        for number in range(count):
            kept = scores[number] > threshold
            by_row[number].append((outputs.pred_masks[number][kept].float(), scores[number][kept], index))
    return [
        (
            torch.cat([masks for masks, _, _ in own]),
            torch.cat([scores for _, scores, _ in own]),
            [index for masks, _, index in own for _ in range(len(masks))],
        )
        for own in by_row
    ]


def numbered(masks: Any, size: tuple[int, int]) -> NDArray[np.int16]:
    """(H, W) the number of the mask that each pixel belongs to, −1 for none; where several do, the smallest one.

    masks: (M, h, w) tensor, above 0 inside, of any resolution; size: (H, W).
    """
    import torch
    from torch.nn.functional import interpolate

    numbers = torch.full(size, -1, dtype=torch.int16, device=masks.device)
    if not len(masks):
        return numbers.cpu().numpy()
    order = (masks > 0).flatten(1).sum(1).argsort(descending=True, stable=True).tolist()
    for number in order:  # one after another: at the size of a picture all of them would be large
        whole = interpolate(masks[number][None, None], size, mode="bilinear", align_corners=False)[0, 0]
        numbers[whole > 0] = number
    return numbers.cpu().numpy()


def _stated(folder: Path) -> dict[str, Any]:
    """What a model's folder says of its image processor, in either place that transformers writes it to."""
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            stated = json.loads((folder / name).read_text())
            return dict(stated.get("image_processor", stated))
    return {}
