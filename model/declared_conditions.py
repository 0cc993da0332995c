"""Conditions that other packages declare: a label of their own becomes a task, with nothing changed here.

A package names one object of this module's `Condition` under the entry point `onediffusion.conditions`:

    [project.entry-points."onediffusion.conditions"]
    brightness = "brightness_labeler:CONDITION"
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import entry_points
from typing import Any, Literal

from model.inputs import InputError, one_line
from model.pictures import Picture

ENTRY_POINTS = "onediffusion.conditions"
Direction = Literal["to_image", "from_image"]
BOTH: tuple[Direction, ...] = ("to_image", "from_image")


@dataclass(frozen=True)
class Condition:
    """How a label is shown to the model, and what its task is called.

    group: the column group, which is the task's name too; reads: the columns that `draw` needs, "group.column"; draw:
    called with a row of them ("group.column" → value, none of them None), the width and the height of the picture, and
    gives a (height, width, 3) uint8 picture; token: what prompts of the task begin with; content: the column of `reads`
    that is an empty list where the label shows nothing, None where there is always something; phrase: what a class and
    its color are called in prompts, for a group with `names` and `colors`; directions: those in which the task is
    sampled for reports. Training goes in both: either frame may be the known one.
    """

    group: str
    reads: tuple[str, ...]
    draw: Callable[[Mapping[str, Any], int, int], Picture]
    token: str
    content: str | None = None
    phrase: str | None = None
    directions: tuple[Direction, ...] = BOTH

    def __post_init__(self) -> None:
        """Raises InputError for what cannot be a condition."""
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.group):
            raise InputError(f"condition {self.group!r}: a group's name is small letters, digits and _")
        if not re.fullmatch(r"\[\[\w+\]\]", self.token):
            raise InputError(f"condition {self.group}: token {self.token!r}; write it as [[{self.group}2image]]")
        if not self.reads or any(not re.fullmatch(r"\w+\.\w+", column) for column in self.reads):
            raise InputError(f"condition {self.group}: reads {', '.join(self.reads) or 'nothing'}; name GROUP.COLUMN")
        if self.content is not None and f"{self.group}.{self.content}" not in self.reads:
            raise InputError(f"condition {self.group}: content {self.content!r} is not among what it reads")
        if not self.directions or any(one not in BOTH for one in self.directions):
            raise InputError(f"condition {self.group}: directions are of {', '.join(BOTH)}")


@lru_cache(maxsize=1)
def declared_conditions() -> dict[str, Condition]:
    """The conditions of the packages that are installed, by group. Raises InputError for one that is none."""
    declared: dict[str, Condition] = {}
    for point in entry_points(group=ENTRY_POINTS):
        try:
            condition = point.load()
        except InputError:
            raise
        except Exception as error:  # whatever a package does when it is imported
            raise InputError(
                f"condition {point.name!r} ({point.value}) cannot be imported: {one_line(error)}"
            ) from None
        if not isinstance(condition, Condition):
            raise InputError(f"condition {point.name!r}: {point.value} is no model.declared_conditions.Condition")
        if condition.group in declared:
            raise InputError(f"condition {condition.group!r} is declared by two packages; uninstall one")
        declared[condition.group] = condition
    return declared
