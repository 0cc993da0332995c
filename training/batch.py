"""One worker's samples of a step, and their serialized form: safetensors bytes, which need no pickle and no copy.

F frames, C = 16 channels, h × w latent height and width, L prompt tokens, Y text width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from model.constants import PATCH_SIZE

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """One sample as read.

    latents: (F, C, h, w) float16, clean; text: (L, Y) float16; sigmas: (F,) noise levels, 0 for known frames;
    in_loss: (F,) frames that the loss counts; pictures: frame → (H, W, 3) uint8 that it is to be encoded from, of
    frames that are not there yet; prompt: what the text is to be encoded from, None where it is there; index: number of
    the sample in the run. Latents and text are tensors once they are on a GPU.
    """

    task: str
    latents: NDArray[np.float16] | Tensor
    text: NDArray[np.float16] | Tensor
    sigmas: NDArray[np.float32]
    in_loss: NDArray[np.bool_]
    noise_seed: int
    pictures: Mapping[int, NDArray[np.uint8]] = field(default_factory=dict)
    prompt: str | None = None
    index: int = -1

    @property
    def tokens(self) -> int:
        """Image tokens: PATCH_SIZE × PATCH_SIZE latent pixels each."""
        frames, _, height, width = self.latents.shape
        return int(frames * (height // PATCH_SIZE) * (width // PATCH_SIZE))


@dataclass(frozen=True)
class StepBatch:
    """A worker's packs of a step. frames_in_loss: of the whole step, over all workers."""

    step: int
    packs: list[list[Sample]]
    frames_in_loss: int

    def to_bytes(self) -> bytes:
        """One safetensors document; its metadata holds what is no tensor."""
        from safetensors.numpy import save

        tensors: dict[str, NDArray[Any]] = {}
        samples = []
        for number, sample in enumerate(sample for pack in self.packs for sample in pack):
            tensors[f"{number}.latents"] = np.ascontiguousarray(sample.latents)
            tensors[f"{number}.text"] = np.ascontiguousarray(sample.text)
            for frame, picture in sample.pictures.items():
                tensors[f"{number}.picture.{frame}"] = np.ascontiguousarray(picture)
            samples.append(
                [
                    sample.task,
                    sample.noise_seed,
                    [float(sigma) for sigma in sample.sigmas],
                    sample.in_loss.tolist(),
                    sample.prompt,
                    list(sample.pictures),
                    sample.index,
                ]
            )
        header = {
            "step": self.step,
            "frames_in_loss": self.frames_in_loss,
            "packs": [len(pack) for pack in self.packs],
            "samples": samples,
        }
        return save(tensors, metadata={"batch": json.dumps(header)})

    @classmethod
    def from_bytes(cls, data: bytes) -> StepBatch:
        """The batch that `to_bytes` serialized."""
        from safetensors.numpy import load

        length = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["batch"])
        tensors = load(data)
        samples = [
            Sample(
                task=task,
                latents=tensors[f"{number}.latents"].copy(),  # torch needs writable memory
                text=tensors[f"{number}.text"].copy(),
                sigmas=np.array(sigmas, np.float32),
                in_loss=np.array(in_loss, bool),
                noise_seed=seed,
                pictures={frame: tensors[f"{number}.picture.{frame}"] for frame in frames},
                prompt=prompt,
                index=index,
            )
            for number, (task, seed, sigmas, in_loss, prompt, frames, index) in enumerate(header["samples"])
        ]
        packs, start = [], 0
        for size in header["packs"]:
            packs.append(samples[start : start + size])
            start += size
        return cls(header["step"], packs, header["frames_in_loss"])
