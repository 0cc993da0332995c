"""Rows selected by SQL are those that DuckDB finds in the same files; what is wrong is said in one line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from labeling.dataset import Dataset, ShardInfo, evaluate, select_rows, write_shard
from labeling.dataset.footers import FooterTable
from labeling.dataset.sql import Tables
from model.inputs import InputError
from pipelines.query import query

SHARDS, ROWS = 25, 4000  # 10⁵ rows
CONDITIONS = (
    "quality.sharpness > 0.4 and images.licence like 'CC%'",
    "sharpness > 0.4",  # a name that one group has
    "quality.sharpness > (select avg(sharpness) from quality) or images.width < 100",
    "quality.error is null and images.width % 7 = 3",
    "len(boxes.names) > 1 and list_contains(boxes.names, 'cat')",
    "not (quality.sharpness <= 0.7)",  # of null neither it nor its contrary is true
    "images.id in (select id from quality order by sharpness desc limit 17)",
    "true",
)


def write(dataset: Dataset, group: str, shard: str, columns: dict[str, pa.Array]) -> None:
    rows = len(columns["id"])
    dataset.declare(group, {"labeler": group, "version": 1, "parameters": {}, "weights": "", "reads": ["images.id"]})
    write_shard(dataset.store, group, shard, pa.table(columns), [1000] * (rows // 1000), "recipe")


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    dataset = Dataset(tmp_path_factory.mktemp("selection") / "dataset")
    random = np.random.default_rng(0)
    licences = np.array(["CC0-1.0", "CC-BY-4.0", "all rights reserved", None], object)
    names = [[], ["cat"], ["cat", "dog"], ["dog", "dog", "cat"], None]
    for number in range(SHARDS):
        shard, ids = f"{number:06d}", pa.array([f"{number * ROWS + row:032x}" for row in range(ROWS)])
        images = {"width": pa.array(random.integers(16, 4000, ROWS), pa.int32())}
        images["licence"] = pa.array(licences[random.integers(0, 4, ROWS)], pa.string())
        write(dataset, "images", shard, {"id": ids, "image": pa.array([b"-" * 100] * ROWS), **images})
        # Of single precision, among them the number that 0.4 becomes: no double is equal to it.
        sharpness = np.where(random.random(ROWS) < 0.1, np.float32(0.4), random.random(ROWS).astype(np.float32))
        missing = random.random(ROWS) < 0.05
        errors = pa.array(np.where(missing, "no picture", None), pa.string())
        quality = pa.array(sharpness, pa.float32(), mask=missing)
        write(dataset, "quality", shard, {"id": ids, "sharpness": quality, "error": errors})
        boxes = pa.array([names[kind] for kind in random.integers(0, 5, ROWS)], pa.list_(pa.string()))
        write(
            dataset,
            "boxes",
            shard,
            {"id": ids, "names": boxes, "latent": pa.array([[1.0]] * ROWS, pa.list_(pa.float16()))},
        )
    dataset.describe("pictures", [ShardInfo(f"{number:06d}", ROWS) for number in range(SHARDS)], [])
    return Dataset.open(dataset.uri)


@pytest.fixture(scope="module")
def stored_dataset() -> Dataset:
    return Dataset.open(Path(__file__).parents[2] / "compatibility" / "dataset")


@pytest.mark.parametrize("where", CONDITIONS)
def test_selected_rows_are_those_of_duckdb_alone(synthetic: Dataset, where: str) -> None:
    import duckdb

    selection = select_rows(synthetic, where)
    with duckdb.connect() as alone:
        for group in ("images", "quality", "boxes"):
            columns = "id, names" if group == "boxes" else "*"  # DuckDB does not know numbers of 16 bits
            alone.execute(
                f"create view {group} as select {columns} from read_parquet('{synthetic.uri}/{group}/*.parquet')"
            )
        joined = "images join quality on images.id = quality.id join boxes on images.id = boxes.id"
        expected = {one for (one,) in alone.execute(f"select images.id from {joined} where {where}").fetchall()}
    ids = [one for shard in synthetic.shard_names for one in selected(synthetic, selection.mask(shard), shard)]
    assert ids == sorted(expected)
    assert selection.rows == len(expected) > 0
    assert selection.total == SHARDS * ROWS


def selected(dataset: Dataset, mask: np.ndarray, shard: str) -> list[str]:
    return np.array(dataset.read("images", shard, ["id"])["id"].to_pylist())[mask].tolist()


def test_selection_is_the_same_for_any_batches(synthetic: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = select_rows(synthetic, CONDITIONS[0])
    monkeypatch.setattr("labeling.dataset.selection.CHUNK_ROWS", 9001)
    pieces = select_rows(synthetic, CONDITIONS[0])
    assert pieces.fingerprint == whole.fingerprint != select_rows(synthetic, CONDITIONS[1]).fingerprint
    assert np.array_equal(pieces.bits, whole.bits)


def test_shards_are_looked_up_once_and_no_other_group_is_read(
    synthetic: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, read = Counter[int](), Counter[str]()
    positions, all_footers = FooterTable.positions, Dataset.all_footers

    def counted_positions(table: FooterTable, shards: Sequence[str]) -> np.ndarray:
        looks[len(table)] += 1
        return positions(table, shards)

    def counted_footers(dataset: Dataset, groups: Sequence[str], *rest: Any, **named: Any) -> dict[str, FooterTable]:
        read.update(groups)
        return all_footers(dataset, groups, *rest, **named)

    monkeypatch.setattr(Dataset, "all_footers", counted_footers)
    monkeypatch.setattr("labeling.dataset.selection.CHUNK_ROWS", ROWS)  # a shard at a time
    footers = synthetic.all_footers(["images", "quality"])
    monkeypatch.setattr(FooterTable, "positions", counted_positions)
    select_rows(Dataset.open(synthetic.uri), CONDITIONS[0], footers)
    assert looks == {SHARDS: 2}  # for the two groups, not for each of 25 pieces
    monkeypatch.undo()
    monkeypatch.setattr(Dataset, "all_footers", counted_footers)
    for where, groups in (
        (CONDITIONS[0], ["images", "quality"]),
        ("images.id in (select quality.id from quality)", ["images", "quality"]),
        ("true", ["images"]),
        ("sharpness > 0.4", ["boxes", "images", "quality"]),  # which has that column?
    ):
        read.clear()
        select_rows(Dataset.open(synthetic.uri), where)
        assert sorted(read) == groups and set(read.values()) == {1}, where
    for sql, groups in (
        ("select count(*) from quality where sharpness > 0.5", ["quality"]),
        ("select count(*) from rows where quality.sharpness > images.width", ["images", "quality"]),
        ("select count(*) from rows", ["images"]),
        ("select * from rows limit 1", ["boxes", "images", "quality", "rejected"]),
        ("select table_name from duckdb_tables()", ["boxes", "images", "quality", "rejected"]),
    ):
        read.clear()
        with query(synthetic.uri, sql) as answer:
            next(answer.rows, None)
        assert sorted(read) == groups and set(read.values()) == {1}, sql


def test_missing_labels_are_null(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path / "dataset")
    for number, shard in enumerate(("000000", "000001", "000002")):
        ids = pa.array([f"{number}{row:04d}" for row in range(1000)])
        write(dataset, "images", shard, {"id": ids})
        if number == 1:
            write(dataset, "quality", shard, {"id": ids, "sharpness": pa.array(np.linspace(0, 1, 1000), pa.float32())})
    dataset.describe("pictures", [ShardInfo(f"{number:06d}", 1000) for number in range(3)], [])
    selection = select_rows(Dataset.open(dataset.uri), "quality.sharpness >= 0")
    assert [int(selection.mask(shard).sum()) for shard in dataset.shard_names] == [0, 1000, 0]
    assert select_rows(dataset, "quality.sharpness is null").rows == 2000


def test_rows_on_s3_are_those_on_disk(s3: str, tmp_path: Path) -> None:
    wheres = ["quality.sharpness >= 0.3", "quality.sharpness is null", "octet_length(images.image) > 1"]
    found = []
    for uri in (f"{s3}/{tmp_path.name}", tmp_path / "dataset"):
        dataset = Dataset(uri)
        for number in range(4):
            ids = pa.array([f"{number}{row:04d}" for row in range(1000)])
            write(dataset, "images", f"{number:06d}", {"id": ids, "image": pa.array([b"--"] * 1000)})
            if number != 2:  # whose shard is missing
                sharpness = pa.array(np.linspace(0, 1, 1000), pa.float32())
                write(dataset, "quality", f"{number:06d}", {"id": ids, "sharpness": sharpness})
        dataset.describe("pictures", [ShardInfo(f"{number:06d}", 1000) for number in range(4)], [])
        found.append([select_rows(Dataset.open(dataset.uri), where) for where in wheres])
    assert [one.rows for one in found[0]] == [2100, 1000, 4000]
    assert [one.fingerprint for one in found[0]] == [one.fingerprint for one in found[1]]
    for sql, first in (
        ("select count(*), sum(quality.sharpness) from rows where quality.sharpness >= 0.3", 2100),
        ("select count(*) from rows where quality.sharpness is null", 1000),
        ("select count(*), sum(sharpness) from quality where id > '3'", 1000),
        ("select images.id from rows where quality.sharpness > 0.99 limit 1", "00990"),
        ("select count(q.id) from images i left join quality q on i.id = q.id", 3000),
        ("select count(*) from rows", 4000),
    ):
        answers = []
        for uri in (f"{s3}/{tmp_path.name}", str(tmp_path / "dataset")):
            with query(uri, sql) as given:
                answers.append(list(given.rows))
        assert answers[0] == answers[1] and answers[0][0][0] == first, sql


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (
            "quality.sharpnes > 1",
            r"no column 'quality.sharpnes' \(did you mean 'quality.sharpness'\?\); there are quality",
        ),
        ("images.width >", r"syntax error"),
        ("id = 'a'", r"column 'id' is ambiguous; write images.id or boxes.id or quality.id"),
        ("images.width > 'abc'", r"Could not convert string 'abc' to INT32"),
        ("count(*) > 1", r"cannot contain aggregates"),
        ("true) union select (1", r"^where 'true\) union select \(1': syntax error at or near \"union\"$"),
        ("true) limit (5", r"syntax error at or near \"limit\""),
        ("exists (select * from read_parquet('/tmp/x'))", r"disabled by configuration"),
        ("", r"give a condition"),
    ],
)
def test_bad_condition_is_one_line(synthetic: Dataset, where: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        select_rows(synthetic, where)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ("len(list_filter(boxes.boxes, lambda b: b.x1 - b.x0 > 100)) > 0", 1),
        ("len([b for b in boxes.boxes if b.x1 - b.x0 > 100]) > 0", 1),
        ("width > 100 and len(list_filter(boxes.scores, lambda width: width > 0.5)) > 0", 1),
        ("len(list_filter(boxes.boxes, lambda images: images.x1 > 3)) > 0 and images.width < 200", 1),
    ],
)
def test_parameters_of_lambdas_are_no_columns(stored_dataset: Dataset, where: str, rows: int) -> None:
    assert select_rows(stored_dataset, where).rows == rows


@pytest.mark.parametrize(
    "where",
    [
        "random() < 0.5",
        "now() > '2020-01-01'",
        "current_date > '2020-01-01'",
        "ago('1 day') > '2020-01-01'",
        "age(timestamp '2020-01-01') > interval 1 year",
        "images.id in (select id from boxes using sample 2)",
        "images.width > (select count(*) from boxes where current_timestamp > '2020-01-01')",
    ],
)
def test_condition_that_selects_other_rows_each_time_is_refused(stored_dataset: Dataset, where: str) -> None:
    with pytest.raises(InputError, match="selects other rows each time"):
        select_rows(stored_dataset, where)
    assert select_rows(stored_dataset, "md5_number_lower(images.id) % 2 = 0").rows in range(5)


def test_names_beside_a_subquery_must_be_clear(stored_dataset: Dataset) -> None:
    with pytest.raises(InputError, match="column 'id' is ambiguous"):
        select_rows(stored_dataset, "id in (select id from boxes)")
    condition = select_rows(stored_dataset, "images.id in (select id from boxes)").condition
    assert (condition.groups, condition.reads) == (["images"], ["images", "boxes"])
    with pytest.raises(InputError, match="query_table cannot be in a condition"):
        select_rows(stored_dataset, "images.id in (select id from query_table('boxes'))")


def test_few_rows_need_no_connection_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    import duckdb

    made, connect = [], duckdb.connect
    monkeypatch.setattr(duckdb, "connect", lambda *args, **kwargs: made.append(args) or connect(*args, **kwargs))
    for number in range(5):
        tables = {"images": pa.table({"id": ["a", "b"], "width": pa.array([number, 9], pa.int32())})}
        assert evaluate("images.width > 3", tables).tolist() == [number > 3, True]
    assert len(made) <= 1
    with pytest.raises(InputError, match=r"images\.height"):
        evaluate("images.height > 3", tables)
    with pytest.raises(InputError, match="disabled"):
        evaluate("exists (select * from read_text('/etc/hostname'))", tables)
    assert evaluate("images.width > 8", tables).tolist() == [False, True]


def test_dataset_without_rows_has_none_to_select(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path / "dataset")
    dataset.describe("pictures", [], [])
    with pytest.raises(InputError, match=r"where 'true': .*dataset has no rows yet"):
        select_rows(Dataset.open(dataset.uri), "true")


@pytest.mark.parametrize(
    "sql",
    [
        "select * from read_csv('/etc/passwd')",
        "copy (select 1) to '{folder}/written'",
        "attach '{folder}/written'",
        "install httpfs",
        "set enable_external_access = true",
        "select * from '{folder}'",
    ],
)
def test_sql_reads_and_writes_no_file(synthetic: Dataset, tmp_path: Path, sql: str) -> None:
    import duckdb

    with Tables(synthetic).connect() as connection, pytest.raises(duckdb.Error):
        connection.execute(sql.format(folder=tmp_path)).fetchall()
    assert not list(tmp_path.iterdir())
