"""What a call of the pipeline gives: pictures, and the labels read back from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from numpy.typing import NDArray
from torch import Tensor

from model.readback import read_boxes, read_depth, read_keypoints, read_masks


@dataclass
class OneDiffusionOutput(BaseOutput):
    """One entry a sample in each list; a list is None where nothing of its kind was generated.

    images: of the frames generated but for cameras, sample by sample in frame order: PIL, or (n, H, W, 3) float in
        0…1, or (n, 3, H, W), or latents (n, 16, h, w), by output_type.
    latents: (B, F, 16, h, w) of all frames, known ones too.
    depth: (H, W) inverse depth, 0 farthest … 1 nearest. segmentation: class → (H, W) mask. boxes: class →
        (x0, y0, x1, y1) in pixels. keypoints: (18, 3) x, y, score in OpenPose's order, NaN where a point is not found.
    cameras: R (V, 3, 3) and T (V, 3) of all views, in PyTorch3D's convention, in the world of the first camera.
    """

    images: Any = None
    latents: Tensor | None = None
    depth: list[NDArray[np.float32]] | None = None
    segmentation: list[dict[str, NDArray[np.bool_]]] | None = None
    boxes: list[dict[str, list[tuple[int, int, int, int]]]] | None = None
    keypoints: list[NDArray[np.float32]] | None = None
    cameras: list[tuple[Tensor, Tensor]] | None = None

    def images_first(self) -> tuple[Any, ...]:
        """The fields that there are, images (None where only cameras were generated) first."""
        return (self.images, *(value for name, value in self.items() if name != "images"))


def read_pictures(
    pixels: Sequence[Tensor], kinds: Sequence[str], colors: Mapping[str, str], form: str
) -> dict[str, Any]:
    """Fields of an output: decoded pictures in that form, and what is read from them.

    pixels: for each sample (n, 3, H, W) in [-1, 1]; kinds: of the n frames. form: "pil", "np" or "pt".
    """
    unit = ((torch.cat(list(pixels)) + 1) / 2).clamp(0, 1).cpu()
    pictures = (unit * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    fields: dict[str, Any] = {"images": unit if form == "pt" else unit.permute(0, 2, 3, 1).numpy()}
    if form == "pil":
        from PIL import Image

        fields["images"] = [Image.fromarray(picture) for picture in pictures]
    readers: dict[str, tuple[str, Any]] = {
        "depth": ("depth", read_depth),
        "pose": ("keypoints", read_keypoints),
        "segmentation": ("segmentation", lambda picture: read_masks(picture, colors)),
        "boxes": ("boxes", lambda picture: read_boxes(picture, colors)),
    }
    for place, kind in enumerate(kinds):
        if kind in readers:
            name, read = readers[kind]
            fields[name] = [read(np.ascontiguousarray(one)) for one in pictures[place :: len(kinds)]]
    return fields
