"""Tables beside pictures that say more of each: metadata.csv, .jsonl and .parquet, as people's tools write them.

A line that cannot be understood costs that line and is counted; the others count.
"""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from labeling.dataset import Store
from labeling.sources.facts import plain_value, rows_of, storable
from model.inputs import InputError, one_line

METADATA = ("metadata.csv", "metadata.tsv", "metadata.jsonl", "metadata.parquet")  # in any case
FILE_NAME = "file_name"
COMPANIONS = ("right", "disparity")  # columns that name files belonging to another image's row
_NAMES = (FILE_NAME, "image_file_name", "filename", "file", "image", "path")
_DELIMITERS = ",;\t|"
_MAX_FIELD = 1 << 27
_MAX_LINES = 1000  # of one record: a quotation mark that is never closed would take the rest of the file


@dataclass
class MetadataTable:
    """What tables of a folder say of its files.

    names: of the files in the source, as `joining_name` gives them; rows: a JSON object of each; companions: files
    that belong to another one's row; remarks: what could not be read, one line each.
    """

    names: list[str] = field(default_factory=list)
    rows: list[str] = field(default_factory=list)
    companions: set[str] = field(default_factory=set)
    remarks: list[str] = field(default_factory=list)

    def lookup(self) -> pa.Table:
        """Columns name and described; the last line of a name comes first."""
        table = pa.table({"name": pa.array(self.names, pa.string()), "described": pa.array(self.rows, pa.string())})
        return table.take(pa.array(range(len(self.names) - 1, -1, -1), pa.int64()))


def is_metadata(name: str) -> bool:
    """Whether a file of a source is a table about others, by its name."""
    return PurePosixPath(name).name.lower() in METADATA


def joining_name(name: str) -> str:
    """A file's name in the form by which tables and listings are compared.

    Unicode in composed form, slashes forward, no ./ before it.
    """
    if not name.isascii():
        name = unicodedata.normalize("NFC", name)
    name = name.replace("\\", "/")
    while name.startswith("./"):
        name = name[2:]
    return name


def read_metadata(store: Store, files: Iterable[str]) -> MetadataTable:
    """What the tables among the files of a store say. Raises InputError for one at the top that names no files."""
    table = MetadataTable()
    for file in files:
        folder = "" if "/" not in file else file.rpartition("/")[0] + "/"
        try:
            _read_table(store, file, folder, table)
        except InputError as error:
            if not folder:
                raise
            table.remarks.append(f"{error}; it is left out")
    return table


def _read_table(store: Store, file: str, folder: str, table: MetadataTable) -> None:
    address = f"{store.uri}/{file}"
    trouble: Counter[str] = Counter()
    form = PurePosixPath(file).suffix.lower()
    if form == ".parquet":
        rows = _parquet_rows(store, file)
    else:
        text = decode_text(store.read(file))
        rows = _json_rows(text, trouble) if form == ".jsonl" else _csv_rows(text, trouble)
    key = None
    for row in rows:
        key = key or _name_column(row, address)
        name = row.get(key)
        if not isinstance(name, str) or not name.strip():
            if any(value not in (None, "") for value in row.values()):
                trouble["without a file name"] += 1
            continue
        facts = {column: value for column, value in row.items() if column != key and value not in (None, "")}
        for column in COMPANIONS:
            if isinstance(facts.get(column), str):
                facts[column] = folder + joining_name(facts[column])
                table.companions.add(facts[column])
        table.names.append(storable(_in_source(joining_name(name.strip()), folder, store)))
        table.rows.append(storable(json.dumps(facts, ensure_ascii=False, separators=(",", ":"))))
    for what, count in trouble.items():
        table.remarks.append(f"{file}: {count} {'line' if count == 1 else 'lines'} {what}")


def _in_source(name: str, folder: str, store: Store) -> str:
    """The name in the source of a file that a table in a folder names: below that folder, or by its whole address."""
    whole = f"{joining_name(store.uri)}/"
    return name.removeprefix(whole) if name.startswith(whole) else folder + name


def _name_column(row: Mapping[str, Any], address: str) -> str:
    names = {_plain(str(column)): column for column in reversed(list(row))}
    for name in _NAMES:
        if name in names:
            return str(names[name])
    raise InputError(f"{address}: no column 'file_name'; it names the picture each line is about")


def decode_text(raw: bytes) -> str:
    """The text of bytes that are UTF-8, UTF-16 with its mark or without, or else Latin-1 as Windows extends it."""
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return raw.decode("utf-16", "replace")
    if raw[:200].count(0) > len(raw[:200]) // 4:
        return raw.decode("utf-16-le" if raw[1:2] == b"\0" else "utf-16-be", "replace")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        try:
            return raw.decode("cp1252")
        except UnicodeDecodeError:
            return raw.decode("latin-1")


def _json_rows(text: str, trouble: Counter[str]) -> Iterator[dict[str, Any]]:
    """Objects, one a line; or, as other programs write them, over several lines or in one list."""
    for row in _listed(text) if text.lstrip()[:1] == "[" or _is_spread(text) else _by_line(text):
        if isinstance(row, dict):
            yield {column: plain_value(value) for column, value in row.items()}
        else:
            trouble["without a JSON object, left out"] += 1


def _by_line(text: str) -> Iterator[Any]:
    for line in io.StringIO(text):
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError):
                yield None


def _is_spread(text: str) -> bool:
    """Whether the first object of a text goes over several lines."""
    first = text.lstrip().partition("\n")[0]
    return first.startswith("{") and not first.rstrip().endswith("}") and bool(next(iter(_listed(text, most=1))))


def _listed(text: str, most: int | None = None) -> list[Any]:
    """The objects of a text one after another, those of a list one by one; what follows a fault is one None."""
    found: list[Any] = []
    decoder, place = json.JSONDecoder(), 0
    while (most is None or len(found) < most) and (place := _next_sign(text, place)) < len(text):
        try:
            value, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            return [*found, None]
        found += value if isinstance(value, list) else [value]
    return found


def _next_sign(text: str, place: int) -> int:
    while place < len(text) and text[place] in " \t\r\n,":
        place += 1
    return place


def _parquet_rows(store: Store, file: str) -> Iterator[dict[str, Any]]:
    try:
        with store.open(file) as opened:
            for batch in pq.ParquetFile(opened).iter_batches(4096):
                for row in rows_of(batch):
                    yield {column: plain_value(value) for column, value in row.items()}
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{store.uri}/{file} cannot be read ({one_line(error)})") from None


def _csv_rows(text: str, trouble: Counter[str]) -> Iterator[dict[str, Any]]:
    """Rows of a CSV by its header; further fields of a line are left out."""
    csv.field_size_limit(_MAX_FIELD)
    lines = _Lines(text)
    header: list[str] | None = None
    delimiter = ","
    while (first := lines.next()) is not None:
        if not first.strip().strip(_DELIMITERS):
            continue
        if header is None:
            if first.lower().startswith("sep=") and len(first.strip()) == 5:
                continue  # how spreadsheets say their delimiter, and the header shows it
            delimiter = max(_DELIMITERS, key=lambda sign: (_knows_name(first, sign), first.count(sign)))
        fields = _record(first, lines, delimiter, len(header) if header else None, trouble)
        if header is None:
            header = _told_apart([name.strip() for name in fields])
            continue
        if len(fields) > len(header) and any(fields[len(header) :]):
            trouble["with more fields than columns; the further ones are left out (quote texts with commas)"] += 1
        yield dict(zip(header, fields, strict=False))


def _told_apart(names: list[str]) -> list[str]:
    """Names of columns, of which no two are equal: the second "text" becomes "text.1"."""
    counts: Counter[str] = Counter()
    result = []
    for name in names:
        result.append(f"{name}.{counts[name]}" if counts[name] else name)
        counts[name] += 1
    return result


def _knows_name(header: str, delimiter: str) -> bool:
    return any(_plain(name.strip().strip('"')) in _NAMES for name in header.split(delimiter))


def _plain(column: str) -> str:
    """The name of a column as programs write it: "File Name" is file_name."""
    return column.strip().lower().replace(" ", "_").replace("-", "_")


def _record(first: str, lines: _Lines, delimiter: str, width: int | None, trouble: Counter[str]) -> list[str]:
    """The fields of the record that begins with a line; a quotation mark that is never closed ends with its line."""
    start = lines.at

    def following() -> Iterator[str]:
        yield first
        while lines.at - start < _MAX_LINES and (line := lines.next()) is not None:
            yield line

    try:
        fields = next(csv.reader(following(), delimiter=delimiter))
        if lines.at == start or width is None or len(fields) == width:
            return fields
    except (csv.Error, StopIteration):
        pass
    lines.at = start
    trouble["with a quotation mark that is not closed, read without it"] += 1
    return [part.strip().strip('"') for part in first.rstrip("\r\n").split(delimiter)]


class _Lines:
    """Lines of a text that can be gone back to."""

    def __init__(self, text: str) -> None:
        self._lines = list(io.StringIO(text, newline=None))  # every kind of line end
        self.at = 0

    def next(self) -> str | None:
        if self.at >= len(self._lines):
            return None
        self.at += 1
        return self._lines[self.at - 1]
