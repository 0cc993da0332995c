"""Latents: pictures, and labels drawn as pictures, through the image codec.

Group `latents-256` holds the pictures around 256 × 256 pixels, `latents-256-depth` the depth drawn as the model sees
it, fitted to the same bucket.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from labeling import labeler
from labeling.labeler import Labeler, Row, required
from model.conditions import CONDITION_READS, condition_picture
from model.constants import SIZE_STEP
from model.inputs import InputError, nearest
from model.pictures import Picture, aspect_bucket, fit_picture

if TYPE_CHECKING:
    from model.codecs import ImageCodec


class LatentsLabeler(Labeler):
    """Latents (C h w order, float16) of the picture or of one of its labels, at the picture's aspect bucket."""

    name = "latents"
    version = 1
    schema = pa.schema(
        [
            ("latent", pa.list_(pa.float16())),
            ("latent_height", pa.int32()),
            ("latent_width", pa.int32()),
        ]
    )

    class Parameters(labeler.Parameters):
        """codec: "dct", or the hub name or path of a diffusers AutoencoderKL."""

        codec: str = "dct"

    parameters: Parameters

    def __init__(self, group: str, parameters: labeler.Parameters) -> None:
        """`group`: latents-SIZE or latents-SIZE-SOURCE, SOURCE a condition. Raises InputError."""
        super().__init__(group, parameters)
        _, _, rest = group.partition("-")
        size, _, self.source = rest.partition("-")
        if not size.isdecimal():
            raise InputError(
                f"{group!r} says no size: name it latents-SIZE or latents-SIZE-LABEL, as latents-256-depth"
            )
        self.size = int(size)
        aspect_bucket(SIZE_STEP, SIZE_STEP, self.size)  # refuses a size that buckets cannot have
        if self.source and self.source not in CONDITION_READS:
            known = list(CONDITION_READS)
            hint = nearest(self.source, known) or f"; there are {', '.join(known)}"
            raise InputError(f"{group!r}: no label {self.source!r} is drawn for the model{hint}")
        self.reads = (
            (*CONDITION_READS[self.source], "images.width", "images.height") if self.source else ("images.image",)
        )
        self._codec: Any = None

    @property
    def model(self) -> str:
        return str(self._codec.name)

    def weights_digest(self) -> str:
        from model.codecs import codec_digest

        return codec_digest(self.parameters.codec)

    def load(self) -> None:

        self._codec = _codec(self.parameters.codec, self.device)

    def label_row(self, row: Row) -> Row:
        import torch

        picture = self._picture(row)
        width, height = aspect_bucket(picture.shape[1], picture.shape[0], self.size)
        fitted = fit_picture(picture, width, height)
        pixels = torch.from_numpy(fitted).permute(2, 0, 1)[None].float() / 127.5 - 1
        latent = self._codec.encode(pixels)[0].cpu().numpy().astype(np.float16)
        return {
            "latent": latent.ravel(),
            "latent_height": latent.shape[1],
            "latent_width": latent.shape[2],
        }

    def _picture(self, row: Row) -> Picture:
        required(row, *self.reads)
        if not self.source:
            return np.asarray(row["images.image"])
        return condition_picture(self.source, row, row["images.width"], row["images.height"])


@lru_cache(maxsize=1)
def _codec(name: str, device: str) -> ImageCodec:
    """Loaded once in a process that encodes several sources."""
    from model.codecs import load_codec

    return load_codec(name, device)
