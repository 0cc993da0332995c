"""`onediffusion query`: SQL over the rows of a dataset, by DuckDB.

Every column group is a table of its name, and `rows` has them side by side: `quality.sharpness` beside `images.width`.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TextIO

from labeling.dataset import Dataset
from labeling.dataset.sql import Tables, explained_sql, parse

MAX_SHOWN = 1000  # rows of a table for a person
MAX_CELL = 120  # characters of a value there
BATCH = 10_000  # rows at a time


@dataclass(frozen=True)
class Answer:
    """Names of the columns, and rows as they come."""

    names: Sequence[str]
    rows: Iterator[tuple[Any, ...]]


@contextmanager
def query(uri: str, sql: str) -> Iterator[Answer]:
    """The answer to one SELECT. Raises InputError for anything else, in one line, with the columns that there are.

    SQL reads the dataset and nothing else: no file, no address, and it changes nothing.
    """
    tables = Tables(Dataset.open(uri))
    mentioned = parse(sql, "query")
    with tables.connect() as connection, explained_sql(tables, "query"):
        tables.view_rows(connection, mentioned)
        found = connection.execute(sql)
        names = [column[0] for column in found.description or ()]

        def rows() -> Iterator[tuple[Any, ...]]:
            while batch := found.fetchmany(BATCH):
                yield from batch

        yield Answer(names, rows())


def show(answer: Answer, out: TextIO | None = None) -> None:
    """The answer as a table for a person, the first rows of many."""
    from itertools import islice

    from rich.console import Console
    from rich.table import Table

    out = out or sys.stdout
    table = Table(*answer.names)
    for row in islice(answer.rows, MAX_SHOWN):
        table.add_row(*map(_cell, row))
    rest = sum(1 for _ in answer.rows)
    console = Console(file=out, width=None if out.isatty() else 10_000, markup=False, highlight=False)
    console.print(table)
    print(f"{table.row_count + rest} rows{f', the first {MAX_SHOWN} shown' if rest else ''}", file=out)


def write_csv(answer: Answer, out: TextIO | None = None) -> None:
    """The answer as CSV with a header; lists and structures as JSON."""
    writer = csv.writer(out or sys.stdout)
    writer.writerow(answer.names)
    for row in answer.rows:
        writer.writerow([_json(value) if isinstance(value, list | dict) else _plain(value) for value in row])


def write_json(answer: Answer, out: TextIO | None = None) -> None:
    """The answer as a JSON object a line."""
    for row in answer.rows:
        print(_json(dict(zip(answer.names, row, strict=True))), file=out or sys.stdout)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    text = f"{value:.6g}" if isinstance(value, float) else _json(value) if isinstance(value, list | dict) else ""
    text = text or str(_plain(value))
    return text if len(text) <= MAX_CELL else f"{text[: MAX_CELL - 1]}…"


def _plain(value: Any) -> Any:
    return f"{len(value)} bytes" if isinstance(value, bytes) else value


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=lambda one: str(_plain(one)))
