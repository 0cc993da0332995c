"""A source of a run's mixture, as a configuration states it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from model.constants import SIZE_STEP
from model.inputs.schema import Section, split_range
from model.prompts import TASKS, find_task


class SourceConfig(Section):
    """A dataset and the tasks it serves.

    tasks: task → weight, or a list of tasks of weight 1 each. size: which latents, `latents-SIZE`; the run's by
    default. where: SQL that is true of the rows to train on, as "quality.sharpness > 0.4"; all by default. text:
    prompts as the group `text` has them embedded, or built of the groups that they name things from and embedded where
    the model computes, by the run's `text_encoder`. latents: pictures as the groups `latents-SIZE…` have them encoded,
    or decoded and drawn when they are read and encoded where the model computes, by the run's `codec`. degraded:
    pictures of deblurring, inpainting and upscaling as they are degraded anew each time, or as the groups
    `latents-SIZE-degraded-TASK` have them. views: [least, most] pictures of a set in one sample, of `identity` and
    `subject` the one that is generated among them; by default those of `objective` for views, else 2 to as many as the
    task takes. window: of `views`, the most views in a row of a set that those of a sample come from, for sets that are
    films; by default all of the set. condition_dropout: share of the samples whose condition (or rays, or references)
    is pure noise, so that sampling may be guided by it.
    """

    dataset: str
    tasks: dict[str, Annotated[float, Field(gt=0)]] = Field(min_length=1)
    size: int | None = Field(default=None, gt=0, multiple_of=SIZE_STEP)
    text: Literal["stored", "online"] = "stored"
    latents: Literal["stored", "online"] = "stored"
    degraded: Literal["online", "stored"] = "online"
    where: str | None = None
    views: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None
    window: int | None = Field(default=None, ge=2)
    condition_dropout: float = Field(default=0.0, ge=0, le=1)

    _split_range = field_validator("views", mode="before")(split_range)

    @model_validator(mode="before")
    @classmethod
    def _weigh_equally(cls, values: Any) -> Any:
        tasks = values.get("tasks") if isinstance(values, Mapping) else None
        if isinstance(tasks, list) and all(isinstance(task, str) for task in tasks):
            return {**values, "tasks": dict.fromkeys(values["tasks"], 1.0)}
        return values

    @model_validator(mode="after")
    def _check_views(self) -> SourceConfig:
        if self.latents == "online" and self.degraded == "stored":
            raise ValueError("latents are online, and so are degraded pictures; leave out degraded")
        if self.views and self.views[0] > self.views[1]:
            raise ValueError(f"views {list(self.views)}: give [least, most]")
        if self.window and self.views and self.window < self.views[1]:
            raise ValueError(f"window {self.window} has fewer views than a sample shows, {list(self.views)}")
        for name in self.tasks:
            task = TASKS.get(name)  # an unknown one is refused when its dataset is looked at
            if not task or not task.references:
                continue
            if self.text == "stored" and task.references > 1:
                raise ValueError(f"the prompt of {name} depends on the pictures drawn: set text to online")
            if self.views and not 2 <= self.views[0] <= self.views[1] <= 1 + task.references:
                raise ValueError(f"views {list(self.views)}: {name} has 2 to {1 + task.references} pictures")
        return self


def views_of_sample(task: str, given: tuple[int, int] | None, of_scenes: tuple[int, int]) -> tuple[int, int]:
    """(least, most) pictures of a set in a sample of a task. of_scenes: where none are given for `views`."""
    references = find_task(task).references
    return given or ((2, 1 + references) if references else of_scenes)
