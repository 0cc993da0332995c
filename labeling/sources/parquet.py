"""Parquet files with a column of encoded images, as HuggingFace datasets write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from labeling.dataset import Entry, Store
from labeling.sources.container import Item
from model.inputs import InputError, one_line

_IMAGE_COLUMNS = ("image", "picture", "bytes", "jpg", "png")  # the first of them that holds bytes
_FACTS = {"author": "author", "licence": "licence", "license": "licence", "text": "text", "caption": "text"}


class ParquetTable:
    """A Parquet file; its items are its rows, named by their numbers."""

    def items(self, store: Store, file: str, entry: Entry) -> list[Item]:
        try:
            with store.open(file) as opened:
                parquet = pq.ParquetFile(opened)
                _image_column(parquet.schema_arrow, f"{store.uri}/{file}")
                items: list[Item] = []
                for index in range(parquet.num_row_groups):
                    group = parquet.metadata.row_group(index)
                    size = group.total_byte_size // max(group.num_rows, 1)
                    first = len(items)
                    items += [
                        Item(f"{file}/{row:09d}", size, file, row) for row in range(first, first + group.num_rows)
                    ]
                return items
        except pa.ArrowInvalid as error:
            raise InputError(f"{store.uri}/{file} cannot be read ({one_line(error)}); is all of it there?") from None

    def read(self, store: Store, item: Item) -> tuple[bytes, dict[str, Any]]:
        assert item.place is not None
        with store.open(item.file) as opened:
            parquet = pq.ParquetFile(opened)
            image_column = _image_column(parquet.schema_arrow, f"{store.uri}/{item.file}")
            facts = [name for name in _FACTS if name in parquet.schema_arrow.names]
            row = item.place
            for index in range(parquet.num_row_groups):
                count = parquet.metadata.row_group(index).num_rows
                if row < count:
                    values = parquet.read_row_group(index, columns=[image_column, *facts]).slice(row, 1).to_pylist()[0]
                    break
                row -= count
        image = values.pop(image_column)
        raw = image.get("bytes") if isinstance(image, Mapping) else image
        return raw or b"", {_FACTS[name]: value for name, value in values.items() if value}


def _image_column(schema: pa.Schema, place: str) -> str:
    """The column with encoded images: binary, or the struct of bytes and path that HuggingFace datasets write."""
    for name in _IMAGE_COLUMNS:
        if name in schema.names:
            kind = schema.field(name).type
            if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_struct(kind):
                return name
    raise InputError(f"{place}: no column of encoded pictures (image); it has {', '.join(schema.names)}")
