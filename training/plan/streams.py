"""One task served by one source: what samples are drawn from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from labeling.dataset import CAMERAS, IMAGES, TEXT
from model.conditions import CONDITION_READS, CONTENT_COLUMNS
from model.prompts import DEGRADED, RAYS, find_task

if TYPE_CHECKING:
    from training.source_config import SourceConfig

CAPTION, SUBJECT, ITEM = "caption", "subject", "item"  # groups and their columns; SUBJECT's is ITEM
NAMES = ["names", "colors"]  # of what a prompt names
LATENT_COLUMNS = ["latent", "latent_height", "latent_width"]
_COLUMNS = {IMAGES: ["image"], CAMERAS: ["c2w", "intrinsics", "width", "height"], CAPTION: [CAPTION], SUBJECT: [ITEM]}


@dataclass(frozen=True)
class Stream:
    """One task served by one source: what samples are drawn from.

    rows: how many are eligible; text, pictures: whether their prompts are embedded and their pictures encoded in
    groups, or when they are used; text_group: the group of their prompts.
    degraded: whether pictures of a degraded task are made when they are used, or stored.
    views: (least, most) pictures of a set in a sample, None for the default; window: of how many views in a row they
    are, None for all of a set; condition_dropout: as in the mixture.
    """

    source: str
    task: str
    weight: float
    size: int
    rows: int = 0
    text: Literal["stored", "online"] = "stored"
    views: tuple[int, int] | None = None
    condition_dropout: float = 0.0
    pictures: Literal["stored", "online"] = "stored"
    text_group: str = TEXT  # of all tasks, as older datasets have it
    degraded: Literal["online", "stored"] = "online"
    window: int | None = None

    def __post_init__(self) -> None:
        if self.views is not None:  # a list, as JSON has it
            object.__setattr__(self, "views", tuple(self.views))

    @classmethod
    def of(cls, name: str, source: SourceConfig, task: str, size: int) -> Stream:
        """What a source of that name serves of a task; size: of a run, where the source has none."""
        drawn = source.views, source.condition_dropout, source.latents
        made = cls(name, task, source.tasks[task], source.size or size, 0, source.text, *drawn)
        return replace(made, degraded=source.degraded, window=source.window)

    @cached_property
    def key(self) -> str:
        """What tells it apart from the other streams of its source."""
        return f"{self.task}@{self.size}"

    @cached_property
    def latents(self) -> str:
        """The group of the pictures' latents."""
        return f"latents-{self.size}"

    @cached_property
    def degrades(self) -> bool:
        """Whether its pictures are degraded when they are used."""
        return find_task(self.task).condition == DEGRADED and self.degraded == "online"

    @cached_property
    def condition(self) -> str | None:
        """The group of the condition's latents, None where frame 1 is not stored."""
        label = find_task(self.task).label
        if find_task(self.task).condition == DEGRADED and self.degraded == "stored":
            label = f"{DEGRADED}-{self.task}"
        return label and f"{self.latents}-{label}"

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """Every group that a sample of this stream is read or judged from."""
        condition = find_task(self.task).condition
        is_online = self.pictures == "online"
        groups = [
            IMAGES if is_online else self.latents,
            *([self.text_group] if self.text == "stored" else self.prompt_groups),
        ]
        if condition == DEGRADED:
            groups.append(self.condition or IMAGES)
        elif condition == RAYS:
            groups.append(CAMERAS)
        elif condition is not None:
            groups += self.drawn_columns if is_online else [f"{self.latents}-{condition}"]
            groups += [condition] if condition in CONTENT_COLUMNS else []
        return tuple(dict.fromkeys(groups))

    @property
    def drawn_columns(self) -> dict[str, list[str]]:
        """Group → columns of it that the condition is drawn from."""
        columns: dict[str, list[str]] = {}
        for name in CONDITION_READS[find_task(self.task).label or ""]:
            group, _, column = name.partition(".")
            columns.setdefault(group, []).append(column)
        return columns

    def columns(self, group: str) -> list[str]:
        """What samples are made of in one of the groups."""
        columns = list(_COLUMNS.get(group, ()))
        if group.startswith(self.latents):
            columns += LATENT_COLUMNS
        if group == self.text_group:
            columns += ["entries"]
        if self.pictures == "online" and find_task(self.task).label:
            columns += self.drawn_columns.get(group, [])
        if group == self.task and find_task(self.task).phrase:
            columns += NAMES
        return list(dict.fromkeys(columns))

    @cached_property
    def prompt_groups(self) -> tuple[str, ...]:
        """The groups that prompts are built of."""
        named = SUBJECT if self.task == SUBJECT else self.task if find_task(self.task).phrase else None
        return (CAPTION, *([named] if named else []))
