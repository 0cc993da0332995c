"""What a labeler is: a batch of rows in, its group's columns out. It knows nothing of Ray, shards or S3."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from labeling.dataset import MissingParameter

Row = dict[str, Any]


class Parameters(BaseModel):
    """Parameters of a labeler; a key it does not have is refused. They are part of a shard's recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class RowError(Exception):
    """This row cannot be labeled; the message goes into its `error` column and the row keeps its place."""


class MissingParameterError(RowError):
    """The row can have no label until a parameter is set; what shows errors tells it apart from them.

    what: "no depth model", as a person reads it; parameter: "LABELER.PARAMETER", which names what makes the label.
    """

    def __init__(self, what: str, parameter: str) -> None:
        super().__init__(MissingParameter(what, parameter).reason)


class Labeler(ABC):
    """One kind of label.

    A row given to `label` is a dict of the columns named in `reads` ("group.column") plus "id".
    "images.image" arrives decoded, as (H, W, 3) uint8 RGB; every other column as the Python value that pyarrow gives,
    None where the group that it comes from is in error. Results are dicts of the columns of `schema`; the job adds
    `id`, `model`, `version` and `error`.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    reads: tuple[str, ...] = ("images.image",)
    schema: ClassVar[pa.Schema]
    Parameters: ClassVar[type[BaseModel]] = Parameters
    packages: tuple[str, ...] = ()  # modules that labeling imports and that are installed with an extra only
    deterministic: bool = True  # the same rows give the same bytes; GPU kernels usually do not
    cpus: ClassVar[float] = 1.0
    gpus: float = 0.0
    batch_size: int = 8  # rows per call; batches start at row-group boundaries, so they depend on the shard alone

    def __init__(self, group: str, parameters: BaseModel) -> None:
        """`group` is the column group to fill: `name`, or `name-…` for a labeler that fills several."""
        self.group = group
        self.parameters = parameters

    @property
    def model(self) -> str:
        """Name and version of what makes the labels, as written into each row."""
        return self.name

    def weights_digest(self) -> str:
        """Digest of the weights that labels depend on; "" for a labeler without weights."""
        return ""

    def load(self) -> None:  # noqa: B027 - a labeler without weights has nothing to load
        """Load models. Called once in the process that labels, before the first `label`."""

    def label(self, rows: list[Row]) -> list[Row]:
        """Columns of `schema` for each row. The default labels row by row; override where batches are faster.

        A row that fails raises RowError (or anything else); the job then repeats the batch row by row, so that
        only the failing row is in error.
        """
        return [self.label_row(row) for row in rows]

    @abstractmethod
    def label_row(self, row: Row) -> Row:
        """Columns of `schema` for one row."""


def required(row: Row, *columns: str) -> None:
    """Raise RowError for the first of the columns that the row lacks, because its group is in error there."""
    for column in columns:
        if row[column] is None:
            raise RowError(f"no {column.partition('.')[0]}: {column} is missing")
