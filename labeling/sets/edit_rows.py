"""Edits as datasets of them are published: rows of an instruction, a source and a target, in Parquet or JSONL.

Known are the columns of InstructPix2Pix, MagicBrush, OmniEdit, UltraEdit, HQ-Edit and SEED-Data-Edit, and the folders
of InstructPix2Pix's own generator (`prompt.json` beside `metadata.jsonl` and SEED_0.jpg, SEED_1.jpg).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from labeling.dataset import Store, open_store
from labeling.sources.facts import plain_value, rows_of
from labeling.sources.metadata import decode_text
from labeling.sources.patterns import matcher, split_address
from model.inputs import InputError, nearest, one_line

ROWS = 128  # of a piece, which becomes a shard
FOLDERS = 16  # of InstructPix2Pix's generator, of a piece
PROMPT, SEEDS = "prompt.json", "metadata.jsonl"
_READ = 1 << 20  # bytes of JSONL at a time
_BATCH = 8  # rows of Parquet at a time, whose pictures are in memory

SOURCES = ("source_image", "source_img", "src_img", "original_image", "input_image", "image_before", "before",
           "source", "original", "input")  # fmt: skip
TARGETS = ("target_image", "target_img", "edited_image", "edited_img", "output_image", "image_after", "after",
           "target", "edited", "output")  # fmt: skip
INSTRUCTIONS = ("edit_prompt", "instruction", "edit_instruction", "edited_prompt_list", "editing_instruction",
                "edit_action", "edit", "prompt")  # fmt: skip
CAPTIONS = ("original_prompt", "source_caption", "source_prompt", "input_caption", "input", "caption")


@dataclass(frozen=True)
class EditColumns:
    """The columns that a user names; "" for the known names."""

    source: str = ""
    target: str = ""
    instruction: str = ""


@dataclass(frozen=True)
class Piece:
    """Some rows of a source: [first, end) rows of a Parquet file, bytes of JSONL, or folders with a prompt.json."""

    file: str
    first: int = 0
    end: int = 0
    folders: tuple[str, ...] = ()


@dataclass(frozen=True)
class EditRow:
    """An instruction with its pictures as they are encoded, or the reason why there is none.

    facts: what else the row says; source_name: of the source picture's file, where it has one.
    """

    name: str
    instruction: str = ""
    source: bytes = b""
    target: bytes = b""
    caption: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""


class EditSource:
    """A folder, pattern or file with rows of edits. It may be sent to other processes."""

    def __init__(self, uri: str, columns: EditColumns) -> None:
        self.uri, self.columns = uri, columns
        parts = split_address(uri)
        self.store: Store = open_store(parts.folder)
        self._file, self._pattern = parts.file, parts.pattern or "**"

    @property
    def address(self) -> str:
        """By which a dataset remembers it: of a local one the absolute path."""
        return self.uri if self.uri.startswith("s3://") else open_store(self.uri).uri

    def pieces(self) -> Iterator[tuple[Piece, str]]:
        """What shards are made from, in order, and a digest of it. Raises InputError where there is nothing, or for a
        file that cannot be read."""
        matches = matcher(self._pattern)
        names = [self._file] if self._file else sorted(name for name in self.store.walk() if matches(name))
        folders = [str(PurePosixPath(name).parent) for name in names if PurePosixPath(name).name == PROMPT]
        beside = {f"{folder}/{SEEDS}".removeprefix("./") for folder in folders}
        tables = [name for name in names if name.lower().endswith((".parquet", ".jsonl")) and name not in beside]
        if not (tables or folders):
            raise InputError(f"{self.uri}: no edits there (Parquet or JSONL with instruction, source and target)")
        for name in tables:
            yield from self._of_parquet(name) if name.lower().endswith(".parquet") else self._of_lines(name)
        for start in range(0, len(folders), FOLDERS):
            some = tuple(folders[start : start + FOLDERS])
            yield Piece(PROMPT, folders=some), _digest(*(self.store.read(_beside(one, PROMPT)) for one in some))

    def rows(self, piece: Piece) -> Iterator[EditRow]:
        """The rows of a piece; of one that cannot be read the reason."""
        if piece.folders:
            values = self._folder_rows(piece.folders)
        elif piece.file.lower().endswith(".parquet"):
            values = self._parquet_rows(piece)
        else:
            values = self._line_rows(piece)
        for name, row in values:
            if isinstance(row, str):
                yield EditRow(name, reason=row)
                continue
            try:
                yield self._edit(name, row, str(PurePosixPath(name.rpartition("#")[0]).parent))
            except InputError as error:
                yield EditRow(name, reason=str(error))

    def _of_parquet(self, name: str) -> Iterator[tuple[Piece, str]]:
        address = f"{self.store.uri}/{name}"
        try:
            with self.store.open(name) as opened:
                metadata = pq.ParquetFile(opened).metadata
                columns_of(metadata.schema.to_arrow_schema().names, self.columns, address)
                groups = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{address} cannot be read ({one_line(error)}); is all of it there?") from None
        size = self.store.entry(name)
        first = 0
        for count in groups:  # pieces do not span row groups, which would be read twice
            for start in range(first, first + count, ROWS):
                piece = Piece(name, start, min(start + ROWS, first + count))
                yield piece, _digest(name.encode(), str((size and size.size, groups, start)).encode())
            first += count

    def _of_lines(self, name: str) -> Iterator[tuple[Piece, str]]:
        first = place = 0
        lines: list[bytes] = []
        with self.store.open(name) as opened:
            for line in _lines(opened):
                place += len(line)
                lines.append(line)
                if len(lines) == ROWS:
                    yield Piece(name, first, place), _digest(name.encode(), *lines)
                    first, lines = place, []
        if lines:
            yield Piece(name, first, place), _digest(name.encode(), *lines)

    def _parquet_rows(self, piece: Piece) -> Iterator[tuple[str, dict[str, Any] | str]]:
        with self.store.open(piece.file) as opened:
            parquet = pq.ParquetFile(opened, pre_buffer=False, buffer_size=_READ)
            first = 0
            for number in range(parquet.num_row_groups):
                count = parquet.metadata.row_group(number).num_rows
                if first <= piece.first < first + count:
                    break
                first += count
            row = first
            for batch in parquet.iter_batches(_BATCH, row_groups=[number]):
                for offset in range(batch.num_rows):
                    if piece.first <= row + offset < piece.end:
                        yield f"{piece.file}#{row + offset}", rows_of(batch.slice(offset, 1))[0]
                row += batch.num_rows
                if row >= piece.end:
                    return

    def _line_rows(self, piece: Piece) -> Iterator[tuple[str, dict[str, Any] | str]]:
        raw = self.store.read_range(piece.file, piece.first, piece.end - piece.first)
        place = piece.first
        for line in raw.splitlines(keepends=True):
            if line.strip():
                yield f"{piece.file}#{place}", _parsed(line)
            place += len(line)

    def _folder_rows(self, folders: Sequence[str]) -> Iterator[tuple[str, dict[str, Any] | str]]:
        for folder in folders:
            name = _beside(folder, PROMPT)
            prompt = _parsed(self.store.read(name))
            if isinstance(prompt, str):
                yield f"{name}#0", prompt
                continue
            try:
                lines = self.store.read(_beside(folder, SEEDS)).splitlines()
            except FileNotFoundError:
                yield f"{name}#0", f"no {SEEDS} beside it"
                continue
            for number, line in enumerate(lines):
                of_seed = _parsed(line)
                if isinstance(of_seed, str) or "seed" not in of_seed:
                    yield f"{name}#{number}", of_seed if isinstance(of_seed, str) else "no seed"
                    continue
                pictures = {"source_image": f"{of_seed['seed']}_0.jpg", "target_image": f"{of_seed['seed']}_1.jpg"}
                texts = {"edit_prompt": prompt.get("edit"), "original_prompt": prompt.get("input")}
                yield f"{name}#{number}", {**of_seed, **pictures, **texts, "edited_prompt": prompt.get("output")}

    def _edit(self, name: str, row: Mapping[str, Any], folder: str) -> EditRow:
        """Raises InputError for a row that lacks something."""
        source, target, instruction = columns_of(list(row), self.columns, "")
        left = {key: value for key, value in row.items() if key not in (source, target)}
        texts = _texts(left.pop(instruction))
        if not texts:
            raise InputError(f"no instruction in {instruction}")
        if len(texts) > 1:
            left[instruction] = texts
        captions = (key for key in CAPTIONS if isinstance(left.get(key), str))
        caption = left.pop(key).strip() if (key := next(captions, None)) else ""
        before, after = (self._picture(row[column], column, folder) for column in (source, target))
        facts = {key: plain for key, value in left.items() if (plain := plain_value(value)) is not None}
        return EditRow(name, texts[0], before, after, caption, facts)

    def _picture(self, value: Any, column: str, folder: str) -> bytes:
        path = value
        if isinstance(value, Mapping):
            if value.get("bytes"):
                return bytes(value["bytes"])
            path = value.get("path")
        elif isinstance(value, bytes | bytearray | memoryview) and value:
            return bytes(value)
        if not isinstance(path, str) or not path.strip():
            raise InputError(f"no picture in {column}")
        inside = PurePosixPath(path.replace("\\", "/"))
        if "://" in path or inside.is_absolute() or ".." in inside.parts:
            raise InputError(f"{column}: {one_line(path, 100)} is not below the folder of its table")
        try:
            return self.store.read(str(PurePosixPath(folder) / inside))
        except (FileNotFoundError, IsADirectoryError):
            raise InputError(f"{column}: {one_line(path, 100)} is not there") from None


def columns_of(names: Sequence[str], chosen: EditColumns, address: str) -> tuple[str, str, str]:
    """The columns of source, target and instruction. Raises InputError where one is missing."""
    by_name = {name.lower(): name for name in reversed(names)}
    found = []
    for what, option, known in (
        ("source", chosen.source, SOURCES),
        ("target", chosen.target, TARGETS),
        ("instruction", chosen.instruction, INSTRUCTIONS),
    ):
        column = (
            option if option in names else None if option else next((by_name[k] for k in known if k in by_name), None)
        )
        if column is None:
            name = option or known[0]
            hint = nearest(name, list(names)) if option else f"; name it with --{what}-column"
            place = f"{address}: " if address else ""
            raise InputError(
                f"{place}no column {name!r} for the {what}{hint}; there are {one_line(', '.join(names), 200)}"
            )
        found.append(column)
    return found[0], found[1], found[2]


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [one_line(text) for text in values if isinstance(text, str) and text.strip()]


def _parsed(line: bytes) -> dict[str, Any] | str:
    """The object of a line of JSON, or why it is none."""
    try:
        values = json.loads(decode_text(line))
    except (ValueError, RecursionError) as error:
        return f"no JSON ({one_line(error, 80)})"
    return values if isinstance(values, dict) else "a line that is no JSON object"


def _lines(opened: Any) -> Iterator[bytes]:
    """Lines of a file with their ends, without holding it."""
    rest = b""
    while data := opened.read(_READ):
        *whole, rest = (rest + data).splitlines(keepends=True)
        if rest.endswith(b"\n"):
            whole, rest = [*whole, rest], b""
        yield from whole
    if rest:
        yield rest


def _beside(folder: str, name: str) -> str:
    return name if folder == "." else f"{folder}/{name}"


def _digest(*parts: bytes) -> str:
    import hashlib

    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()
