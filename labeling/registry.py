"""Labelers by name: the built-in ones, `module:Class`, or those of packages that declare an entry point."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any

from labeling.dataset import TEXT, text_group
from labeling.labeler import Labeler
from model.inputs import InputError, nearest
from model.inputs.schema import validate
from model.prompts import EDITING

ORIGIN = "origin"  # the group that sets without cameras have
ENTRY_POINTS = "onediffusion.labelers"
LABELERS = {
    "boxes": "labeling.labelers.boxes:BoxesLabeler",
    "segmentation": "labeling.labelers.segmentation:SegmentationLabeler",
    "pose": "labeling.labelers.pose:PoseLabeler",
    "caption": "labeling.labelers.caption:CaptionLabeler",
    "objects": "labeling.labelers.objects:ObjectsLabeler",
    "edges": "labeling.labelers.edges:EdgesLabeler",
    "embedding": "labeling.labelers.embedding:EmbeddingLabeler",
    "degraded": "labeling.labelers.degraded:DegradedLabeler",
    "quality": "labeling.labelers.quality:QualityLabeler",
    "faces": "labeling.labelers.faces:FacesLabeler",
    "hed": "labeling.labelers.hed:HedLabeler",
    "depth": "labeling.labelers.depth:DepthLabeler",
    "latents": "labeling.labelers.latents:LatentsLabeler",
    "text": "labeling.labelers.text:TextLabeler",
    "hashes": "labeling.labelers.hashes:HashesLabeler",
    "duplicates": "labeling.labelers.duplicates:DuplicatesLabeler",
    "selection": "labeling.labelers.selection:SelectionLabeler",
}


def find_labeler(name: str) -> type[Labeler]:
    """The labeler class that `name` means: NAME, NAME-VARIANT or module:Class. Raises InputError."""
    if ":" in name:
        return _import(name)
    base, offered = base_name(name), _offered()
    if base in offered:
        return _import(offered[base])
    choices = sorted(offered)
    raise InputError(
        f"unknown labeler {name!r}{nearest(base, choices)}; there are {', '.join(choices)}, or module:Class"
    )


def base_name(group: str) -> str:
    """The labeler of a group's name, which may say a variant after it: `latents` of latents-256-depth."""
    return group.partition("-")[0]


def is_known(name: str) -> bool:
    """Whether a labeler can be found by this name alone."""
    return ":" in name or base_name(name) in _offered()


def labeler_names() -> list[str]:
    """The names that labelers are known by here."""
    return sorted(_offered())


def group_name(name: str) -> str:
    """The column group that a labeler named on the command line fills."""
    return find_labeler(name).name if ":" in name else name


def load_labeler(name: str, parameters: Mapping[str, Any]) -> Labeler:
    """A labeler with its parameters, models not loaded yet.

    Raises InputError for an unknown labeler, a parameter it does not have, or a value it does not take.
    """
    labeler = find_labeler(name)
    return labeler(group_name(name), validate(labeler.Parameters, parameters, name))


def default_groups(
    name: str,
    present: Sequence[str],
    declared: Sequence[str] = (),
    tasks: Sequence[str] | None = None,
    sets: bool = False,
) -> list[str]:
    """What a bare name on the command line stands for.

    `latents` means the latents of the images, of labels that are drawn as images, and of degraded pictures, around
    256 × 256 pixels.
    `text` means the prompts of each of `tasks`, by default of those that the labels of the rows serve; a dataset that
    has the one group `text` keeps it. present: groups that the dataset has or will have; declared: that it has; sets:
    whether its rows are sets of views.
    Raises InputError for `text` of sets without cameras.
    """
    if name == TEXT and name not in declared and sets and ORIGIN in present and not tasks:
        raise InputError(
            "text: prompts of these sets name the pictures that a sample draws, so train with `text: online`; those of "
            f"edits can be stored: label {text_group(EDITING)}"
        )
    if name == TEXT and name not in declared:
        return [text_group(task) for task in dict.fromkeys(tasks or _served_tasks(present, sets))]
    if name != "latents":
        return [name]
    from model.conditions import CONDITION_READS, DEGRADATIONS

    drawn = [*CONDITION_READS, *(f"degraded-{kind}" for kind in DEGRADATIONS)]
    return ["latents-256", *(f"latents-256-{group}" for group in drawn if group in present)]


def _served_tasks(present: Sequence[str], sets: bool) -> list[str]:
    """The tasks that prompts are stored for, and whose condition, where it is a label, is among the groups."""
    from model.prompts import RAYS, TASKS

    stored = [task for task in TASKS.values() if not task.references and (task.condition == RAYS) == sets]
    return [task.name for task in stored if task.label is None or task.label in present]


def _offered() -> dict[str, str]:
    return {**{point.name: point.value for point in entry_points(group=ENTRY_POINTS)}, **LABELERS}


def _import(target: str) -> type[Labeler]:
    module, _, attribute = target.partition(":")
    try:
        labeler = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(f"labeler {target!r} cannot be imported: {error}") from None
    if not (isinstance(labeler, type) and issubclass(labeler, Labeler)):
        raise InputError(f"labeler {target!r} is not a subclass of labeling.labeler.Labeler")
    return labeler
