"""Lists of addresses in files of text: a record is a line, or several where a quoted value has line breaks."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from labeling.dataset import Store, digest_json
from labeling.sources.addresses.rows import Cut, Row, RowRange
from labeling.sources.addresses.text_forms import TEXT_FORMS, SeparatedValues, TextForm
from model.inputs import InputError


class TextList:
    """A list in a file of text."""

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name = store, name
        self.address = f"{store.uri}/{name}"

    @cached_property
    def _head(self) -> bytes:
        with self.store.open(self.name) as opened:
            return bytes(opened.read(1 << 16))

    @cached_property
    def form(self) -> TextForm:
        """How rows lie in the lines."""
        form = TEXT_FORMS[self.name[self.name.rindex(".") :].lower()]
        return form.as_in(self._head) if isinstance(form, SeparatedValues) else form

    @cached_property
    def _start(self) -> tuple[list[str], int]:
        """Columns, and the bytes before the first row."""
        start = self._head
        if start.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise InputError(f"{self.address}: in UTF-16; save the list in UTF-8")
        mark = 3 if start.startswith(b"\xef\xbb\xbf") else 0
        try:
            columns, size = self.form.columns(start[mark:])
        except InputError as error:
            raise InputError(f"{self.address} {error}") from None
        return columns, mark + size

    @property
    def columns(self) -> list[str]:
        return self._start[0]

    @property
    def holds_pictures(self) -> bool:
        return False

    def cut(self, first: int, shard_rows: int) -> Cut:
        columns, offset = self._start
        whole, part = _digest(), _digest()
        ranges: list[RowRange] = []
        row = rows = size = 0  # rows and bytes: of the range that is being read
        earlier = ""
        with self.store.open(self.name) as opened:
            opened.seek(offset)
            for raw, is_row in self.form.records(iter(io.BufferedReader(opened, 1 << 20))):
                if is_row and row == first and not earlier:
                    earlier = whole.hexdigest()
                    offset, rows, size, part = offset + size, 0, 0, _digest()
                elif is_row and row > first and rows == shard_rows:
                    ranges.append(RowRange(self.name, row - rows, rows, part.hexdigest(), offset, size))
                    offset, rows, size, part = offset + size, 0, 0, _digest()
                if is_row:
                    # Blank lines are left out: one at the end of a list changes nothing when rows are added to it.
                    whole.update(raw.rstrip(b"\r\n"))
                    part.update(raw.rstrip(b"\r\n"))
                    row, rows = row + 1, rows + 1
                size += len(raw)
        if row > first:
            ranges.append(RowRange(self.name, row - rows, rows, part.hexdigest(), offset, size))
        else:
            earlier = whole.hexdigest() if row == first else ""
        return Cut(ranges, row, digest_json([columns, whole.hexdigest()]), digest_json([columns, earlier]))

    def read(self, ranges: Sequence[RowRange]) -> Iterator[list[Row]]:
        for one in ranges:
            raw = self.store.read_range(self.name, one.offset, one.size)
            yield list(self.form.rows(raw, self.columns))


def _digest() -> Any:
    return hashlib.blake2b(digest_size=16)
