"""What a call of the pipeline is given, checked before anything is computed: each wrong argument by name, in one line.

V views.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from model.cameras import default_intrinsics, orbit_cameras
from model.constants import SIZE_STEP
from model.inputs import InputError, nearest

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def check_numbers(values: Mapping[str, Any]) -> None:
    """Raise InputError for counts below 1 or no whole numbers, and for a guidance that is not a finite number.

    values: by name; None stands for a default.
    """
    for name in ("num_inference_steps", "num_images_per_prompt", "height", "width"):
        value = values[name]
        if value is not None and (not isinstance(value, Integral) or isinstance(value, bool) or value < 1):
            raise InputError(f"{name} {value!r}: give a whole number of 1 or more")
    guidance = values["guidance_scale"]
    if guidance is not None and (not isinstance(guidance, Real) or not math.isfinite(guidance) or guidance < 0):
        raise InputError(f"guidance_scale {guidance!r}: give a number of 0 or more; 1 is no guidance")


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raise InputError for a value that is none of the choices, with the nearest one."""
    if value not in choices:
        raise InputError(f"{name} {value!r}{nearest(str(value), list(choices))}: there are {', '.join(choices)}")


def as_texts(name: str, value: Any) -> list[str]:
    """One text, or a sequence of them, as a list. Raises InputError for anything else, and for an empty sequence."""
    texts = [value] if isinstance(value, str) else list(value) if isinstance(value, (list, tuple)) else None
    if not texts or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{name} {value!r}: give a text, or a list with a text for each sample")
    return texts


def negative_prompts(value: Any, prompts: int, copies: int) -> list[str]:
    """The negative prompt of each sample. None is the empty one; a list has one for each prompt. Raises InputError.

    prompts: how many there are; copies: samples of each.
    """
    texts = [""] if value is None else as_texts("negative_prompt", value)
    if len(texts) not in (1, prompts):
        raise InputError(f"{len(texts)} negative prompts for {prompts} prompts: give one, or one for each")
    return [text for text in (texts if len(texts) == prompts else texts * prompts) for _ in range(copies)]


def check_size(width: int, height: int) -> None:
    """Raise InputError for a size that frames cannot have, with the nearest that they can."""
    if width % SIZE_STEP or height % SIZE_STEP:
        nearby = [max(SIZE_STEP, round(side / SIZE_STEP) * SIZE_STEP) for side in (width, height)]
        raise InputError(
            f"width {width} × height {height}: both must divide by {SIZE_STEP}; take {nearby[0]} × {nearby[1]}"
        )


def as_cameras(
    azimuth: Sequence[float] | None,
    elevation: Sequence[float] | None,
    distance: Sequence[float] | None,
    c2w: Tensor | None,
    intrinsics: Tensor | None,
    normalize: bool | None,
) -> tuple[Tensor, Tensor, bool] | None:
    """Camera-to-world (V, 4, 4), intrinsics (V, 3, 3) and whether to normalize; None where no cameras are given.

    Raises InputError for cameras given twice or in part, of wrong shapes, not finite, at the origin or straight above.
    """
    angles = {"azimuth": azimuth, "elevation": elevation, "distance": distance}
    given = {name: value for name, value in angles.items() if value is not None}
    if c2w is None and not given:
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
        c2w = orbit_cameras(numbers["azimuth"], numbers["elevation"], numbers["distance"])
        normalize = bool(normalize)
    c2w = torch.as_tensor(c2w)
    intrinsics = default_intrinsics(len(c2w)) if intrinsics is None else torch.as_tensor(intrinsics)
    if c2w.shape != (len(c2w), 4, 4) or intrinsics.shape != (len(c2w), 3, 3):
        raise InputError(f"c2w {tuple(c2w.shape)}, intrinsics {tuple(intrinsics.shape)}: (V, 4, 4) and (V, 3, 3)")
    for name, tensor in (("c2w", c2w), ("intrinsics", intrinsics)):
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{name}: not all numbers are finite")
        # Of c2w the rotation; a camera that maps space to a plane or a point has no rays.
        if bool((torch.linalg.det(tensor[:, :3, :3].double()).abs() < 1e-12).any()):
            raise InputError(f"{name}: a matrix cannot be inverted; cameras need three independent axes")
    return c2w, intrinsics, True if normalize is None else normalize


def _numbers(name: str, values: Any) -> list[float]:
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        raise InputError(f"{name} {values!r}: give a sequence of numbers, one for each view") from None
    if not numbers:
        raise InputError(f"{name}: give a number for each view; the sequence is empty")
    wrong = next((number for number in numbers if not math.isfinite(number)), None)
    if wrong is not None:
        raise InputError(f"{name} {wrong}: give finite numbers")
    return numbers
