"""`onediffusion query`: SQL over the rows of a dataset, by DuckDB.

Every column group is a table of its name, and `rows` has them side by side: `quality.sharpness` beside `images.width`.
"""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, TextIO

from labeling.dataset import Dataset
from labeling.dataset.mentioned import parse
from labeling.dataset.sql import Tables, explained_sql

MAX_SHOWN = 1000  # rows of a table for a person
MAX_CELL = 120  # characters of a value there
BATCH = 100  # rows at a time: some have pictures


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
    with explained_sql(tables, "query"):
        groups = tables.needed(mentioned)
        columns = tables.read_columns(mentioned, groups)
    with explained_sql(tables, "query"), tables.connect(only=groups, columns=columns) as connection:
        tables.view_rows(connection, mentioned, groups)
        relation = connection.execute(sql)
        names = [column[0] for column in relation.description or ()]

        def rows() -> Iterator[tuple[Any, ...]]:
            while batch := relation.fetchmany(BATCH):
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
    more = next(answer.rows, None) is not None  # all of them would be read to be counted
    console = Console(file=out, width=None if out.isatty() else 10_000, markup=False, highlight=False)
    console.print(table)
    shown = f"the first {MAX_SHOWN} rows; --csv and --json print all" if more else f"{table.row_count} rows"
    print(shown, file=out)


def write_csv(answer: Answer, out: TextIO | None = None) -> None:
    """The answer as CSV with a header; lists and structures as JSON."""
    writer = csv.writer(out or sys.stdout)
    writer.writerow(answer.names)
    for row in answer.rows:
        writer.writerow([_json(value) if isinstance(value, list | dict) else _plain(value) for value in row])


def write_json(answer: Answer, out: TextIO | None = None) -> None:
    """The answer as a JSON object a line. A column whose name another one has gets a number, as DuckDB numbers them in
    a subquery; numbers that are not finite, which JSON cannot say, are null."""
    names = _distinct(answer.names)
    for row in answer.rows:
        print(_json(dict(zip(names, row, strict=True))), file=out or sys.stdout)


def _distinct(names: Sequence[str]) -> list[str]:
    """The names, with _1, _2 … after those that are there before."""
    columns: dict[str, None] = {}
    for name in names:
        numbered = (f"{name}_{number}" for number in count(1))
        columns[name if name not in columns else next(one for one in numbered if one not in {*columns, *names})] = None
    return list(columns)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    text = f"{value:.6g}" if isinstance(value, float) else _json(value) if isinstance(value, list | dict) else ""
    text = text or str(_plain(value))
    return text if len(text) <= MAX_CELL else f"{text[: MAX_CELL - 1]}…"


def _plain(value: Any) -> Any:
    return f"{len(value)} bytes" if isinstance(value, bytes) else value


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=lambda one: str(_plain(one)))
    except ValueError:
        return _json(_finite(value))


def _finite(value: Any) -> Any:
    """The value with null for numbers that are not finite."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
