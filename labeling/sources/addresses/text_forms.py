"""How rows lie in lines of text: comma- or tab-separated values, and JSON lines."""

from __future__ import annotations

import csv
import io
import json
from collections import deque
from collections.abc import Iterator
from typing import Any, Protocol

from labeling.sources.addresses.rows import BadRow, Row
from model.inputs import InputError

LONGEST_FIELD = 1 << 20  # a quote that nothing closes would else take in the rest of the file
_ADDRESS = ("http://", "https://")


class TextForm(Protocol):
    """A form of text. Records are found among bytes, so that they can be cut out; their values are decoded later."""

    def columns(self, start: bytes) -> tuple[list[str], int]:
        """The columns, and how many bytes at the start of the file say so. Raises InputError where nothing does."""

    def records(self, lines: Iterator[bytes]) -> Iterator[tuple[bytes, bool]]:
        """The bytes of each record, and whether it is a row (blank lines are none)."""

    def rows(self, raw: bytes, columns: list[str]) -> Iterator[Row]:
        """The rows of some records."""


class SeparatedValues:
    """CSV as in RFC 4180, and what is near it: a row of which quotes are amiss is read for itself.

    The first line names the columns, or is a row already where it holds an address.
    """

    def __init__(self, delimiter: str) -> None:
        self.delimiter = delimiter

    def as_in(self, start: bytes) -> SeparatedValues:
        """The form of a file of which the first line has other delimiters, as spreadsheets of many countries write."""
        first = start.partition(b"\n")[0].decode("latin-1")
        others = max(";\t|", key=first.count)
        return self if self.delimiter in first or others not in first else SeparatedValues(others)

    def columns(self, start: bytes) -> tuple[list[str], int]:
        raw, fields = next(((raw, fields) for raw, fields in self._parse(io.BytesIO(start)) if fields), (b"", []))
        if not fields:
            raise InputError("is empty")
        if not any(field.startswith(_ADDRESS) for field in fields):
            return [_decoded(field).strip() for field in fields], start.index(raw) + len(raw)
        others = ["caption"] if len(fields) == 2 else [f"column{number}" for number in range(1, len(fields) + 1)]
        names, rest = [], iter(others)
        for field in fields:
            names.append("url" if field.startswith(_ADDRESS) and "url" not in names else next(rest))
        return names, 0

    def records(self, lines: Iterator[bytes]) -> Iterator[tuple[bytes, bool]]:
        for raw, fields in self._parse(lines):
            yield raw, fields != []

    def rows(self, raw: bytes, columns: list[str]) -> Iterator[Row]:
        for _, fields in self._parse(io.BytesIO(raw)):
            if fields == []:
                continue
            values = self._fitted(fields, len(columns))
            if values is None:
                yield BadRow(f"not a row of {len(columns)} values")  # which may hold passwords: none is shown
            else:
                yield {name: _decoded(value) or None for name, value in zip(columns, values, strict=False)}

    def _fitted(self, fields: list[str] | None, columns: int) -> list[str] | None:
        """Values for the columns. Those too many belong to the last one: a caption with commas that nobody quoted."""
        if fields is None or len(fields) <= columns:
            return fields
        return [*fields[: columns - 1], self.delimiter.join(fields[columns - 1 :])]

    def _parse(self, lines: Iterator[bytes]) -> Iterator[tuple[bytes, list[str] | None]]:
        """Bytes and values of each record; values of None where the record cannot be read, [] for a blank line.

        Characters stand for bytes (Latin-1) here.
        """
        csv.field_size_limit(LONGEST_FIELD)
        again: deque[bytes] = deque()
        record: list[bytes] = []

        def feed() -> Iterator[str]:
            while True:
                line = again.popleft() if again else next(lines, None)
                if line is None:
                    return
                record.append(line)
                yield line.decode("latin-1")

        reader = csv.reader(feed(), delimiter=self.delimiter, strict=True)
        while True:
            record.clear()
            try:
                fields: list[str] | None = next(reader)
            except StopIteration:
                return
            except csv.Error:
                again.extendleft(reversed(record[1:]))
                del record[1:]
                fields = self._leniently(record[0])
                reader = csv.reader(feed(), delimiter=self.delimiter, strict=True)
            yield b"".join(record), fields

    def _leniently(self, line: bytes) -> list[str] | None:
        try:
            fields = next(csv.reader([line.decode("latin-1")], delimiter=self.delimiter))
        except (csv.Error, StopIteration):
            return None
        return fields if "\n" not in fields[-1] else line.decode("latin-1").rstrip("\r\n").split(self.delimiter)


class JsonLines:
    """A JSON object on each line."""

    def columns(self, start: bytes) -> tuple[list[str], int]:
        names: dict[str, None] = {}
        for line in start.splitlines()[:100]:
            row = _json_object(line)
            if isinstance(row, dict):
                names.update(dict.fromkeys(row))
        if not names:
            raise InputError("has no JSON object on its first lines")
        return list(names), 0

    def records(self, lines: Iterator[bytes]) -> Iterator[tuple[bytes, bool]]:
        for line in lines:
            yield line, not line.isspace()

    def rows(self, raw: bytes, columns: list[str]) -> Iterator[Row]:
        for line in raw.split(b"\n"):
            if line and not line.isspace():
                yield _json_object(line)


def _json_object(line: bytes) -> dict[str, Any] | BadRow:
    try:
        row = json.loads(_decoded(line.decode("latin-1")))
    except (ValueError, RecursionError):
        row = None
    return row if isinstance(row, dict) else BadRow("not a line with a JSON object")


def _decoded(text: str) -> str:
    """The text of bytes given as Latin-1: UTF-8, or Windows-1252 where they are none."""
    if text.isascii():
        return text
    raw = text.encode("latin-1")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("cp1252", errors="replace")


TEXT_FORMS: dict[str, TextForm] = {
    ".csv": SeparatedValues(","),
    ".tsv": SeparatedValues("\t"),
    ".jsonl": JsonLines(),
    ".ndjson": JsonLines(),
}
