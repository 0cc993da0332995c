"""`query` and `report --where`, from the command line."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from commands import ROOT, onediffusion

from labeling.dataset import Dataset, ShardInfo, write_shard
from model.inputs import InputError
from pipelines.query import Answer, query, show, write_csv, write_json
from pipelines.reports.page import report
from pipelines.store_again import store_again

STORED = ROOT / "tests" / "compatibility" / "dataset"


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    return str(shutil.copytree(STORED, tmp_path / "dataset"))


def test_query_prints_a_table_of_groups_side_by_side(dataset: str) -> None:
    sql = "select images.source, len(boxes.names) as things from rows where caption.caption like '%cat%' or things = 1"
    done = onediffusion("query", dataset, sql.replace("or things = 1", "or len(boxes.names) = 1"))
    assert done.returncode == 0, done.stderr
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines() if "│" in line]
    assert cells == [["astronaut.jpg", "1"], ["chelsea.jpg", "0"]]
    assert done.stdout.splitlines()[-1] == "2 rows"


def test_query_gives_csv_and_json(dataset: str) -> None:
    joined = 'images i join boxes using (id) join "latents-64" using (id)'
    sql = f'select i.id, i.image, names, "latents-64".latent_width as w from {joined} order by id'
    out = io.StringIO()
    with query(dataset, sql) as answer:
        write_csv(answer, out)
    rows = list(csv.DictReader(io.StringIO(out.getvalue())))
    assert [row["names"] for row in rows].count('["person"]') == 1 and rows[0]["image"].endswith(" bytes")
    out = io.StringIO()
    with query(dataset, sql) as answer:
        write_json(answer, out)
    assert [json.loads(line)["id"] for line in out.getvalue().splitlines()] == [row["id"] for row in rows]
    out = io.StringIO()
    with query(dataset, "select * from rows") as answer:
        show(answer, out)
    assert "chelsea.jpg" in out.getvalue() and "4 rows" in out.getvalue()


@pytest.mark.parametrize(
    "sql",
    [
        "select r.boxes from rows r",
        "select rows.boxes from rows",
        "select Boxes from rows",
        "select main.rows.boxes from rows",
        "select R.boxes from (select R from rows r)",
    ],
)
def test_group_has_all_its_columns_however_it_is_named(sql: str) -> None:
    with query(str(STORED), sql) as answer:
        rows = [row for (row,) in answer.rows]
    assert [row["names"] for row in rows] == [row["names"] for row in Dataset.open(STORED).rows("boxes")]


def test_fields_of_a_group_are_found_by_brackets() -> None:
    sql = "select r.boxes['names'], octet_length((r).images['image']) from rows r"
    with query(str(STORED), sql) as answer:
        names, sizes = zip(*answer.rows, strict=True)
    assert list(names) == [row["names"] for row in Dataset.open(STORED).rows("boxes")]
    assert min(sizes) > 1000


def test_answer_is_read_as_far_as_it_is_shown() -> None:
    def rows() -> Iterator[tuple[int]]:
        yield from ((number,) for number in range(1001))
        raise AssertionError("more is read than is shown")

    out = io.StringIO()
    show(Answer(["n"], rows()), out)
    assert out.getvalue().splitlines()[-1] == "the first 1000 rows; --csv and --json print all"
    out = io.StringIO()
    show(Answer(["n"], iter([(number,) for number in range(1000)])), out)
    assert out.getvalue().splitlines()[-1] == "1000 rows"


def test_few_pictures_are_held_at_a_time() -> None:
    import tracemalloc

    with query(str(STORED), "select repeat('x', 20000) as picture from range(3000)") as answer:
        tracemalloc.start()
        try:
            assert sum(len(picture) for (picture,) in answer.rows) == 60_000_000
            assert tracemalloc.get_traced_memory()[1] < 6_000_000
        finally:
            tracemalloc.stop()


def test_columns_read_of_a_shard_are_held_once(tmp_path: Path) -> None:
    dataset, size = Dataset(tmp_path / "dataset"), 64 << 10
    dataset.declare("images", {"labeler": "images", "version": 1, "parameters": {}, "weights": "", "reads": []})
    pictures = [bytes([row % 256]) + os.urandom(size) for row in range(1024)]
    table = pa.table({"id": [f"{row:08d}" for row in range(1024)], "image": pa.array(pictures, pa.binary())})
    write_shard(dataset.store, "images", "000000", table, [16] * 64, "recipe")
    dataset.describe("pictures", [ShardInfo("000000", 1024)], [])
    del table, pictures
    before = pa.total_allocated_bytes()
    with query(dataset.uri, "select image from images") as answer:
        next(answer.rows)
        assert pa.total_allocated_bytes() - before < 1.25 * 1024 * size


def test_json_says_all_and_is_json() -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    sql = (
        "select i.id, b.id, 'nan'::float as n, ['inf'::double, 1] as l, 1 as id_1 from images i join boxes b using (id)"
    )
    out = io.StringIO()
    with query(str(STORED), sql) as answer:
        write_json(answer, out)
    [first, *others] = [json.loads(line, parse_constant=refuse) for line in out.getvalue().splitlines()]
    assert len(others) == 3
    assert first == {"id": first["id"], "id_2": first["id"], "n": None, "l": [None, 1.0], "id_1": 1}


def test_shards_that_store_arrays_otherwise_are_read_together(dataset: str) -> None:
    opened = Dataset.open(dataset)
    last = opened.shard_names[-1]
    for group in ("latents-64", "text"):
        footer, table = opened.footer(group, last), opened.read(group, last)
        write_shard(
            opened.store, group, last, table, footer.row_groups, footer.recipe
        )  # bytes, those before have lists
    with query(dataset, 'select sum(latent_width) from "latents-64" where id in (select id from text)') as answer:
        assert list(answer.rows) == [(sum(row["latent_width"] for row in opened.rows("latents-64")),)]
    with (
        pytest.raises(InputError, match=r"label .* --store-again"),
        query(dataset, "select entries from text") as answer,
    ):
        list(answer.rows)
    store_again(dataset, ["text"])
    with query(dataset, "select entries[2].prompt from text order by id") as answer:
        prompts = [row for (row,) in answer.rows]
    rows = sorted(opened.rows("text"), key=lambda row: row["id"])
    assert prompts == [row["entries"][1]["prompt"] if row["entries"] else None for row in rows]


def test_tables_may_be_counted_and_grouped(dataset: str) -> None:
    with query(dataset, "select licence, count(*) as n from images group by 1 order by n desc, 1") as answer:
        assert list(answer.rows) == [("CC0-1.0", 3), ("public domain", 1)]
    with query(dataset, "select reason from rejected") as answer:
        assert list(answer.rows) == [("truncated JPEG file",)]


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("select widht from images", r"column \"widht\" not found in FROM clause; there are images.id, .*images.width"),
        ("select boxes.name from rows", r"\"name\" in struct; there are .*boxes.names"),
        ("select * from captoin", r"captoin does not exist! Did you mean \"caption\"\?; there are rows, images, boxes"),
        ("delete from images", r"it can only be one SELECT, which reads the dataset and changes nothing"),
        ("select 1; select 2", r"2 statements; give one SELECT"),
        ("select * from read_text('/etc/hostname')", r"file system operations are disabled"),
        ("select", r"SELECT clause without selection list"),
    ],
)
def test_bad_query_is_one_line(dataset: str, sql: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised, query(dataset, sql) as answer:
        list(answer.rows)
    assert "\n" not in str(raised.value)


def test_report_shows_the_selected_rows(dataset: str) -> None:
    page = Path(report(dataset, "images.licence like 'CC%' and len(boxes.names) = 0")).read_text()
    assert "<code>images.licence like &#39;CC%&#39; and len(boxes.names) = 0</code>: 3." in page
    assert "chelsea.jpg" in page and "astronaut.jpg" not in page
    done = onediffusion("report", dataset, "--where", "images.widht > 1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("onediffusion: where 'images.widht > 1': no column 'images.widht' (did you mean")
    assert len(done.stderr.splitlines()) == 1
