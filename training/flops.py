"""FLOP of a training step, and what devices could compute: both sides of model FLOP utilization (MFU).

N image tokens, L text tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from model.inputs import InputError, nearest

if TYPE_CHECKING:
    from model.transformer import NextDiT

# Dense bf16 FLOP/s of the tensor cores by a part of the device's name, from the vendor's data sheets; the first that
# fits is taken.
PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
    "A10": 125e12,
    "L40": 181e12,
    "L4": 121e12,
}


class SampleSize(NamedTuple):
    """A sample as its FLOP depend on it: N image tokens, L text tokens, and frames, each with a noise level."""

    tokens: float
    text: float
    frames: float


def peak_flops(device: str) -> float | None:
    """Dense bf16 FLOP/s of a device by its name, None where the name says nothing."""
    return next((peak for part, peak in PEAKS.items() if part.lower() in device.lower()), None)


def known_peak_flops(device: str) -> float:
    """`peak_flops`, but it raises InputError for a device that is not in the table."""
    peak = peak_flops(device)
    if peak is None:
        hint = nearest(device, list(PEAKS)) or f"; there are {', '.join(PEAKS)}"
        raise InputError(f"no peak is known for device {device!r}{hint}")
    return peak


class FlopCounter:
    """Counts FLOP of a model: 2 for each weight and token in products, 4·D for each pair of tokens that meet."""

    def __init__(self, model: NextDiT, frozen: bool = False) -> None:
        """The model may be without memory for its weights; make it before the weights are sharded.

        frozen: an adapter of the model is trained. Then there are no gradients of its weights to compute, though of
        what meets in attention as ever; the adapter's own FLOP, a few in a hundred, are left out.
        """
        self._backward = 1 if frozen else 2
        block, width, depth = model.layers[0], model.config.hidden_size, len(model.layers)
        attention, ff = block.attention, block.feed_forward
        by_image = (attention.wq, attention.wk, attention.wv, attention.wo, ff.w1, ff.w2, ff.w3)
        by_text = (attention.wk_y, attention.wv_y)
        self._image = 2 * depth * sum(layer.weight.numel() for layer in by_image)
        self._text = 2 * depth * sum(layer.weight.numel() for layer in by_text)
        self._frame = 2 * depth * block.adaLN_modulation[1].weight.numel()
        self._pair = 4 * depth * width
        self._ends = 2 * (model.x_embedder.weight.numel() + model.final_layer.linear.weight.numel())

    def step(self, samples: Iterable[SampleSize], recomputed: bool = False) -> float:
        """FLOP of forward and backward, which counts twice the forward, or once in layers whose weights are frozen.

        recomputed: with the forward of the blocks once more, as checkpointing does.
        """
        layers = pairs = outside = 0.0
        for N, L, frames in samples:
            layers += self._image * N + self._text * L + self._frame * frames
            pairs += self._pair * N * (N + L)
            outside += self._ends * N
        once = 1 + self._backward
        return (once + recomputed) * layers + (3 + recomputed) * pairs + once * outside
