"""Parquet files with a column of encoded images, as Hugging Face datasets, Spark and pandas write them."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from labeling.dataset import Entry, Store
from labeling.sources.facts import USUAL, Naming, plain_value, rows_of
from labeling.sources.items import Contents, Item, Reading, items_table, trouble_of
from model.inputs import InputError, nearest, one_line

# The first of them that holds pictures, whatever its case; else the only column of bytes.
IMAGE_COLUMNS = ("image", "picture", "img", "photo", "bytes", "image_bytes", "jpg", "jpeg", "png", "webp")
_PATH_COLUMNS = ("image", "picture", "img", "path", "image_path", "file_name", "filename")  # of files beside the table
_BASE64 = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR")  # how JPEG, PNG, GIF and WebP begin in it
_ROWS = 16  # that are decoded from a row group at a time
_BUFFER = 8 << 20  # bytes of one request
_SHOWN = 100  # characters of a name in a reason


class ParquetTable:
    """A Parquet file; its items are its rows, named by their numbers.

    naming: the columns of pictures and captions, where a user names them.
    """

    def __init__(self, naming: Naming = USUAL) -> None:
        self.image, self.text = naming.image, naming.text

    def contents(self, store: Store, file: str, entry: Entry) -> Contents:
        try:
            with store.open(file) as opened:
                parquet = pq.ParquetFile(opened)
                column = _image_column(parquet.schema_arrow, self.image, f"{store.uri}/{file}")
                if self.text:
                    _require(parquet.schema_arrow, self.text, f"{store.uri}/{file}")
                return Contents(_rows(parquet.metadata, file, column))
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{store.uri}/{file} cannot be read ({one_line(error)}); is all of it there?") from None

    def read(self, store: Store, items: Sequence[Item]) -> Iterator[Reading]:
        waiting = {item.place: item for item in items}
        try:
            with store.open(items[0].file) as opened:
                # A row group may be larger than memory: its columns are read as they are decoded.
                parquet = pq.ParquetFile(opened, buffer_size=_BUFFER, pre_buffer=False)
                column = _image_column(parquet.schema_arrow, self.image, f"{store.uri}/{items[0].file}")
                for row, values in _values(parquet, waiting, column):
                    yield _reading(store, waiting.pop(row), values, column)
        except InputError:  # of the store or the whole table: no row is to blame
            raise
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            for item in waiting.values():
                yield Reading(item, reason=f"cannot be read from its table ({trouble_of(error)})")


def _rows(metadata: pq.FileMetaData, file: str, column: str) -> pa.Table:
    """Items of all rows; their sizes are the means of their row groups."""
    rows, first = [], 0
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        leaves = (group.column(number) for number in range(group.num_columns))
        size = sum(leaf.total_compressed_size for leaf in leaves if leaf.path_in_schema.split(".")[0] == column)
        rows += [
            {"name": f"{file}/{row:09d}", "size": size // group.num_rows, "file": file, "place": row, "together": index}
            for row in range(first, first + group.num_rows)
        ]
        first += group.num_rows
    return items_table(rows)


def _values(parquet: pq.ParquetFile, items: Mapping[Any, Item], column: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and values of the rows wanted; each row group that has some is gone through once."""
    names = [field.name for field in parquet.schema_arrow if field.name == column or not _is_heavy(field.type)]
    last, first = max(items), 0
    rows_wanted = set(items)
    for index in range(parquet.num_row_groups):
        count = parquet.metadata.row_group(index).num_rows
        here = rows_wanted.intersection(range(first, first + count))
        row = first
        batches = parquet.iter_batches(_ROWS, row_groups=[index], columns=names) if here else ()
        for batch in batches:
            for offset in range(batch.num_rows):
                if row + offset in here:
                    yield row + offset, rows_of(batch.slice(offset, 1))[0]
            row += batch.num_rows
            if row > last:
                return
        first += count


def _reading(store: Store, item: Item, values: dict[str, Any], column: str) -> Reading:
    image = values.pop(column)
    facts = {name: plain for name, value in values.items() if (plain := plain_value(value)) is not None}
    raw, path = image, ""
    if isinstance(image, list):
        raw = image = next((one for one in image if one), None)
    if isinstance(image, Mapping):
        raw, path = image.get("bytes"), str(image.get("path") or "")
    elif isinstance(image, str):
        raw = _encoded_as_text(image)
        path = "" if raw else image
    if raw:
        return Reading(item, bytes(raw), facts)
    if not path:
        return Reading(item, facts=facts, reason=f"no picture in column {column}")
    inside = PurePosixPath(path.replace("\\", "/"))
    text = one_line(path, _SHOWN)
    if "://" in path or inside.is_absolute() or ".." in inside.parts:
        return Reading(item, facts=facts, reason=f"{text} is not below the folder of its table")
    try:
        return Reading(item, store.read(str(PurePosixPath(item.file).parent / inside)), facts)
    except (FileNotFoundError, IsADirectoryError):
        return Reading(item, facts=facts, reason=f"{text} is not there")
    except InputError:
        raise
    except (OSError, ValueError) as error:  # of a text that is no name of a file, as base64
        return Reading(item, facts=facts, reason=f"{text} cannot be read ({trouble_of(error, _SHOWN)})")


def _encoded_as_text(text: str) -> bytes | None:
    """The picture that a text holds in base64, as tables of vision-language models do; None where it holds none."""
    text = text.partition(",")[2] if text.startswith("data:") else text
    if not text.startswith(_BASE64):
        return None
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError:
        return None


def _image_column(schema: pa.Schema, option: str, address: str) -> str:
    """The column with encoded images: bytes, or the struct of bytes and path that Hugging Face datasets write.

    Without one, a column that names files. Raises InputError where there is neither.
    """
    if option:
        _require(schema, option, address)
        return option
    names = {name.lower(): name for name in reversed(schema.names)}
    for name in IMAGE_COLUMNS:
        if name in names and _holds_bytes(schema.field(names[name]).type):
            return names[name]
    binary = [field.name for field in schema if _holds_bytes(field.type)]
    if len(binary) == 1:
        return str(binary[0])
    for name in _PATH_COLUMNS:
        if name in names and _is_text(schema.field(names[name]).type):
            return names[name]
    raise InputError(f"{address}: no column of encoded pictures (image); it has {', '.join(schema.names)}")


def _require(schema: pa.Schema, name: str, address: str) -> None:
    """Raise InputError where a table lacks the column that a user names."""
    if name not in schema.names:
        hint = nearest(name, schema.names)
        raise InputError(f"{address}: no column {name!r}{hint}; it has {', '.join(schema.names)}")


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_heavy(kind: pa.DataType) -> bool:
    """Whether a column holds bytes, which no description does."""
    return _holds_bytes(kind)
