"""Labelers small enough to reason about; tests name them simple_labelers:CLASS."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from labeling.labeler import Labeler, Parameters, Prepared, Row, RowError
from model.inputs import InputError


class BrightnessParameters(Parameters):
    """gain multiplies; levels rounds, so that different gains can give the same values."""

    gain: float = 1.0
    levels: int = 256
    refuse_wider_than: int = 10_000


class Brightness(Labeler):
    """Mean gray value of a picture."""

    name: ClassVar[str] = "brightness"
    version: ClassVar[int] = 1
    schema: ClassVar[pa.Schema] = pa.schema([("value", pa.float32()), ("height", pa.int32())])
    Parameters: ClassVar[type[Parameters]] = BrightnessParameters
    batch_size = 2

    def label_row(self, row: Row) -> Row:
        picture = row["images.image"]
        if picture.shape[1] > self.parameters.refuse_wider_than:
            raise RowError(f"wider than {self.parameters.refuse_wider_than}")
        step = 256 / self.parameters.levels
        return {"value": picture.mean() * self.parameters.gain // step * step, "height": picture.shape[0]}


class PatientParameters(BrightnessParameters):
    """seconds: for each picture."""

    seconds: float = 1.0


class Patient(Brightness):
    """The same, so slow that a test has time to disturb it."""

    name: ClassVar[str] = "patient"
    Parameters: ClassVar[type[Parameters]] = PatientParameters

    def label_row(self, row: Row) -> Row:
        time.sleep(self.parameters.seconds)
        return super().label_row(row)


class GatedParameters(BrightnessParameters):
    """gate: a file with the number of images that a process may label."""

    gate: str


class Gated(Brightness):
    """The same, for as many images as a test allows."""

    name: ClassVar[str] = "gated"
    Parameters: ClassVar[type[Parameters]] = GatedParameters

    def load(self) -> None:
        self.labeled = 0

    def label_row(self, row: Row) -> Row:
        while self.labeled >= int(Path(self.parameters.gate).read_text()):
            time.sleep(0.05)
        self.labeled += 1
        return super().label_row(row)


class Doubled(Labeler):
    """Twice the brightness: a label made from a label."""

    name: ClassVar[str] = "doubled"
    version: ClassVar[int] = 1
    reads = ("brightness.value",)
    schema: ClassVar[pa.Schema] = pa.schema([("twice", pa.float32())])

    def label_row(self, row: Row) -> Row:
        if row["brightness.value"] is None:
            raise RowError("no brightness")
        return {"twice": 2 * row["brightness.value"]}


class SpreadParameters(Parameters):
    """journal: folder where each step notes who did it, "" for none; seconds: for each batch; fault: what the device
    says to each batch, "" for a sound one; refuse_wider_than: as for brightness."""

    journal: str = ""
    seconds: float = 0.0
    fault: str = ""
    refuse_wider_than: int = 10_000


class Spread(Labeler):
    """Standard deviation of gray values, by a "network": prepared on CPUs, inferred in batches, finished on CPUs."""

    name: ClassVar[str] = "spread"
    version: ClassVar[int] = 1
    reads: tuple[str, ...] = ("images.image", "brightness.value")
    schema: ClassVar[pa.Schema] = pa.schema([("spread", pa.float64()), ("width", pa.int32())])
    Parameters: ClassVar[type[Parameters]] = SpreadParameters
    batch_size = 4

    def prepare(self, row: Row) -> Prepared:
        self._note("prepare", 1)
        picture = row["images.image"]
        if picture.shape[1] > self.parameters.refuse_wider_than:
            raise RowError(f"wider than {self.parameters.refuse_wider_than}")
        return Prepared(picture[::8, ::8].astype("float32"), {"width": picture.shape[1]})

    def infer(self, inputs: list[Any]) -> list[Any]:
        self._note("infer", len(inputs))
        time.sleep(self.parameters.seconds)
        if self.parameters.fault:
            raise RuntimeError(self.parameters.fault)
        return [one.std() for one in inputs]

    def finish(self, output: Any, context: Any) -> Row:
        self._note("finish", 1)
        return {"spread": output, "width": context["width"]}

    def _note(self, step: str, rows: int) -> None:
        if self.parameters.journal:
            note = {"step": step, "rows": rows, "process": os.getpid(), "gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}
            with Path(self.parameters.journal, "notes.jsonl").open("a") as file:
                file.write(json.dumps(note) + "\n")


class Loose(Spread):
    """The same, whose batches may hold whatever rows there are."""

    name: ClassVar[str] = "loose"
    reads = ("images.image",)
    deterministic = False


class Widths(Labeler):
    """A label on CPUs made from what a network gave, and from the picture again."""

    name: ClassVar[str] = "widths"
    version: ClassVar[int] = 1
    reads = ("spread.width", "images.image")
    schema: ClassVar[pa.Schema] = pa.schema([("sum", pa.int32())])

    def label_row(self, row: Row) -> Row:
        if row["spread.width"] is None:
            raise RowError("no spread")
        return {"sum": row["spread.width"] + row["images.image"].shape[1]}


class BrokenParameters(Parameters):
    """until: a file without which nothing works; wider_than: of the pictures that need it."""

    until: str
    wider_than: int = 0


class Broken(Labeler):
    """Width of a picture, by a program that fails on some of them until it is mended."""

    name: ClassVar[str] = "broken"
    version: ClassVar[int] = 1
    schema: ClassVar[pa.Schema] = pa.schema([("width", pa.int32())])
    Parameters: ClassVar[type[Parameters]] = BrokenParameters

    def label_row(self, row: Row) -> Row:
        width = row["images.image"].shape[1]
        if width > self.parameters.wider_than and not Path(self.parameters.until).exists():
            raise ValueError("it is broken")
        return {"width": width}


class Halved(Labeler):
    """Half of that width."""

    name: ClassVar[str] = "halved"
    version: ClassVar[int] = 1
    reads = ("broken.width",)
    schema: ClassVar[pa.Schema] = pa.schema([("half", pa.float32())])

    def label_row(self, row: Row) -> Row:
        if row["broken.width"] is None:
            raise RowError("no width")
        return {"half": row["broken.width"] / 2}


class Unloadable(Brightness):
    """A labeler whose model a user named wrongly, which shows only where it is loaded."""

    name: ClassVar[str] = "unloadable"

    def load(self) -> None:
        raise InputError("unloadable.model: no such model; name another")
