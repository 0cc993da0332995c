"""One task served by one source: what samples are drawn from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from labeling.dataset import CAMERAS, IMAGES, TEXT
from model.conditions import CONTENT_COLUMNS
from model.prompts import DEGRADED, RAYS, find_task

CAPTION = "caption"  # the group, and its column


@dataclass(frozen=True)
class Stream:
    """One task served by one source: what samples are drawn from.

    rows: how many are eligible; text: whether their prompts are embedded in the group `text`, or when they are used.
    """

    source: str
    task: str
    weight: float
    size: int
    rows: int = 0
    text: Literal["stored", "online"] = "stored"

    @property
    def key(self) -> str:
        """What tells it apart from the other streams of its source."""
        return f"{self.task}@{self.size}"

    @property
    def latents(self) -> str:
        """The group of the pictures' latents."""
        return f"latents-{self.size}"

    @property
    def condition(self) -> str | None:
        """The group of the condition's latents, None where frame 1 is not stored."""
        label = find_task(self.task).label
        return label and f"{self.latents}-{label}"

    @property
    def groups(self) -> tuple[str, ...]:
        """Every group that a sample of this stream is read or judged from."""
        condition = find_task(self.task).condition
        groups = [self.latents, *([TEXT] if self.text == "stored" else self.prompt_groups)]
        if condition == DEGRADED:
            groups.append(IMAGES)
        elif condition == RAYS:
            groups.append(CAMERAS)
        elif condition is not None:
            groups += [f"{self.latents}-{condition}", *([condition] if condition in CONTENT_COLUMNS else [])]
        return tuple(dict.fromkeys(groups))

    @property
    def prompt_groups(self) -> tuple[str, ...]:
        """The groups that prompts are built of."""
        return (CAPTION, *([self.task] if find_task(self.task).phrase else []))
