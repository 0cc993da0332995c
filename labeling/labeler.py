"""What a labeler is: a batch of rows in, its group's columns out. It knows nothing of Ray, shards or S3."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from labeling.dataset import MissingParameter

Row = dict[str, Any]


class Parameters(BaseModel):
    """Parameters of a labeler; a key it does not have is refused. They are part of a shard's recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class AddedLater:
    """Marks a parameter that its labeler got after datasets had been labeled with it: `Annotated[str, AddedLater()]`.

    At its default it is left out of what a group declares, so that the shards made before stay fresh.
    """


class RowError(Exception):
    """This row cannot be labeled; the message goes into its `error` column and the row keeps its place."""


class MissingParameterError(RowError):
    """The row can have no label until a parameter is set; what shows errors tells it apart from them.

    what: "no depth model", as a person reads it; parameter: "LABELER.PARAMETER", which names what makes the label.
    """

    def __init__(self, what: str, parameter: str) -> None:
        super().__init__(MissingParameter(what, parameter).reason)


@dataclass(frozen=True)
class Prepared:
    """What `Labeler.prepare` makes of a row.

    inputs: what the network takes of it, in numpy arrays and Python values that are cheap to send to another process;
    context: what `Labeler.finish` needs besides the network's output, as the picture's size.
    """

    inputs: Any
    context: Any = None


@dataclass(frozen=True)
class LanguageModel:
    """A model that `ray.data.llm` runs for a labeler, in actors of its own.

    source: hub name or path; engine: arguments of vLLM's engine.
    """

    source: str
    engine: Mapping[str, Any]


class Labeler:
    """One kind of label.

    A labeler either defines `label_row` (and `label`, where batches are faster), or the three steps of one that has a
    network: `prepare` (a row, on CPUs), `infer` (a batch, where the network is) and `finish` (a row, on CPUs). A job
    that gives the labeler a GPU runs the steps in pools of processes of their own.

    A row is a dict of the columns named in `reads` ("group.column") plus "id". "images.image" arrives decoded, as
    (H, W, 3) uint8 RGB; every other column as the Python value that pyarrow gives, None where the group that it comes
    from is in error. Results are dicts of the columns of `schema`; the job adds `id`, `model`, `version` and `error`.
    """

    name: ClassVar[str]
    version: int
    reads: tuple[str, ...] = ("images.image",)
    schema: pa.Schema  # a labeler may add columns that its parameters ask for
    Parameters: ClassVar[type[BaseModel]] = Parameters
    packages: tuple[str, ...] = ()  # modules that labeling imports and that are installed with an extra only
    deterministic: bool = True  # on CPUs the same rows give the same bytes, whatever else is in their batch
    batch_size: int = 8  # rows of a call where the job's resources name no other number
    selection: str = ""  # a column "group.column" that says which rows are to be labeled; "": all of them

    @classmethod
    def first_parameters(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Parameters of a group that is declared for the first time, besides those given.

        Defaults stay what they were when labels were made with them; what is better since is said here, and recorded.
        """
        return {}

    def __init__(self, group: str, parameters: BaseModel) -> None:
        """`group` is the column group to fill: `name`, or `name-…` for a labeler that fills several."""
        self.group = group
        self.parameters = parameters
        self.device = "cpu"  # where `load` puts the network; the job sets it before

    @property
    def model(self) -> str:
        """Name and version of what makes the labels, as written into each row."""
        return self.name

    @property
    def needs(self) -> tuple[str, ...]:
        """The columns that a shard is made of: `reads`, and the one that selects rows."""
        return (*self.reads, self.selection) if self.selection else tuple(self.reads)

    @property
    def has_network(self) -> bool:
        """Whether the labels come from `prepare`, `infer` and `finish`: only then is a GPU of use to the labeler."""
        return type(self).infer is not Labeler.infer

    @property
    def uses_device(self) -> bool:
        """Whether a GPU is of use to the labeler; not to one whose network runs on other machines."""
        return self.has_network

    @property
    def language_model(self) -> LanguageModel | None:
        """The model that `ray.data.llm` runs in the place of `infer`: `prepare` gives the body of a chat completion,
        and `finish` takes an `Answer`."""
        return None

    def weights_digest(self) -> str:
        """Digest of the weights that labels depend on; "" for a labeler without weights."""
        return ""

    def load_processor(self) -> None:
        """Load what `prepare` and `finish` need. Called once in each process that runs one of them."""

    def load(self) -> None:
        """Load the network onto `device`, or whatever `label` needs. Called once in each process that runs it."""

    def prepare(self, row: Row) -> Prepared:
        """What the network takes of one row. Raises RowError for a row that can have no label."""
        raise NotImplementedError

    def infer(self, inputs: list[Any]) -> list[Any]:
        """The network's output for each of a batch of inputs, in numpy arrays and Python values.

        Raises only for the sake of the network or its device: one batch holds inputs of any shapes.
        """
        raise NotImplementedError

    def finish(self, output: Any, context: Any) -> Row:
        """Columns of `schema` for one row, of the network's output and the context of its `Prepared`.

        Raises RowError for a row that can have no label.
        """
        raise NotImplementedError

    def label(self, rows: list[Row]) -> list[Row]:
        """Columns of `schema` for each row.

        A row that fails raises RowError (or anything else); the job then repeats the batch row by row, so that
        only the failing row is in error.
        """
        if not self.has_network:
            return [self.label_row(row) for row in rows]
        prepared = [self.prepare(row) for row in rows]
        outputs = self.infer([one.inputs for one in prepared])
        return [self.finish(output, one.context) for output, one in zip(outputs, prepared, strict=True)]

    def label_row(self, row: Row) -> Row:
        """Columns of `schema` for one row."""
        if not self.has_network:
            raise NotImplementedError(f"{type(self).__name__} defines neither label_row nor infer")
        return self.label([row])[0]


class WholeLabeler(Labeler):
    """A labeler whose labels depend on all rows of the dataset: on groups that they form, or on their order."""

    digest_of_rows = ""  # of all that the columns read hold, as the job sets it: another one makes all shards stale

    def weights_digest(self) -> str:
        return self.digest_of_rows

    def label_tables(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """ "id", columns of `schema` and `error` for the rows of each shard.

        tables: of each shard the columns of `reads` as "group.column", and "id" and "removed" (whether the picture was
        removed at its source). Values are null where the group that they come from is in error. The shards are read
        each time that it is iterated over, so that none need be kept.
        """
        raise NotImplementedError


def required(row: Row, *columns: str) -> None:
    """Raise RowError for the first of the columns that the row lacks, because its group is in error there."""
    for column in columns:
        if row[column] is None:
            raise RowError(f"no {column.partition('.')[0]}: {column} is missing")
