"""Batches on the device that computes: copied while it computes, pictures and prompts encoded there.

C channels, h × w latent height and width, H × W = 8h × 8w pixels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from model.inputs import InputError
from training.batch import Sample, StepBatch
from training.config import TrainingConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from model.codecs import ImageCodec
    from model.pictures import Picture
    from model.text import TextEncoder

_AHEAD = 1  # steps whose arrays are on their way to a GPU
_BATCH_PIXELS = 1 << 18  # of the pictures that a GPU encodes together: four of 256², one of 512²


def pinned_array(shape: tuple[int, ...]) -> np.ndarray[tuple[int, ...], np.dtype[np.float16]]:
    """Memory for float16 numbers that a GPU copies from without waiting; torch uses it again when it is free."""
    import torch

    return torch.empty(shape, dtype=torch.float16, pin_memory=True).numpy()


def encode_pictures(codec: ImageCodec, pictures: Sequence[Picture]) -> list[Tensor]:
    """(H, W, 3) uint8 each → (C, h, w) float16 each, where the codec is.

    How a convolution rounds may depend on the size of its batch, and a sample must not depend on who shares a worker
    with it. So on a CPU pictures go one by one, as labels of latents do, and on a GPU those of one size in batches that
    are always of the same number of them: a last one is filled up.
    """
    import torch

    places_by_shape: dict[tuple[int, ...], list[int]] = {}
    for place, picture in enumerate(pictures):
        places_by_shape.setdefault(picture.shape, []).append(place)
    encoded: dict[int, Tensor] = {}
    for (height, width, _), places in places_by_shape.items():
        size = 1 if codec.device.type == "cpu" else max(1, _BATCH_PIXELS // (height * width))
        for start in range(0, len(places), size):
            chosen = places[start : start + size]
            filled = [*chosen, *chosen[-1:] * (size - len(chosen))]
            pixels = torch.from_numpy(np.stack([pictures[place] for place in filled]))
            if codec.device.type == "cuda":
                pixels = pixels.pin_memory().to(codec.device, non_blocking=True)
            # Each by itself: its layout in memory, which rounding depends on too, is then that of a single one.
            signed = torch.cat([one.permute(2, 0, 1)[None].float() for one in pixels]) / 127.5 - 1
            encoded.update(zip(chosen, codec.encode(signed).to(torch.float16), strict=False))
    return [encoded[place] for place in range(len(pictures))]


class DeviceBatches:
    """Makes batches ready to compute with: on the device, every frame and prompt encoded."""

    def __init__(self, config: TrainingConfig, codec: str, text_encoder: str, device: torch.device) -> None:
        """codec, text_encoder: what encodes latents and prompts (as for `model.codecs.load_codec` and
        `model.text.load_text_encoder`); loaded when a sample needs them."""
        self.config, self.codec_name, self._text_encoder_name, self.device = config, codec, text_encoder, device

    @cached_property
    def codec(self) -> ImageCodec:
        """The codec, on the device."""
        from model.codecs import load_codec

        return load_codec(self.codec_name, self.device)

    @cached_property
    def text_encoder(self) -> TextEncoder:
        """The text encoder, on the device, in the precision of the run."""
        import torch

        from model.text import load_text_encoder

        half = self.device.type == "cuda" and self.config.workers.precision == "bf16"
        return load_text_encoder(self._text_encoder_name, self.device, torch.bfloat16 if half else torch.float32)

    def ready(self, batches: Iterable[StepBatch]) -> Iterator[StepBatch]:
        """The same batches in their order. On a GPU the next one is copied and encoded while this one computes."""
        if self.device.type != "cuda":
            yield from map(self.encoded, batches)
            return
        import torch

        side = torch.cuda.Stream(self.device)
        waiting: deque[StepBatch] = deque()
        for batch in batches:
            waiting.append(self._copied(batch, side))
            if len(waiting) > _AHEAD:
                yield self._arrived(waiting.popleft(), side)
        while waiting:
            yield self._arrived(waiting.popleft(), side)

    def _copied(self, batch: StepBatch, side: torch.cuda.Stream) -> StepBatch:
        """The batch with its arrays on their way to the device, and what is encoded there on its way from them."""
        import torch

        with torch.cuda.stream(side):

            def copy(sample: Sample) -> Sample:
                arrays = {
                    name: torch.as_tensor(getattr(sample, name)).to(self.device, non_blocking=True)
                    for name in ("latents", "text")
                }
                return replace(sample, **arrays)

            return self.encoded(replace(batch, packs=[[copy(sample) for sample in pack] for pack in batch.packs]))

    def _arrived(self, batch: StepBatch, side: torch.cuda.Stream) -> StepBatch:
        """The batch for the stream that computes, which waits for what was copied; this process does not."""
        import torch

        stream = torch.cuda.current_stream(self.device)
        stream.wait_stream(side)
        for pack in batch.packs:
            for sample in pack:
                sample.latents.record_stream(stream)  # type: ignore[union-attr]
                sample.text.record_stream(stream)  # type: ignore[union-attr]
        return batch

    def encoded(self, batch: StepBatch) -> StepBatch:
        """The batch with its pictures and prompts encoded. Raises InputError for an encoder of another width than the
        model takes."""
        samples = [sample for pack in batch.packs for sample in pack]
        prompts = {sample.prompt for sample in samples if sample.prompt is not None}
        texts = self._embed(sorted(prompts)) if prompts else {}
        places = [(sample, frame) for sample in samples for frame in sample.pictures]
        frames = encode_pictures(self.codec, [sample.pictures[frame] for sample, frame in places]) if places else []
        for (sample, frame), latent in zip(places, frames, strict=True):
            sample.latents[frame] = latent.cpu().numpy() if isinstance(sample.latents, np.ndarray) else latent

        def encode(sample: Sample) -> Sample:
            if sample.prompt is None:
                return replace(sample, pictures={})
            text = texts[sample.prompt]
            on_cpu = isinstance(sample.latents, np.ndarray)
            return replace(sample, text=text.cpu().numpy() if on_cpu else text, pictures={}, prompt=None)

        return replace(batch, packs=[[encode(sample) for sample in pack] for pack in batch.packs])

    def _embed(self, prompts: list[str]) -> dict[str, Tensor]:
        """Prompt → (L, Y) float16, as a label would have it, on the device."""
        import torch

        from model.text import tokenize

        encoder = self.text_encoder
        if encoder.width != self.config.model.caption_channels:
            raise InputError(
                f"model.caption_channels is {self.config.model.caption_channels}, but the text encoder "
                f"{encoder.name} gives {encoder.width}; set it so"
            )
        numbers = tokenize(encoder.tokenizer, encoder.tokens, prompts)
        embedded = encoder.embed(numbers, on_device=True)
        return {prompt: text.to(torch.float16) for prompt, text in zip(prompts, embedded, strict=True)}
