"""The shard format: whole or absent, equal content for equal values, footers and their cache, disk and S3."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from labeling.dataset import Dataset, check_type, digest_column, open_store, write_shard
from model.inputs import InputError

INDEX = "index-000000-004096.parquet"
TABLE = pa.table(
    {
        "id": ["a", "b", "c"],
        "latent": pa.array([[1.0, 2.0], None, [3.0]], pa.list_(pa.float16())),
        "views": pa.array([[b"x", b"yy"], [], None], pa.list_(pa.binary())),
        "boxes": pa.array(
            [[{"x": 1.0, "t": "q"}], None, []], pa.list_(pa.struct([("x", pa.float32()), ("t", pa.string())]))
        ),
        "error": pa.array([None, "bad", None], pa.string()),
    }
)


def make(uri: str) -> Dataset:
    store = open_store(uri)
    write_shard(store, "images", "000000", TABLE, [2, 1], "recipe")
    description = {"schema": 1, "kind": "pictures", "shards": [{"name": "000000", "rows": 3}], "sources": []}
    store.put("dataset.json", json.dumps(description).encode())
    return Dataset.open(uri)


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "disk":
        return str(tmp_path / "dataset")
    return f"{request.getfixturevalue('s3')}/{tmp_path.name}"


def test_shard_reads_back_with_its_footer(place: str) -> None:
    dataset = make(place)
    footer = dataset.footers("images", save=True)["000000"]
    assert (footer.recipe, footer.rows, footer.errors, footer.row_groups) == ("recipe", 3, 1, [2, 1])
    assert dataset.read("images", "000000").equals(TABLE)
    assert dataset.read("images", "000000", ["latent"], [1]).to_pylist() == [{"latent": [3.0]}]
    assert list(dataset.store.files("images")) == ["000000.parquet", INDEX]
    assert dataset.footers("images")["000000"] == footer


def test_broken_or_outdated_index_is_ignored(place: str) -> None:
    dataset = make(place)
    before = dataset.footers("images", save=True)
    dataset.store.put(f"images/{INDEX}", b"broken")
    assert dataset.footers("images") == before
    changed = TABLE.set_column(0, "id", pa.array(["a", "b", "d"]))
    dataset.footers("images", save=True)
    write_shard(dataset.store, "images", "000000", changed, [2, 1], "other")
    assert dataset.footers("images")["000000"].recipe == "other"


def test_footers_are_read_where_the_index_cannot_be_written(tmp_path: Path) -> None:
    dataset = make(str(tmp_path))
    (tmp_path / "images" / INDEX).mkdir()
    assert list(dataset.footers("images", save=True)) == ["000000"]


def test_same_table_gives_same_bytes(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    write_shard(store, "g", "000000", TABLE, [2, 1], "recipe")
    first = store.read("g/000000.parquet")
    pieces = pa.concat_tables([TABLE.slice(0, 1), TABLE.slice(1, 2)])  # other chunks, other offsets, same values
    write_shard(store, "g", "000000", pieces, [2, 1], "recipe")
    assert store.read("g/000000.parquet") == first
    assert [path.name for path in (tmp_path / "g").iterdir()] == ["000000.parquet"]


@pytest.mark.parametrize("column", TABLE.column_names)
def test_digests_depend_on_values_alone(column: str) -> None:
    array = TABLE[column]
    assert digest_column(array) == digest_column(pa.concat_tables([TABLE.slice(0, 2), TABLE.slice(2)])[column])
    assert digest_column(array) != digest_column(array.take(pa.array([1, 0, 2])))
    assert digest_column(array) != digest_column(array.slice(0, 2))


def test_digests_distinguish_null_from_empty() -> None:
    kind = pa.list_(pa.int32())
    assert digest_column(pa.array([[], None], kind)) != digest_column(pa.array([None, []], kind))
    assert digest_column(pa.array(["", None])) != digest_column(pa.array([None, ""]))
    assert digest_column(pa.array([["a", "b"]])) != digest_column(pa.array([["ab", ""]]))


@pytest.mark.parametrize(
    "values",
    [
        pa.array(["a", "b"], pa.large_string()),
        pa.array(["a", "b"]).dictionary_encode(),
        pa.array([[1, 2], [3, 4]], pa.list_(pa.int32(), 2)),
        pa.array([{"x": [b"a"]}, None], pa.struct([("x", pa.list_(pa.large_binary()))])),
    ],
)
def test_types_whose_values_are_pointers_are_refused(tmp_path: Path, values: pa.Array) -> None:
    with pytest.raises(InputError, match="cannot be stored"):
        check_type(values.type)
    with pytest.raises(InputError, match="cannot be stored"):
        write_shard(open_store(tmp_path), "g", "000000", pa.table({"value": values}), [2], "recipe")
    assert not list(tmp_path.rglob("*.parquet"))


def test_types_that_can_be_told_apart_are_stored(tmp_path: Path) -> None:
    for field in TABLE.schema:
        check_type(field.type)
    for kind in (pa.bool_(), pa.date32(), pa.timestamp("us", "UTC"), pa.float64(), pa.null()):
        check_type(kind)
        digest_column(pa.nulls(2, kind))


def test_failed_upload_leaves_no_local_file(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(InputError, match="refused these credentials"):
        write_shard(open_store(f"{s3}/failed"), "g", "000000", TABLE, [2, 1], "recipe")
    assert not list(tmp_path.iterdir())
