"""Objects: the names of what a picture shows, for models that find what they are told to find."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from pydantic import Field

from labeling.labeler import Row, RowError, required
from labeling.networks.text_writer import WriterLabeler
from labeling.networks.words import MOST_NAMES, parse_names, phrases

_QUESTION = (
    "Name the things that this picture shows, the most prominent first and at most ten of them: "
    "short English nouns in the singular, separated by commas, and nothing else."
)


class ObjectsLabeler(WriterLabeler):
    """At most ten names (docs/paper.md, One-Gen): what a model answers, or the things that the caption speaks of."""

    name = "objects"
    version = 1
    reads: tuple[str, ...] = ("caption.caption",)
    network_reads = ("images.image",)
    schema = pa.schema([("names", pa.list_(pa.string()))])

    class Parameters(WriterLabeler.Parameters):
        """Those of a model that writes, where one is named; most: names of a picture."""

        tokens: int = Field(64, ge=1)
        prompt: str = _QUESTION
        most: int = Field(MOST_NAMES, ge=1, le=20)

    parameters: Parameters

    @property
    def model(self) -> str:
        return self.written_by or "words of the caption"

    def columns_of(self, text: str) -> Row:
        names = parse_names(text, self.parameters.most)
        if not names:
            raise RowError("the model named nothing")
        return {"names": names}

    def label_row(self, row: Row) -> dict[str, Any]:
        if self.has_network:
            return super().label_row(row)
        required(row, "caption.caption")
        return {"names": phrases(row["caption.caption"])[: self.parameters.most]}
