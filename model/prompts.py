"""Tasks, their tokens and the prompts that carry them, as in the prompt guide of the published model.

One token serves both directions of a task; which frames are known decides between them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from model.declared_conditions import declared_conditions
from model.inputs import InputError, nearest, shown

COLORS: dict[str, str] = {
    "red": "#FF0000",
    "lime": "#00FF00",
    "blue": "#0000FF",
    "yellow": "#FFFF00",
    "magenta": "#FF00FF",
    "cyan": "#00FFFF",
    "orange": "#FFA500",
    "purple": "#800080",
    "brown": "#A52A2A",
    "green": "#008000",
    "pink": "#FFC0CB",
    "teal": "#008080",
    "darkorange": "#FF8C00",
    "blueviolet": "#8A2BE2",
    "darkgreen": "#006400",
    "orangered": "#FF4500",
    "navy": "#000080",
    "gold": "#FFD700",
    "turquoise": "#40E0D0",
    "orchid": "#DA70D6",
}
_COLOR_NAMES = {code: name for name, code in COLORS.items()}
DEGRADED, RAYS = "degraded", "rays"  # conditions that are not labels
EDITING = "editing"


@dataclass(frozen=True)
class Task:
    """One thing the model is trained to do.

    token: what the prompt starts with, None where none was published;
    condition: what frame 1 shows: a column group (boxes, segmentation, pose, edges, depth, hed), DEGRADED for a
        degradation of the image itself, RAYS for the cameras of a view set, None for no such frame;
    phrase: what a class and its color are called in the prompt, None where classes are not named;
    references: how many images the task may refer to, which are its further frames;
    steps, guidance: what the published model is sampled with.
    """

    name: str
    token: str | None
    condition: str | None = None
    phrase: str | None = None
    references: int = 0
    steps: int = 50
    guidance: float = 4.0

    @property
    def is_paired(self) -> bool:
        """Whether it goes both ways between an image and one condition of it."""
        return self.condition not in (None, RAYS)

    @property
    def is_of_sets(self) -> bool:
        """Whether a sample has several pictures: views of a scene, or an image and those that it refers to."""
        return self.condition == RAYS or self.references > 0

    @property
    def label(self) -> str | None:
        """The column group that holds its condition, None where no group does."""
        return self.condition if self.is_paired and self.condition != DEGRADED else None


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("text2image", "[[text2image]]"),
        Task("deblurring", "[[deblurring]]", DEGRADED),
        Task("inpainting", "[[image_inpainting]]", DEGRADED),
        Task("upscaling", None, DEGRADED),
        Task("edges", "[[canny2image]]", "edges"),
        Task("depth", "[[depth2image]]", "depth"),
        Task("hed", "[[hed2img]]", "hed"),
        Task("pose", "[[pose2image]]", "pose"),
        Task(EDITING, "[[image_editing]]", references=1, guidance=3.5),
        Task("segmentation", "[[semanticmap2image]]", "segmentation", "mask"),
        Task("boxes", "[[boundingbox2image]]", "boxes", "boundingbox"),
        Task("identity", "[[faceid]]", references=3, steps=75),
        Task("views", "[[multiview]]", RAYS, steps=60),
        Task("subject", "[[subject_driven]]", references=3),
    )
}

for _declared in declared_conditions().values():
    if _declared.group in TASKS or _declared.token in {task.token for task in TASKS.values()}:
        raise InputError(f"condition {_declared.group!r}: a task has this name or token already; choose another")
    TASKS[_declared.group] = Task(_declared.group, _declared.token, _declared.group, _declared.phrase)


def find_task(name: str) -> Task:
    """The task of that name. Raises InputError."""
    if not isinstance(name, str) or name not in TASKS:
        raise InputError(f"unknown task {shown(name)}{nearest(str(name), list(TASKS))}; there are {', '.join(TASKS)}")
    return TASKS[name]


def find_token(name: str) -> str:
    """What the prompt of a task starts with. Raises InputError for an unknown task."""
    # Upscaling is in the paper, but no token of it was published: ours follows the pattern and has to be learned.
    return find_task(name).token or f"[[{name}]]"


def as_words(name: str, value: Sequence[str]) -> list[str]:
    """A sequence of texts as a list. Raises InputError for anything else, naming the argument."""
    if not isinstance(value, list | tuple) or not all(isinstance(word, str) for word in value):
        raise InputError(f"{name} {shown(value)}: give a list of texts")
    return list(value)


def draw_colors(names: Sequence[str], seed: str) -> dict[str, str]:
    """A color "#RRGGBB" for each class name, drawn without replacement; equal names share one.

    The draw depends on `seed` and the order of the names alone, on any machine and with any library version.
    Raises InputError when there are more classes than colors.
    """
    classes = list(dict.fromkeys(as_words("names", names)))
    if len(classes) > len(COLORS):
        raise InputError(f"{len(classes)} classes, but there are {len(COLORS)} colors: keep the {len(COLORS)} surest")
    shuffled = sorted(COLORS.values(), key=lambda code: hashlib.blake2b(f"{seed} {code}".encode()).digest())
    return dict(zip(classes, shuffled, strict=False))


def build_prompt(
    task: str,
    caption: str,
    names: Sequence[str] = (),
    colors: Sequence[str] = (),
    sources: Sequence[str] = (),
) -> str:
    """The prompt of a task: its token, then what it names, then the caption (for editing: the instruction).

    names, colors: one class name and "#RRGGBB" for each box or region of `boxes` and `segmentation`, a class once in
    the prompt; for `subject`, the name of the item. sources: captions of the reference pictures of `identity` and
    `subject`. Raises InputError for an unknown task or color, or too many reference pictures.
    """
    spec = find_task(task)
    if not isinstance(caption, str):
        raise InputError(f"caption {shown(caption)}: give a text")
    sources = as_words("sources", sources)
    parts = [find_token(task), *class_phrases(task, names, colors)]
    if spec.references > 1:
        if len(sources) > spec.references:
            raise InputError(f"{task}: {len(sources)} reference pictures; at most {spec.references}")
        parts += reference_phrases([caption, *sources])
    else:
        parts.append(caption.strip())
    return " ".join(part for part in parts if part)


def class_phrases(task: str, names: Sequence[str], colors: Sequence[str]) -> list[str]:
    """How a task's prompt names classes, each once, or the items of `subject`; none for other tasks."""
    spec, names, colors = find_task(task), as_words("names", names), as_words("colors", colors)
    if spec.name == "subject":
        return [f"<item: {name}>" for name in names]
    if not spec.phrase:
        return []
    if len(names) != len(colors):
        raise InputError(f"{len(colors)} colors for {len(names)} names")
    phrases = [
        f"<{code.upper()} {_color_name(code)} {spec.phrase}: {name}>" for name, code in zip(names, colors, strict=True)
    ]
    return list(dict.fromkeys(phrases))


def reference_phrases(captions: Sequence[str]) -> list[str]:
    """Captions of the generated image, which has number 0, and of those that its task refers to."""
    return [f"[[img{number}]] {text.strip()}".strip() for number, text in enumerate(captions)]


def _color_name(code: str) -> str:
    try:
        return _COLOR_NAMES[code.upper()]
    except KeyError:
        raise InputError(f"{shown(code)} is not one of the model's colors: {', '.join(_COLOR_NAMES)}") from None
