"""One task served by one source: what samples are drawn from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from labeling.dataset import CAMERAS, IMAGES, TEXT
from model.conditions import CONTENT_COLUMNS
from model.prompts import DEGRADED, RAYS, find_task

CAPTION, SUBJECT, ITEM = "caption", "subject", "item"  # groups and their columns; SUBJECT's is ITEM


@dataclass(frozen=True)
class Stream:
    """One task served by one source: what samples are drawn from.

    rows: how many are eligible; text: whether their prompts are embedded in the group `text`, or when they are used.
    views: (least, most) pictures of a set in a sample, None for the default; condition_dropout: as in the mixture.
    degraded: whether pictures of a degraded task are made when they are used, or stored.
    """

    source: str
    task: str
    weight: float
    size: int
    rows: int = 0
    text: Literal["stored", "online"] = "stored"
    views: tuple[int, int] | None = None
    condition_dropout: float = 0.0
    degraded: Literal["online", "stored"] = "online"

    def __post_init__(self) -> None:
        if self.views is not None:  # a list, as JSON has it
            object.__setattr__(self, "views", tuple(self.views))

    @property
    def key(self) -> str:
        """What tells it apart from the other streams of its source."""
        return f"{self.task}@{self.size}"

    @property
    def latents(self) -> str:
        """The group of the pictures' latents."""
        return f"latents-{self.size}"

    @property
    def degrades(self) -> bool:
        """Whether its pictures are degraded when they are used."""
        return find_task(self.task).condition == DEGRADED and self.degraded == "online"

    @property
    def condition(self) -> str | None:
        """The group of the condition's latents, None where frame 1 is not stored."""
        label = find_task(self.task).label
        if find_task(self.task).condition == DEGRADED and self.degraded == "stored":
            label = f"{DEGRADED}-{self.task}"
        return label and f"{self.latents}-{label}"

    @property
    def groups(self) -> tuple[str, ...]:
        """Every group that a sample of this stream is read or judged from."""
        condition = find_task(self.task).condition
        groups = [self.latents, *([TEXT] if self.text == "stored" else self.prompt_groups)]
        if condition == DEGRADED:
            groups.append(self.condition or IMAGES)
        elif condition == RAYS:
            groups.append(CAMERAS)
        elif condition is not None:
            groups += [f"{self.latents}-{condition}", *([condition] if condition in CONTENT_COLUMNS else [])]
        return tuple(dict.fromkeys(groups))

    @property
    def prompt_groups(self) -> tuple[str, ...]:
        """The groups that prompts are built of."""
        named = SUBJECT if self.task == SUBJECT else self.task if find_task(self.task).phrase else None
        return (CAPTION, *([named] if named else []))
