"""Which rows a condition is true of: what other labelers read to label these rows alone."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from pydantic import BaseModel

from labeling import labeler
from labeling.dataset import IMAGES, evaluate
from labeling.labeler import Labeler, Row


class SelectionLabeler(Labeler):
    """A bit for each row, of SQL over the columns of other groups. `label --where` makes its groups."""

    name = "selection"
    version = 1
    packages = ("duckdb",)
    schema = pa.schema([("selected", pa.bool_())])

    class Parameters(labeler.Parameters):
        """where: the condition, as after WHERE; columns: that it reads, as "group.column"."""

        where: str = "true"
        columns: tuple[str, ...] = ()

    parameters: Parameters

    def __init__(self, group: str, parameters: BaseModel) -> None:
        super().__init__(group, parameters)
        self.reads = self.parameters.columns

    @property
    def model(self) -> str:
        return self.parameters.where

    def label_table(self, table: pa.Table) -> list[Row]:
        """Columns of `schema` for each row of the columns read, which keep their types: of Python's numbers the
        smaller ones would compare otherwise. "images.image" is as it is stored, and "images.id" is there always."""
        groups: dict[str, dict[str, Any]] = {IMAGES: {}}
        for name in table.column_names:
            group, _, column = name.partition(".")
            groups.setdefault(group, {})[column] = table[name]
        tables = {group: pa.table(columns) for group, columns in groups.items()}
        return [{"selected": bool(one)} for one in evaluate(self.parameters.where, tables)]
