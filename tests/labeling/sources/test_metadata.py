"""Tables beside pictures, as spreadsheets and tools write them."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from labeling.sources.facts import Naming, describe
from labeling.sources.source import Source
from model.inputs import InputError

HEAD = "file_name,text,licence\n"


def said(folder: Path) -> dict[str, Any]:
    return {item.name: dict(item.described) for item in Source(str(folder)).items()}


@pytest.mark.parametrize(
    "table",
    [
        (HEAD + "a.png,café au lait,CC0\n").encode("latin-1"),
        (HEAD + "a.png,café au lait,CC0\n").encode("utf-16"),
        (HEAD + "a.png,café au lait,CC0\n").encode("utf-16-le"),
        (HEAD + "a.png,café au lait,CC0\n").encode("utf-8-sig"),
        (HEAD.replace(",", ";") + "a.png;café au lait;CC0\r\n").encode(),
        ("sep=;\n" + HEAD.replace(",", ";") + "a.png;café au lait;CC0\n").encode(),
        (HEAD.replace(",", "\t") + "a.png\tcafé au lait\tCC0\n").encode(),
        (HEAD + '\n\n"a.png","café au lait","CC0"\n,,\n').encode(),
        ("File_Name, text ,licence\n./a.png,café au lait,CC0\n").encode(),
        ("File Name,text,licence\na.png,café au lait,CC0\n").encode(),
        (HEAD + "FOLDER/a.png,café au lait,CC0\n").encode(),
    ],
)
def test_tables_are_read_as_spreadsheets_write_them(tmp_path: Path, table: bytes) -> None:
    (tmp_path / "a.png").write_bytes(b"a")
    (tmp_path / "Metadata.CSV").write_bytes(table.replace(b"FOLDER", str(tmp_path).encode()))
    assert said(tmp_path) == {"a.png": {"text": "café au lait", "licence": "CC0"}}


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("metadata.tsv", "file_name\ttext\ttext\na.png\tone\ttwo\n"),
        ("metadata.jsonl", '[{"file_name": "a.png", "text": "one",\n "text.1": "two"}]\n'),
        ("metadata.jsonl", '{\n  "file_name": "a.png",\n  "text": "one",\n  "text.1": "two"\n}\n{broken'),
    ],
)
def test_tables_of_other_shapes_lose_nothing(tmp_path: Path, name: str, table: str) -> None:
    (tmp_path / "a.png").write_bytes(b"a")
    (tmp_path / name).write_text(table)
    assert said(tmp_path) == {"a.png": {"text": "one", "text.1": "two"}}
    remarks = Source(str(tmp_path)).listing().remarks
    assert remarks == (["metadata.jsonl: 1 line without a JSON object, left out"] if "broken" in table else [])


def test_line_of_trouble_costs_that_line(tmp_path: Path) -> None:
    for name in "abcde":
        (tmp_path / f"{name}.png").write_bytes(name.encode())
    long = "word " * 40_000
    (tmp_path / "metadata.csv").write_text(
        f'{HEAD}a.png,one,CC0,more,and more\nb.png,"never closed,CC0\nc.png,{long},CC0\n,no name,CC0\n'
        'd.png,"two\nlines",CC0\nz.png,of nothing,CC0\n'
    )
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "e.png", "text": "five", "score": 0.5}\n{broken\n[1]\n')
    listing = Source(str(tmp_path)).listing()
    assert said(tmp_path) == {
        "a.png": {"text": "one", "licence": "CC0"},
        "b.png": {"text": "never closed", "licence": "CC0"},
        "c.png": {"text": long, "licence": "CC0"},
        "d.png": {"text": "two\nlines", "licence": "CC0"},
        "e.png": {"text": "five", "score": 0.5},
    }
    assert listing.remarks == [
        "metadata.csv: 1 line with more fields than columns; the further ones are left out (quote texts with commas)",
        "metadata.csv: 1 line with a quotation mark that is not closed, read without it",
        "metadata.csv: 1 line without a file name",
        "metadata.jsonl: 2 lines without a JSON object, left out",
        "metadata: 1 line names no file of these",
    ]


def test_names_are_compared_whatever_their_form(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / unicodedata.normalize("NFD", "café.png")).write_bytes(b"a")
    (tmp_path / "sub" / "b.png").write_bytes(b"b")
    (tmp_path / "sub" / "c.png").write_bytes(b"c")
    (tmp_path / "metadata.csv").write_text(
        f"file_name,text\n{unicodedata.normalize('NFC', 'café')}.png,1\nsub\\b.png,2\n"
    )
    pq.write_table(pa.table({"file_name": ["c.png"], "n": [3]}), tmp_path / "sub" / "metadata.parquet")
    assert list(said(tmp_path).values()) == [{"text": "1"}, {"text": "2"}, {"n": 3}]


def test_table_without_file_names_is_named_at_the_top_and_left_out_below(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.png").write_bytes(b"")
    (tmp_path / "sub" / "metadata.csv").write_text("name,text\na.png,hello\n")
    listing = Source(str(tmp_path)).listing()
    assert listing.remarks[0].endswith("; it is left out")
    (tmp_path / "metadata.csv").write_text("name,text\na.png,hello\n")
    with pytest.raises(InputError, match="no column 'file_name'"):
        Source(str(tmp_path)).items()


def test_columns_become_text_or_metadata() -> None:
    facts = {"Caption": " a cat ", "caption_2": "the cat", "score": 0.5, "license": "CC0", "tags": ["x", "y"]}
    described = describe(facts, Naming())
    assert described.columns["text"] == "a cat" and described.columns["licence"] == "CC0"
    assert json.loads(described.columns["metadata"] or "") == {"caption_2": "the cat", "score": 0.5, "tags": ["x", "y"]}
    assert described.kept == {"caption_2", "score", "tags"}
    assert describe(facts, Naming(text="caption_2")).columns["text"] == "the cat"
    assert describe({"captions": ["one", "two"]}, Naming()).columns["text"] == "one"
    assert describe({"text": 3, "author": None}, Naming()).columns == {
        "author": None, "licence": None, "text": "3", "metadata": None,
    }  # fmt: skip
