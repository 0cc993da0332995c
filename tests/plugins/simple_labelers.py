"""Labelers small enough to reason about; tests name them simple_labelers:CLASS."""

from __future__ import annotations

import time
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from labeling.labeler import Labeler, Parameters, Row, RowError
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


class Unloadable(Brightness):
    """A labeler whose model a user named wrongly, which shows only where it is loaded."""

    name: ClassVar[str] = "unloadable"

    def load(self) -> None:
        raise InputError("unloadable.model: no such model; name another")
