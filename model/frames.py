"""What a call asks for, frame by frame: which frames a task has, which are known, which are generated.

Frame 0 is the image; then come its conditions, or the pictures it refers to. View sets alternate image and camera rays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

from model.inputs import InputError, shown
from model.prompts import RAYS, find_task

IMAGE, REFERENCE = "image", "reference"
MAX_VIEWS = 12
Known = Literal["image", "condition"]


@dataclass(frozen=True)
class Frames:
    """kinds: for each frame "image", "reference", "rays" or the condition's task; mask: 1 for those to generate."""

    kinds: tuple[str, ...]
    mask: tuple[int, ...]

    @property
    def pictures_known(self) -> int:
        """How many pictures have to be given."""
        return sum(not generated and kind != RAYS for kind, generated in zip(self.kinds, self.mask, strict=True))

    @property
    def generated(self) -> tuple[int, ...]:
        """Places of the frames to generate."""
        return tuple(place for place, generated in enumerate(self.mask) if generated)


def takes_one(tasks: Sequence[str]) -> bool:
    """Whether these tasks know one picture a sample at most, so that a list of pictures is one for each sample."""
    first = find_task(tasks[0])
    return len(tasks) == 1 and (first.is_paired or first.references == 1)


def plan_frames(
    tasks: Sequence[str],
    pictures: int,
    known: Known | None = None,
    denoise_mask: Sequence[int] | None = None,
    cameras: int = 0,
) -> Frames:
    """The frames of a call.

    tasks: one task, or several conditions of one image. pictures: how many are given. known: what they are, the
    condition (an image is generated; the default) or the image (its labels are). denoise_mask instead: 1 for each
    frame to generate, 0 for each known one, in frame order. cameras: of a view set, 0 where none are given.
    Raises InputError for tasks that do not go together, and a mask or pictures that do not fit the frames.
    """
    if known is not None and not (isinstance(known, str) and known in ("image", "condition")):
        raise InputError(f"known={shown(known)}: say 'image' or 'condition', or give a denoise_mask")
    if denoise_mask is not None:
        denoise_mask = _as_mask(denoise_mask)
    kinds = _frame_kinds(tasks, pictures, denoise_mask, cameras)
    name = " + ".join(tasks)
    if RAYS in kinds and known is not None:
        raise InputError(f"{name} has cameras or none to say what is known, or a denoise_mask; leave out known")
    if denoise_mask is not None:
        if known is not None:
            raise InputError("give known or denoise_mask, not both")
        mask = tuple(denoise_mask)
        if len(mask) != len(kinds):
            raise InputError(f"denoise_mask has {len(mask)} values; {name} has {len(kinds)} frames: {', '.join(kinds)}")
    else:
        mask = _default_mask(kinds, pictures, known, cameras)
    if not any(mask):
        raise InputError(f"denoise_mask {list(mask)} leaves no frame to generate")
    frames = Frames(kinds, mask)
    if pictures != frames.pictures_known:
        more = "more" if pictures > frames.pictures_known else "fewer"
        raise InputError(
            f"{pictures} images are {more} than the {frames.pictures_known} known image frames of {name}: "
            + ", ".join(f"{kind} {'generated' if value else 'known'}" for kind, value in zip(kinds, mask, strict=True))
            + (
                f'; for a sample of each, give {pictures} prompts, as ["", ""]'
                if takes_one(tasks) and pictures > 1
                else ""
            )
        )
    knows_cameras = any(kind == RAYS and not generated for kind, generated in zip(kinds, mask, strict=True))
    if knows_cameras and not cameras:
        raise InputError(f"denoise_mask {list(mask)} has known cameras: give azimuth, elevation and distance, or c2w")
    if cameras and not knows_cameras:
        raise InputError(f"denoise_mask {list(mask)} generates all cameras: leave out those that are given")
    return frames


def _as_mask(values: Any) -> tuple[int, ...]:
    """A mask of any sequence of 0 and 1, also an array. Raises InputError for anything else."""
    values = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(values, list | tuple) or not all(isinstance(value, Real) and value in (0, 1) for value in values):
        raise InputError(
            f"denoise_mask {shown(values)}: give 1 for each frame to generate and 0 for each known one, as [1, 0]"
        )
    return tuple(map(int, values))


def _frame_kinds(tasks: Sequence[str], pictures: int, mask: Sequence[int] | None, cameras: int) -> tuple[str, ...]:
    chosen = [find_task(name) for name in tasks]
    if not chosen:
        raise InputError("name a task")
    first = chosen[0]
    if len(chosen) > 1:
        unpaired = next((task.name for task in chosen if not task.is_paired), None)
        if unpaired or len({task.name for task in chosen}) < len(chosen):
            name = unpaired or chosen[-1].name
            raise InputError(f"{name} cannot be combined: only different conditions of one image can")
        return (IMAGE, *(task.name for task in chosen))
    if first.condition == RAYS:
        views = cameras or (len(mask) // 2 if mask is not None else pictures)
        if not 1 <= views <= MAX_VIEWS:
            raise InputError(f"{views} views: there may be 1 to {MAX_VIEWS}")
        return (IMAGE, RAYS) * views
    if cameras:
        raise InputError(f"{first.name} has no cameras; they belong to views")
    if first.references:
        references = len(mask) - 1 if mask is not None else pictures
        if not 1 <= references <= first.references:
            raise InputError(
                f"{first.name} with {references} pictures to refer to: there may be 1 to {first.references}"
            )
        return (IMAGE,) + (REFERENCE,) * references
    return (IMAGE, first.name) if first.condition else (IMAGE,)


def _default_mask(kinds: tuple[str, ...], pictures: int, known: Known | None, cameras: int) -> tuple[int, ...]:
    if RAYS in kinds:
        if not cameras:
            return (0, 1) * (len(kinds) // 2)
        return tuple(value for view in range(len(kinds) // 2) for value in (int(view >= pictures), 0))
    if known == "image":
        if len(kinds) == 1:
            raise InputError("text2image has no label to predict from an image")
        return (0,) + (1,) * (len(kinds) - 1)
    return (1,) + (0,) * (len(kinds) - 1)
