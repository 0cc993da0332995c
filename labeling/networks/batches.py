"""Batches of a network: rows whose inputs have equal shapes are computed at once, and taken apart again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from labeling.networks.staging import staging

if TYPE_CHECKING:
    from torch import Tensor

# Name → array (N, …) as a processor gives it for one row, N being 1 for most. A row with another value, unless it is
# empty, is computed alone.
Inputs = Mapping[str, Any]
_AS_THEY_ARE = {"do_rescale": False, "do_normalize": False}  # of a processor: levels 0 … 255 as bytes


class Outputs:
    """Outputs of a network by name, for a processor that reads them from what the network's class gives."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """arrays: (N, …) by name. A name that is not among them reads as None."""
        import torch

        self._tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._tensors.get(name)


@dataclass(frozen=True)
class PixelScale:
    """How a processor turns levels 0 … 255 into what the network takes; done on the device, a quarter is sent to it.

    factor: of the levels; mean, std: of each channel then; None where the processor leaves the step out. fused: whether
    mean and deviation are scaled in place of the levels, as processors of torchvision do, and not the levels in float64
    first, as those of Pillow do.
    """

    factor: float | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    fused: bool = False

    def __call__(self, levels: Tensor) -> Tensor:
        """(N, C, H, W) uint8 → float32, by the arithmetic of transformers' processors, bit for bit."""
        import torch

        factor = self.factor or 1.0
        if self.mean is None or self.std is None:
            return levels.float() * factor if self.fused else (levels.double() * factor).float()
        pixels = levels.float() if self.fused or self.factor is None else (levels.double() * factor).float()
        mean, std = (
            torch.tensor(values, device=levels.device).view(-1, 1, 1) * (1 / factor if self.fused else 1)
            for values in (self.mean, self.std)
        )
        return (pixels - mean) / std


def pixel_scale(processor: Any, process: Callable[..., Inputs]) -> PixelScale | None:
    """The scale of an image processor, None where it cannot be repeated on the device without changing a bit.

    process: what the processor makes of a picture, with further settings of it as keywords. It is tried on noise: a
    processor may resize after it has scaled, or pad.
    """
    random = np.random.default_rng(0)
    tried = []  # pictures as levels, and scaled
    for shape in ((61, 47, 3), (400, 640, 3)):
        noise = random.integers(0, 256, shape, np.uint8)
        try:
            levels = process(noise, **_AS_THEY_ARE)
        except Exception:  # whatever it says: such a processor's own way is the one to take
            return None
        pixels = levels.get("pixel_values")
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 4:
            return None
        expected = process(noise)
        if any(not np.array_equal(levels[name], expected[name]) for name in levels if name != "pixel_values"):
            return None
        tried.append((pixels, expected["pixel_values"]))
    scales = getattr(processor, "do_normalize", False)
    for fused in (False, True):
        scale = PixelScale(
            float(processor.rescale_factor) if getattr(processor, "do_rescale", False) else None,
            _channels(processor.image_mean) if scales else None,
            _channels(processor.image_std) if scales else None,
            fused,
        )
        if all(
            np.array_equal(scale(to_device(pixels.copy(), "cpu")).numpy(), reference) for pixels, reference in tried
        ):
            return scale
    return None


def settings_of(scale: PixelScale | None) -> dict[str, bool]:
    """Settings with which a processor leaves to `scale` what it does."""
    return {} if scale is None else _AS_THEY_ARE


def in_batches(
    rows: Sequence[Inputs], device: str, run: Callable[..., Sequence[Any]], beside: Sequence[Any] | None = None
) -> list[Any]:
    """The results of `run` for each row, of batches whose inputs have equal shapes.

    run: takes the inputs by name, joined along their first axis on the device, and how much of it each row has, and
    where there is something `beside` each row, a list of that; gives a result for each row. On CPUs every row is a
    batch of its own: the rounding of a matrix product depends on the shape of the batch, and a row's label must not
    depend on other rows.
    """
    import torch

    indices: dict[Any, list[int]] = {}
    for index, inputs in enumerate(rows):
        indices.setdefault(index if device == "cpu" else _shapes(inputs, index), []).append(index)
    results: list[Any] = [None] * len(rows)
    with torch.inference_mode():
        for together in indices.values():
            group = [rows[index] for index in together]
            counts = [len(next(iter(inputs.values()))) for inputs in group]
            joined = {name: _joined([inputs[name] for inputs in group], device) for name in group[0]}
            more = [] if beside is None else [[beside[index] for index in together]]
            for index, result in zip(together, run(joined, counts, *more), strict=True):
                results[index] = result
    return results


def taken_apart(outputs: Any, names: Sequence[str], counts: Sequence[int]) -> list[dict[str, NDArray[Any]]]:
    """The named outputs of each row in float32, those that the network gives."""
    arrays = {name: outputs[name].float().cpu().numpy() for name in names if outputs.get(name) is not None}
    ends = np.cumsum(counts)
    return [
        {name: values[end - count : end] for name, values in arrays.items()}
        for count, end in zip(counts, ends, strict=True)
    ]


def parts(outputs: Any, counts: Sequence[int]) -> list[Any]:
    """Outputs of transformers of each row, of the class they have together, their lists as they are."""
    import torch

    total, ends = sum(counts), np.cumsum(counts)
    return [
        type(outputs)(
            **{
                name: value[end - count : end].float() if torch.is_tensor(value) and len(value) == total else value
                for name, value in outputs.items()
            }
        )
        for count, end in zip(counts, ends.tolist(), strict=True)
    ]


def to_device(array: NDArray[Any], device: str) -> Tensor:
    """An array that may be written to, on the device, by a copy that the device's queue does beside other work."""
    import torch

    tensor = torch.from_numpy(array)
    if device == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True) if device.startswith("cuda") else tensor.to(device)


def _joined(values: Sequence[Any], device: str) -> Any:
    if not isinstance(values[0], np.ndarray):
        return values[0]
    if (staged := staging.joined(values)) is not None:
        return staged
    return to_device(np.concatenate(values), device)  # a copy: arrays that came from another process are read-only


def _shapes(inputs: Inputs, index: int) -> Any:
    """What rows of one batch have in common; of a row with more than arrays its index."""
    if any(value for value in inputs.values() if not isinstance(value, np.ndarray)):
        return index
    arrays = [(name, inputs[name]) for name in sorted(inputs) if isinstance(inputs[name], np.ndarray)]
    return tuple((name, value.dtype.str, value.shape[1:]) for name, value in arrays)


def _channels(values: float | Sequence[float]) -> tuple[float, ...]:
    return tuple(values) if isinstance(values, Sequence) else (float(values),) * 3


def as_inputs(processed: Mapping[str, Any]) -> dict[str, Any]:
    """What a processor gave for one row, tensors as arrays."""
    return {name: value.numpy() if hasattr(value, "numpy") else value for name, value in processed.items()}
