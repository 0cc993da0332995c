"""What a call of the pipeline is given, checked before anything is computed: each wrong argument by name, in one line.

V views.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from model.cameras import as_matrices, orbit_cameras
from model.constants import LATENT_CHANNELS, LATENT_FACTOR, MAX_PIXELS, SIZE_STEP
from model.inputs import InputError, check_characters, nearest, one_line, shown
from model.pictures import Picture, as_picture, is_signed
from model.tensors import check_dense

_MOST = 1_000_000  # of steps, samples, pixels of a side
_FARTHEST = 1e6  # distance of a camera; the published model has seen 1.5
_IN_PIXELS = 10  # a principal point beyond so many image widths is one of pixels
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def check_numbers(values: Mapping[str, Any]) -> None:
    """Raise InputError for counts below 1 or no whole numbers, and for a guidance that is not a finite number.

    values: by name; None stands for a default.
    """
    for name, value in values.items():
        if name == "guidance_scale" or (value is None and name != "num_images_per_prompt"):
            continue
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise InputError(f"{name} {shown(value)}: give a whole number of 1 or more")
        if int(value) > _MOST:
            raise InputError(f"{name} {shown(value)}: give at most {_MOST:,}")
    guidance = values.get("guidance_scale")
    if guidance is not None and (
        not isinstance(guidance, Real) or isinstance(guidance, bool) or not math.isfinite(guidance) or guidance < 0
    ):
        raise InputError(f"guidance_scale {shown(guidance)}: give a number of 0 or more; 1 is no guidance")


def check_flags(values: Mapping[str, Any]) -> None:
    """Raise InputError for what is neither True nor False; values: by name. None leaves normalize_cameras open."""
    for name, value in values.items():
        if not (isinstance(value, bool) or (value is None and name == "normalize_cameras")):
            raise InputError(f"{name} {shown(value)}: give True or False")


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raise InputError for a value that is none of the choices, with the nearest one."""
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{name} {shown(value)}{nearest(str(value), list(choices))}: there are {', '.join(choices)}")


def as_texts(name: str, value: Any) -> list[str]:
    """One text, or a sequence of them, as a list. Raises InputError for anything else, and for an empty sequence."""
    texts = [value] if isinstance(value, str) else list(value) if isinstance(value, (list, tuple)) else None
    if not texts or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{name} {shown(value)}: give a text, or a list with a text for each sample")
    check_characters(name, texts)
    return texts


def negative_prompts(value: Any, prompts: int, copies: int) -> list[str]:
    """The negative prompt of each sample. None is the empty one; a list has one for each prompt. Raises InputError.

    prompts: how many there are; copies: samples of each.
    """
    texts = [""] if value is None else as_texts("negative_prompt", value)
    if len(texts) not in (1, prompts):
        raise InputError(f"{len(texts)} negative prompts for {prompts} prompts: give one, or one for each")
    return [text for text in (texts if len(texts) == prompts else texts * prompts) for _ in range(copies)]


def check_default_size(size: Any) -> None:
    """Raise InputError for a default_size that frames cannot have."""
    check_numbers({"default_size": 0 if size is None else size})
    if size % SIZE_STEP:
        nearby = max(SIZE_STEP, round(size / SIZE_STEP) * SIZE_STEP)
        raise InputError(f"default_size {size}: it must divide by {SIZE_STEP}; take {nearby}")


def check_size(width: int, height: int) -> None:
    """Raise InputError for a size that frames cannot have, with the nearest that they can."""
    if width % SIZE_STEP or height % SIZE_STEP:
        nearby = [max(SIZE_STEP, round(side / SIZE_STEP) * SIZE_STEP) for side in (width, height)]
        raise InputError(
            f"width {width} × height {height}: both must divide by {SIZE_STEP}; take {nearby[0]} × {nearby[1]}"
        )
    if width * height > MAX_PIXELS:
        raise InputError(f"width {width} × height {height}: more than {MAX_PIXELS:,} pixels")


def as_cameras(
    azimuth: Sequence[float] | None,
    elevation: Sequence[float] | None,
    distance: Sequence[float] | None,
    c2w: Tensor | None,
    normalize: bool | None,
) -> tuple[Tensor, bool] | None:
    """Camera-to-world (V, 4, 4) and whether to normalize; None where no cameras are given.

    Raises InputError for cameras given twice or in part, of wrong shapes, not finite, at the origin or straight above.
    """
    angles = {"azimuth": azimuth, "elevation": elevation, "distance": distance}
    given = {name: value for name, value in angles.items() if value is not None}
    if c2w is None and not given:
        if normalize is not None:
            raise InputError("normalize_cameras belongs to views with cameras: give azimuth and so on, or c2w")
        return None
    if c2w is not None and given:
        raise InputError("give cameras as c2w or as azimuth, elevation and distance, not both")
    if c2w is None:
        numbers = {name: _numbers(name, value) for name, value in given.items()}
        if len(numbers) < len(angles) or len({len(value) for value in numbers.values()}) > 1:
            raise InputError("give azimuth, elevation and distance of every view: three sequences of one length")
        for value in numbers["elevation"]:
            if abs(value) >= 90:
                raise InputError(
                    f"elevation {value:g}: give degrees between -90 and 90, as 89; straight above has no up"
                )
        for value in numbers["distance"]:
            if value <= 0:
                raise InputError(f"distance {value:g}: a camera is away from what it looks at; give more than 0")
            if not 1 / _FARTHEST <= value <= _FARTHEST:
                raise InputError(f"distance {value:g}: give {1 / _FARTHEST:g} to {_FARTHEST:g}")
        c2w = orbit_cameras(numbers["azimuth"], numbers["elevation"], numbers["distance"])
        normalize = bool(normalize)
    c2w = as_matrices("c2w", c2w, 4)
    if not torch.equal(c2w[:, 3], c2w.new_tensor([0, 0, 0, 1]).expand(len(c2w), 4)):
        raise InputError("c2w: the last row of each matrix must be 0, 0, 0, 1; give camera-to-world matrices")
    if bool((torch.linalg.det(c2w[:, :3, :3].double()) < 0).any()):
        raise InputError("c2w: a matrix mirrors space; give OpenGL's camera-to-world: x right, y up, z backward")
    return c2w, True if normalize is None else normalize


def _numbers(name: str, values: Any) -> list[float]:
    try:
        if isinstance(values, str | bytes | Mapping | Set):  # has no numbers, or none in an order
            raise TypeError
        numbers = [float(value) for value in values]
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise InputError(f"{name} {shown(values)}: give a sequence of numbers, one for each view") from None
    if not numbers:
        raise InputError(f"{name}: give a number for each view; the sequence is empty")
    wrong = next((number for number in numbers if not math.isfinite(number)), None)
    if wrong is not None:
        raise InputError(f"{name} {wrong}: give finite numbers")
    return numbers


def as_intrinsics(intrinsics: Any, views: int) -> Tensor | None:
    """Intrinsics (V, 3, 3) to recover cameras with. Raises InputError for other shapes, and without views."""
    if intrinsics is None:
        return None
    if not views:
        raise InputError("intrinsics belong to views")
    tensor = _intrinsics(intrinsics)
    if len(tensor) != views:
        raise InputError(f"intrinsics of {len(tensor)} views for {views}: give one for each")
    return tensor


def _intrinsics(value: Any) -> Tensor:
    tensor = as_matrices("intrinsics", value, 3)
    if bool((tensor[:, (0, 1), (0, 1)] <= 0).any()):
        raise InputError("intrinsics: focal lengths must be more than 0")
    if bool((tensor[:, :2, 2].abs() > _IN_PIXELS).any()):
        raise InputError("intrinsics: they are in pixels; divide the first two rows by the width, so that it is 1")
    return tensor


def latent_shape(width: int, height: int) -> tuple[int, int, int]:
    """(C, h, w) of a frame of so many pixels."""
    return LATENT_CHANNELS, height // LATENT_FACTOR, width // LATENT_FACTOR


def as_samples(name: str, value: Any) -> Any:
    """A batch of tensors, which has a length. Raises InputError for anything else."""
    if not isinstance(value, Tensor) or not value.ndim or not len(value):
        raise InputError(f"{name}: {type(value).__name__}; give a tensor with a row for each sample")
    return value


def as_pictures(images: Any, samples: int, one_each: bool = False) -> list[list[Picture]]:
    """The known pictures of each sample, or one list for all.

    A batch (n, H, W, 3) or (n, 3, H, W) is a list of pictures, also within a list. one_each: a list of as many pictures
    as samples is one for each of them. Raises InputError for batches of other lengths.
    """
    if images is None:
        return [[]]
    if not isinstance(images, (list, tuple)):
        images = _members(images)
    images = [picture for one in images for picture in _members(one)]
    if not any(isinstance(one, (list, tuple)) for one in images):
        if one_each and len(images) == samples > 1:
            images = [[one] for one in images]
        else:
            signed = any(map(is_signed, images))
            return [[as_picture(one, signed) for one in images]]
    if not all(isinstance(one, (list, tuple)) for one in images):
        raise InputError("images: give pictures, or a list of pictures for each prompt, not both")
    if len(images) != samples or len({len(one) for one in images}) > 1:
        raise InputError(f"{len(images)} sequences of images for {samples} prompts: give one each, of the same length")
    images = [[picture for one in per_sample for picture in _members(one)] for per_sample in images]
    signed = any(is_signed(one) for per_sample in images for one in per_sample)
    return [[as_picture(one, signed) for one in per_sample] for per_sample in images]


def _members(image: Any) -> list[Any]:
    """The pictures of a batch (n, H, W, 3) or (n, 3, H, W); of anything else, itself."""
    return list(image) if getattr(image, "ndim", 0) == 4 else [image]


def check_noise(shape: tuple[int, ...], generator: Any, latents: Any) -> None:
    """Raise InputError for generators that are not one, or one for each sample, and for latents that do not fit."""
    several = generator if isinstance(generator, (list, tuple)) else [generator]
    if generator is not None and not all(isinstance(one, torch.Generator) for one in several):
        raise InputError(f"generator {type(generator).__name__}: give a torch.Generator, or a list of one each sample")
    if isinstance(generator, (list, tuple)) and len(generator) != shape[0]:
        raise InputError(f"{len(generator)} generators for {shape[0]} samples")
    if latents is None:
        return
    if not isinstance(latents, Tensor) or not latents.is_floating_point():
        raise InputError(f"latents {getattr(latents, 'dtype', type(latents).__name__)}: give a tensor of floats")
    check_dense("latents", latents)
    if tuple(latents.shape) != shape:
        raise InputError(f"latents of shape {tuple(latents.shape)}: they must be {shape}")
    if not bool(torch.isfinite(latents).all()):
        raise InputError("latents: not all numbers are finite")


def check_callback(callback: Any, inputs: Any, known: Sequence[str]) -> None:
    """Raise InputError for a callback that cannot be called, and tensors that it cannot have."""
    if callback is not None and not callable(callback):
        raise InputError(f"callback_on_step_end {type(callback).__name__}: give a function")
    inputs = getattr(callback, "tensor_inputs", inputs)
    if isinstance(inputs, str) or not isinstance(inputs, Sequence) or set(map(str, inputs)) - set(known):
        raise InputError(f"callback_on_step_end_tensor_inputs {shown(inputs)}: give a list of {', '.join(known)}")


def check_changed(changed: Any, latents: Tensor) -> Tensor:
    """The latents that a callback returns, those of before where it returns none. Raises InputError for other ones.

    A callback may also have written into those of before.
    """
    new = changed["latents"] if isinstance(changed, Mapping) and "latents" in changed else latents
    if not isinstance(new, Tensor) or new.shape != latents.shape:
        shape = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
        raise InputError(f"callback_on_step_end: latents {shape}; return {tuple(latents.shape)}")
    new = new.to(latents)
    if not bool(torch.isfinite(new).all()):
        raise InputError("callback_on_step_end: it leaves latents that are not all finite")
    return new


@contextmanager
def enough_memory(shape: tuple[int, ...]) -> Iterator[None]:
    """InputError where the memory of a device or of the machine does not hold what is computed.

    shape: of the latents (B, F, 16, h, w).
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        samples, frames, _, h, w = shape
        raise InputError(
            f"too little memory for {samples} samples of {frames} frames of {LATENT_FACTOR * w} × {LATENT_FACTOR * h} "
            f"({one_line(error, 80)}); give fewer or smaller ones, bfloat16, or enable_model_cpu_offload"
        ) from None


def check_finite(what: str, tensor: Tensor, dtype: torch.dtype) -> None:
    """Raise InputError where a tensor of the image codec has numbers that are not finite; dtype: it computes in."""
    if not bool(torch.isfinite(tensor).all()):
        raise InputError(
            f"image codec: {what} with numbers that are not finite; its weights or their precision ({dtype}) are at "
            "fault: try float32, or another checkpoint"
        )
