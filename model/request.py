"""What one call of the pipeline asks for: its arguments checked against each other, before anything is computed.

V views; H × W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from model.arguments import as_cameras, as_intrinsics, as_pictures, as_samples, as_texts, check_size
from model.frames import REFERENCE, Frames, Known, plan_frames, takes_one
from model.inputs import InputError
from model.pictures import Picture, aspect_bucket
from model.prompt_embeddings import check_embedded, check_words, class_colors, is_empty
from model.prompts import RAYS, find_task


@dataclass(frozen=True)
class Request:
    """tasks: their names; captions: one for each prompt, None where embeddings stand for them; prompts: how many.

    pictures: the known ones of each prompt, or one list for all; cameras: camera-to-world (V, 4, 4) and whether to
    normalize, None where none are given; intrinsics (V, 3, 3): of all cameras, known or generated, None where none are
    given; references: captions of the pictures that are referred to; colors: class → "#RRGGBB".
    """

    tasks: list[str]
    captions: list[str] | None
    prompts: int
    pictures: list[list[Picture]]
    frames: Frames
    cameras: tuple[Tensor, bool] | None
    intrinsics: Tensor | None
    references: list[str]
    colors: dict[str, str]

    @property
    def has_rays(self) -> bool:
        """Whether frames are camera rays."""
        return RAYS in self.frames.kinds

    @property
    def default_guidance(self) -> float:
        """Of the first task."""
        return find_task(self.tasks[0]).guidance

    @property
    def default_steps(self) -> int:
        """The most that one of the tasks has."""
        return max(find_task(name).steps for name in self.tasks)

    def size(self, width: int | None, height: int | None, default_size: int) -> tuple[int, int]:
        """(width, height) of every frame in pixels; default_size: the side of a square of as many pixels, where none
        are given. Raises InputError for sizes that do not serve."""
        if width is None or height is None:
            if width or height:
                raise InputError("give height and width, or neither")
            if self.has_rays or not self.pictures[0]:
                width = height = default_size
            else:
                first = self.pictures[0][0]
                width, height = aspect_bucket(first.shape[1], first.shape[0], default_size)
        check_size(width, height)
        return width, height


def check_request(
    task: Any,
    images: Any,
    prompt: Any,
    prompt_embeds: Any,
    known: Known | None,
    denoise_mask: Sequence[int] | None,
    names: Sequence[str],
    colors: Sequence[str] | None,
    reference_prompts: Sequence[str],
    cameras: tuple[Any, Any, Any, Any, Any, bool | None],
) -> Request:
    """The request of a call's arguments; cameras: azimuth, elevation, distance, c2w, intrinsics, normalize_cameras.

    Raises InputError for what does not go together.
    """
    tasks = as_texts("task", task)
    captions = None
    if prompt_embeds is None:
        captions = as_texts("prompt", prompt)
    elif not is_empty(prompt):
        raise InputError("give prompt or prompt_embeds, not both")
    prompts = len(captions) if captions is not None else len(as_samples("prompt_embeds", prompt_embeds))
    pictures = as_pictures(images, prompts, takes_one(tasks))
    azimuth, elevation, distance, c2w, given_intrinsics, normalize = cameras
    of_views = as_cameras(azimuth, elevation, distance, c2w, normalize)
    frames = plan_frames(tasks, len(pictures[0]), known, denoise_mask, 0 if of_views is None else len(of_views[0]))
    intrinsics = as_intrinsics(given_intrinsics, frames.kinds.count(RAYS))
    references = check_words(tasks, names, reference_prompts, frames.kinds.count(REFERENCE), colors)
    if captions is None:
        check_embedded(tasks, names, references)
    color_of = class_colors(names, colors)
    return Request(tasks, captions, prompts, pictures, frames, of_views, intrinsics, references, color_of)
