"""What a user chooses for each kind of sets, on the command line and in job files alike."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from model.inputs import InputError, nearest
from model.inputs.schema import Section, split_range

EDITS = ("remove", "recolor", "background", "style")
FOLDER, OF_CAPTION, EMBEDDING = "folder", "caption", "embedding"  # what subjects are told by; else a key of metadata


class GroupingOptions(Section):
    """pictures: [least, most] of a set; least: pictures of a subject, below which it makes no set; duplicates: most of
    the 256 bits of their hashes in which pictures of a subject differ that are nearly the same, of which one is kept
    (-1 keeps all); where: SQL that is true of the rows to take."""

    pictures: tuple[int, int] = (2, 5)
    least: int = Field(default=2, ge=2)
    duplicates: int = Field(default=56, ge=-1, le=128)
    where: str = ""

    _split_range = field_validator("pictures", mode="before")(split_range)

    @model_validator(mode="after")
    def _ordered(self) -> GroupingOptions:
        if not 2 <= self.pictures[0] <= self.pictures[1]:
            raise ValueError(f"pictures {list(self.pictures)}: give [least, most], from 2 on")
        return self


class IdentityOptions(GroupingOptions):
    """distance: of two face embeddings below which pictures are linked; side: least of a face, in pixels; alone: only
    pictures with a single face; crop: side of what is kept around the face, in sides of the face (0: the picture)."""

    distance: float = Field(default=0.5, gt=0, le=2)
    side: int = Field(default=48, ge=8)
    alone: bool = False
    crop: float = Field(default=0.0, ge=0)


class SubjectOptions(GroupingOptions):
    """by: what pictures of one item share: "folder", "caption", "embedding" (of the segmented object), or a key of what
    their source says of them; item: its name, where it is the same for all; similarity: least cosine of two embeddings
    by which pictures are linked."""

    pictures: tuple[int, int] = (2, 4)
    by: str = Field(default=FOLDER, min_length=1)
    item: str = ""
    similarity: float = Field(default=0.8, gt=0, le=1)


class EditingOptions(Section):
    """source, target, instruction: columns of files, "" for the known names. Of datasets whose labels edits are made
    by: make: kinds of edits; edits: most of a picture; reversed: share of pictures whose real picture is what an edit
    is to lead to; area: [least, most] share of the picture that an edited object covers; seed: of all that is drawn;
    where: SQL that is true of the rows to take."""

    source: str = ""
    target: str = ""
    instruction: str = ""
    make: list[str] = list(EDITS)
    edits: int = Field(default=2, ge=1, le=8)
    reversed: float = Field(default=0.25, ge=0, le=1)
    area: tuple[float, float] = (0.01, 0.35)
    seed: int = Field(default=0, ge=0)
    where: str = ""

    @field_validator("make")
    @classmethod
    def _known(cls, make: list[str]) -> list[str]:
        for kind in make:
            if kind not in EDITS:
                raise ValueError(
                    f"{kind!r} is no kind of edit{nearest(kind, list(EDITS))}; there are {', '.join(EDITS)}"
                )
        return [kind for kind in EDITS if kind in make]

    @field_validator("area", mode="before")
    @classmethod
    def _split_area(cls, area: Any) -> Any:
        return area.split(":") if isinstance(area, str) else area

    @model_validator(mode="after")
    def _ordered(self) -> EditingOptions:
        if not 0 <= self.area[0] < self.area[1] <= 1:
            raise ValueError(f"area {list(self.area)}: give [least, most] shares of the picture")
        return self

    def check(self, made: bool) -> None:
        """Raise InputError for options that are of no use. made: whether edits are made, or given by files."""
        files = {"source", "target", "instruction"}
        useless = sorted(self.model_fields_set & (files if made else set(type(self).model_fields) - files))
        if useless:
            what = "datasets, whose labels edits are made by" if made else "files, which have their edits"
            raise InputError(f"{useless[0].replace('_', '-')}: it says nothing of {what}; leave it out")

    def recipe(self, made: bool) -> dict[str, Any]:
        """The parameters that shards depend on."""
        files = {"source", "target", "instruction"}
        return self.model_dump(mode="json", exclude=files) if made else self.model_dump(mode="json", include=files)


OPTIONS: dict[str, type[Section]] = {
    "identity": IdentityOptions,
    "subject": SubjectOptions,
    "editing": EditingOptions,
}
