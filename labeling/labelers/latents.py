"""Latents: pictures, and labels drawn as pictures, through the image codec.

Group `latents-256` holds the pictures around 256 × 256 pixels, `latents-256-depth` the depth drawn as the model sees
it, and `latents-256-degraded-deblurring` the pictures of the group degraded-deblurring, fitted to the same bucket.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import model_validator

from labeling import labeler
from labeling.labeler import AddedLater, Labeler, Prepared, Row, required
from labeling.networks.batches import in_batches
from labeling.networks.pretrained import TORCH_TYPES, Dtype
from model.conditions import CONDITION_READS, DEGRADATIONS, condition_picture
from model.constants import SIZE_STEP
from model.inputs import InputError, nearest
from model.pictures import Picture, aspect_bucket, decode_picture, fit_picture
from model.prompts import DEGRADED

if TYPE_CHECKING:
    from torch import Tensor

    from model.codecs import ImageCodec


_DEGRADED_GROUPS = tuple(f"{DEGRADED}-{kind}" for kind in DEGRADATIONS)


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
        """codec: "dct", or the hub name or path of a diffusers AutoencoderKL; dtype: what that computes in."""

        codec: str = "dct"
        dtype: Annotated[Literal["fp32", "bf16", "fp16"], AddedLater()] = "fp32"

        @model_validator(mode="after")
        def _dtype_of_an_autoencoder(self) -> Self:
            if self.codec == "dct" and self.dtype != "fp32":
                raise ValueError(f"dtype {self.dtype} is for an autoencoder; dct computes in fp32")
            return self

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
        drawn = {**CONDITION_READS, **{one: (f"{one}.picture",) for one in _DEGRADED_GROUPS}}
        if self.source and self.source not in drawn:
            known = list(drawn)
            hint = nearest(self.source, known) or f"; there are {', '.join(known)}"
            raise InputError(f"{group!r}: no label {self.source!r} is drawn for the model{hint}")
        self.reads = (*drawn[self.source], "images.width", "images.height") if self.source else ("images.image",)
        self._codec: Any = None

    @property
    def model(self) -> str:
        from model.codecs import codec_name

        return codec_name(self.parameters.codec)

    @property
    def has_network(self) -> bool:
        return self.parameters.codec != "dct"  # a GPU is of no use to 16 numbers a block

    def weights_digest(self) -> str:
        from model.codecs import codec_digest

        return codec_digest(self.parameters.codec)

    def load(self) -> None:
        import torch

        torch.set_num_threads(1)
        self._codec = _codec(self.parameters.codec, self.device, self.parameters.dtype)

    def prepare(self, row: Row) -> Prepared:
        picture = self._picture(row)
        width, height = aspect_bucket(picture.shape[1], picture.shape[0], self.size)
        return Prepared({"picture": fit_picture(picture, width, height)[None]})

    def infer(self, inputs: list[Any]) -> list[Any]:
        return in_batches(inputs, self.device, lambda batch, _counts: list(self._encode(batch["picture"])))

    def finish(self, output: Any, context: Any) -> Row:
        return {"latent": output.ravel(), "latent_height": output.shape[1], "latent_width": output.shape[2]}

    def label_row(self, row: Row) -> Row:
        prepared = self.prepare(row)
        return self.finish(self.infer([prepared.inputs])[0], prepared.context)

    def _encode(self, pictures: Tensor) -> NDArray[np.float16]:
        """(N, H, W, 3) uint8 → (N, 16, h, w)."""
        import torch

        # Each by itself: its layout in memory, which decides how a convolution rounds, is then that of a single one.
        pixels = torch.cat([one.permute(2, 0, 1)[None].float() for one in pictures]) / 127.5 - 1
        latents: NDArray[np.float32] = self._codec.encode(pixels).cpu().numpy()
        return latents.astype(np.float16)

    def _picture(self, row: Row) -> Picture:
        required(row, *self.reads)
        if not self.source:
            return np.asarray(row["images.image"])
        if self.source in _DEGRADED_GROUPS:
            return decode_picture(row[f"{self.source}.picture"])
        return condition_picture(self.source, row, row["images.width"], row["images.height"])


@lru_cache(maxsize=1)
def _codec(name: str, device: str, dtype: Dtype) -> ImageCodec:
    """Loaded once in a process that encodes several sources."""
    import torch

    from model.codecs import load_codec

    return load_codec(name, device, getattr(torch, TORCH_TYPES[dtype]))
