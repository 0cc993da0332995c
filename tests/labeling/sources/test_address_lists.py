"""Lists of addresses: which files are one, how they are cut into ranges, and what their rows say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from labeling.dataset import open_store
from labeling.sources.addresses.lists import AddressList, open_list
from labeling.sources.addresses.rows import BadRow
from labeling.sources.addresses.text_forms import LONGEST_FIELD, TEXT_FORMS
from model.inputs import InputError


def opened(folder: Path, url: str | None = None, text: str | None = None) -> AddressList | None:
    store = open_store(folder)
    return open_list(store, list(store.walk()), url, text)


def opened_list(folder: Path, url: str | None = None, text: str | None = None) -> AddressList:
    addresses = opened(folder, url, text)
    assert addresses is not None
    return addresses


def read(folder: Path, shard_rows: int = 2, first: int = 0) -> list[list[Any]]:
    """Rows of each range of the only file."""
    (file,) = opened_list(folder).files
    ranges = file.cut(first, shard_rows).ranges
    return [list(rows) for rows in file.read(ranges)] if ranges else []


def picture_url(number: int) -> str:
    return f"http://pictures.test/{number}.jpg"


@pytest.mark.parametrize(
    ("columns", "url", "text"),
    [
        (["SAMPLE_ID", "URL", "TEXT", "HEIGHT", "WIDTH", "LICENSE", "NSFW", "similarity"], "URL", "TEXT"),
        (["id", "url", "text", "width", "height", "image_phash"], "url", "text"),
        (["uid", "url", "key", "status", "original_width", "vlm_model", "vlm_caption"], "url", "vlm_caption"),
        (["image_url", "caption"], "image_url", "caption"),
        (["url"], "url", ""),
    ],
)
def test_published_lists_are_known_by_their_columns(columns: list[str], url: str, text: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({name: ["x"] for name in columns}), tmp_path / "a.parquet")
    addresses = opened_list(tmp_path)
    assert (addresses.url, addresses.text) == (url, text)


def test_files_of_pictures_are_no_list(tmp_path: Path) -> None:
    encoded = pa.array([{"bytes": b"x", "path": "a.png"}])
    pq.write_table(pa.table({"url": ["http://a.test/"], "image": encoded}), tmp_path / "a.parquet")
    assert opened(tmp_path) is None
    assert opened(tmp_path, url="url") is not None
    (tmp_path / "a.parquet").unlink()
    (tmp_path / "metadata.csv").write_text("file_name,url\n1.jpg,http://a.test/1.jpg\n")
    (tmp_path / "1.jpg").write_bytes(b"x")
    assert opened(tmp_path) is None
    (tmp_path / "1.jpg").rename(tmp_path / "1.tar")  # as img2dataset leaves them
    assert opened(tmp_path) is None


def test_column_that_is_not_there_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("link_to_it,words\nhttp://a.test/,hello\n")
    with pytest.raises(InputError, match=r"a\.csv: no column of addresses .*--url; it has link_to_it, words"):
        opened(tmp_path)
    with pytest.raises(InputError, match=r"no column 'word' \(--text\) \(did you mean 'words'\?\)"):
        opened(tmp_path, url="link_to_it", text="word")
    assert opened_list(tmp_path, url="link_to_it", text="words").text == "words"
    (tmp_path / "b.csv").write_text("other\nx\n")
    with pytest.raises(InputError, match=r"b\.csv: no column 'link_to_it'"):
        opened(tmp_path, url="link_to_it")


def test_separated_values_keep_odd_rows_or_say_what_is_wrong(tmp_path: Path) -> None:
    rows = [
        b"url,id,caption",
        b'http://a.test/1,1,"a cat,\r\nsleeping"',
        b"http://a.test/2,2,caf\xe9 in Windows-1252",
        "http://a.test/3,3,caf\u00e9 in UTF-8".encode(),
        b"http://a.test/4,4,commas, not quoted, at the end",
        b'http://a.test/5,5,"never closed',
        b'http://a.test/6,6,5" nails and "quotes"',
        b"",
        b"http://a.test/7",
        b'http://a.test/8,8,""',
    ]
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(rows))
    read_rows = [row for part in read(tmp_path, shard_rows=3) for row in part]
    assert [row["url"][-1] for row in read_rows] == list("12345678")
    assert [row.get("caption") for row in read_rows] == [
        "a cat,\r\nsleeping",
        "café in Windows-1252",
        "café in UTF-8",
        "commas, not quoted, at the end",
        '"never closed',
        '5" nails and "quotes"',
        None,
        None,
    ]


def test_list_of_a_spreadsheet_with_other_delimiters(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('Image URL ;Alt Text\nhttp://a.test/1;"a cat, asleep"\n')
    found = opened_list(tmp_path)
    assert (found.url, found.text) == ("Image URL", "Alt Text")
    assert read(tmp_path) == [[{"Image URL": "http://a.test/1", "Alt Text": "a cat, asleep"}]]


def test_damaged_part_of_a_parquet_list_costs_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"url": [picture_url(number) for number in range(6)]})
    pq.write_table(table, path, row_group_size=2, use_dictionary=False, compression="none")
    raw = bytearray(path.read_bytes())
    at = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    raw[at : at + 8] = b"\xff" * 8
    path.write_bytes(raw)
    rows = [row for part in read(tmp_path, shard_rows=4) for row in part]
    assert [row["url"] for row in rows if not isinstance(row, BadRow)] == [picture_url(n) for n in (0, 1, 4, 5)]
    assert [isinstance(row, BadRow) for row in rows] == [False, False, True, True, False, False]
    assert isinstance(rows[2], BadRow) and rows[2].reason.startswith("cannot be read from its table (")


def test_tab_separated_list_without_a_header(tmp_path: Path) -> None:
    """As the lists of CC3M and CC12M are."""
    (tmp_path / "a.tsv").write_text("a cat\thttp://a.test/1\na dog\thttp://a.test/2\n")
    assert read(tmp_path) == [
        [{"caption": "a cat", "url": "http://a.test/1"}, {"caption": "a dog", "url": "http://a.test/2"}]
    ]


def test_json_lines_keep_their_values_and_bad_lines_a_reason(tmp_path: Path) -> None:
    lines = ['{"url": "http://a.test/1", "tags": ["a", "b"], "score": 0.5}', "{broken", "", "[1]", '{"url": null}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (first, second) = read(tmp_path, shard_rows=2)
    assert first[0] == {"url": "http://a.test/1", "tags": ["a", "b"], "score": 0.5}
    assert first[1] == second[0] == BadRow("not a line with a JSON object")
    assert second[1] == {"url": None}


@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl"])
def test_every_row_is_in_one_range_and_an_added_one_changes_no_earlier_range(form: str, tmp_path: Path) -> None:
    def write(rows: int) -> None:
        urls = [picture_url(number) for number in range(rows)]
        if form == "parquet":
            pq.write_table(pa.table({"url": urls, "n": list(range(rows))}), tmp_path / "a.parquet", row_group_size=7)
        elif form == "csv":
            (tmp_path / "a.csv").write_text("url,n\n" + "\n".join(f"{url},{n}" for n, url in enumerate(urls)))
        else:
            lines = [json.dumps({"url": url, "n": n}) for n, url in enumerate(urls)]
            (tmp_path / "a.jsonl").write_text("\n\n".join(lines) + "\n\n")

    write(21)
    (file,) = opened_list(tmp_path).files
    cut = file.cut(0, 4)
    assert [(one.first, one.rows) for one in cut.ranges] == [(0, 4), (4, 4), (8, 4), (12, 4), (16, 4), (20, 1)]
    assert cut.rows == 21
    for some in (cut.ranges, cut.ranges[2:4], cut.ranges[5:]):
        urls = [[row["url"] for row in rows] for rows in file.read(some)]
        assert urls == [[picture_url(one.first + index) for index in range(one.rows)] for one in some]
    write(30)
    (file,) = opened_list(tmp_path).files
    later = file.cut(cut.rows, 4)
    assert [(one.first, one.rows) for one in later.ranges] == [(21, 4), (25, 4), (29, 1)]
    assert later.earlier == cut.digest
    assert later.digest != cut.digest
    assert [row["url"] for rows in file.read(later.ranges) for row in rows] == [
        picture_url(number) for number in range(21, 30)
    ]
    assert file.cut(30, 4).ranges == []
    assert file.cut(30, 4).earlier == later.digest


def test_list_in_utf_16_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("url\nhttp://a.test/1\n", encoding="utf-16")
    with pytest.raises(InputError, match=r"a\.csv: in UTF-16; save the list in UTF-8"):
        opened(tmp_path)


def test_reason_of_a_bad_row_shows_nothing_of_it() -> None:
    columns = ["url", "caption"]
    raw = b'"https://me:word@pictures.test/a.jpg?sig=1' + b"," * 10 + b"x" * (LONGEST_FIELD + 1) + b"\n"
    assert list(TEXT_FORMS[".csv"].rows(raw, columns)) == [BadRow("not a row of 2 values")]
