"""The labeling job: resume, rebuild and increment are one operation, and rows in error keep their place."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from labeling.dataset import IMAGE_SCHEMA, Dataset, dataset_status, lease, open_store, set_schema, write_shard
from model.inputs import InputError
from pipelines.ingest import ingest
from pipelines.label import label
from pipelines.reports.page import report

pytestmark = pytest.mark.usefixtures("ray_cluster")
BRIGHTNESS, DOUBLED = "simple_labelers:Brightness", "simple_labelers:Doubled"


def contents(dataset: Dataset, group: str) -> dict[str, bytes]:
    return {shard.name: dataset.store.read(f"{group}/{shard.name}.parquet") for shard in dataset.shards}


def test_labels_are_fresh_after_one_run(dataset: Dataset) -> None:
    first = label(dataset.uri, [BRIGHTNESS, DOUBLED])
    assert first.written == {"brightness": len(dataset.shards), "doubled": len(dataset.shards)}
    rows = list(dataset.rows("brightness"))
    ids = [row["id"] for row in dataset.rows("images", ["id"])]
    assert [row["id"] for row in rows] == ids
    assert len({row["value"] for row in rows}) == len(ids)
    assert [row["twice"] for row in dataset.rows("doubled")] == pytest.approx([2 * row["value"] for row in rows])
    again = label(dataset.uri, [])
    assert not again.written
    assert again.fresh == {"brightness": len(dataset.shards), "doubled": len(dataset.shards)}


def test_changed_values_make_readers_stale_and_equal_values_do_not(dataset: Dataset) -> None:
    label(dataset.uri, [BRIGHTNESS, DOUBLED], {"brightness": {"levels": 2}})
    count = len(dataset.shards)
    same = label(dataset.uri, [BRIGHTNESS, DOUBLED], {"brightness": {"gain": 1.0001}})
    assert same.written == {"brightness": count}  # levels=2 is kept, and the values came out the same
    assert same.fresh["doubled"] == count
    other = label(dataset.uri, [BRIGHTNESS, DOUBLED], {"brightness": {"gain": 0.1, "levels": 256}})
    assert other.written == {"brightness": count, "doubled": count}


def test_deleted_shard_is_made_again_byte_for_byte(dataset: Dataset) -> None:
    label(dataset.uri, [BRIGHTNESS, DOUBLED])
    before = {group: contents(dataset, group) for group in ("brightness", "doubled")}
    dataset.store.delete("brightness/000001.parquet")
    status = dataset_status(dataset)
    assert asdict(status["brightness"])["missing"] == 1
    result = label(dataset.uri, [])
    assert result.written == {"brightness": 1}
    assert {group: contents(dataset, group) for group in before} == before


def test_missing_shards_of_a_group_are_made_for_its_readers(dataset: Dataset) -> None:
    label(dataset.uri, [BRIGHTNESS, DOUBLED])
    for group in ("brightness", "doubled"):
        dataset.store.delete(f"{group}/000000.parquet")
    assert label(dataset.uri, [DOUBLED]).written == {"brightness": 1, "doubled": 1}


def test_rows_in_error_keep_their_place_and_are_filled_later(dataset: Dataset) -> None:
    label(dataset.uri, [BRIGHTNESS, DOUBLED], {"brightness": {"refuse_wider_than": 600}})
    widths = [row["width"] for row in dataset.rows("images", ["width"])]
    rows = list(dataset.rows("brightness"))
    assert [row["error"] for row in rows] == ["wider than 600" if width > 600 else None for width in widths]
    assert [row["value"] is None for row in rows] == [width > 600 for width in widths]
    assert dataset_status(dataset)["doubled"].errors == sum(width > 600 for width in widths) > 0
    result = label(dataset.uri, [BRIGHTNESS, DOUBLED], {"brightness": {"refuse_wider_than": 10_000}})
    assert dataset_status(dataset)["doubled"].errors == 0
    touched = [max(dataset.read("images", shard.name)["width"].to_pylist()) > 600 for shard in dataset.shards]
    assert result.written["doubled"] == sum(touched) < len(dataset.shards)


def test_shards_without_rows_are_labeled_without_work(tmp_path: Path, photographs: Path) -> None:
    source = tmp_path / "mixed"
    source.mkdir()
    shutil.copy(photographs / "rocket.jpg", source / "b.jpg")
    for name in ("a.txt", "c.txt", "d.txt"):
        (source / name).write_text("not a picture")
    ingest(str(source), str(tmp_path / "dataset"), shard_rows=1)
    dataset = Dataset.open(str(tmp_path / "dataset"))
    assert sorted(info.rows for info in dataset.shards) == [0, 0, 0, 1]
    assert label(str(tmp_path / "dataset"), [BRIGHTNESS, DOUBLED]).written == {"brightness": 4, "doubled": 4}
    assert {name: (status.fresh, status.rows) for name, status in dataset_status(dataset).items()} == {
        "images": (4, 1),
        "brightness": (4, 1),
        "doubled": (4, 1),
    }
    assert [row["twice"] > 0 for row in dataset.rows("doubled")] == [True]
    assert not label(str(tmp_path / "dataset"), [BRIGHTNESS, DOUBLED]).written
    assert Path(report(str(tmp_path / "dataset"))).exists()


def test_growth_appends_shards_and_labels_only_those(dataset: Dataset, pictures: Path, photographs: Path) -> None:
    label(dataset.uri, [BRIGHTNESS])
    before = contents(dataset, "brightness")
    (pictures / "a-new-one.png").write_bytes((photographs / "brick.png").read_bytes())
    (pictures / "a-known-one.png").write_bytes((photographs / "camera.png").read_bytes())
    grown = ingest(str(pictures), dataset.uri, shard_rows=3)
    assert (grown.added, grown.rejected, grown.images) == (1, 1, 7)
    dataset = Dataset.open(dataset.uri)
    assert label(dataset.uri, [BRIGHTNESS]).written == {"brightness": 1}
    after = contents(dataset, "brightness")
    assert {name: after[name] for name in before} == before
    rejected = [row["reason"] for row in dataset.rows("rejected")]
    assert sum("in the dataset already" in reason for reason in rejected) == 1
    assert ingest(str(pictures), dataset.uri).added == 0


def test_sets_are_labeled_view_by_view(dataset: Dataset, tmp_path: Path) -> None:
    pictures = list(dataset.rows("images"))
    rows = [
        {"id": name, **{key: [picture[key] for picture in some] for key in IMAGE_SCHEMA.names if key != "id"}}
        for name, some in (("first", pictures[:2]), ("second", pictures[2:5]))
    ]
    schema = set_schema(IMAGE_SCHEMA)
    store = open_store(tmp_path / "sets")
    write_shard(store, "images", "000000", pa.Table.from_pylist(rows, schema), [1, 1], "recipe")
    description = {"schema": 1, "kind": "sets", "shards": [{"name": "000000", "rows": 2}], "sources": []}
    store.put("dataset.json", json.dumps(description).encode())
    label(str(tmp_path / "sets"), [BRIGHTNESS, DOUBLED])
    heights = [row["height"] for row in Dataset.open(tmp_path / "sets").rows("brightness", ["height"])]
    assert heights == [row["height"] for row in rows]
    assert [len(row["twice"]) for row in Dataset.open(tmp_path / "sets").rows("doubled")] == [2, 3]


@pytest.mark.parametrize(
    ("names", "parameters", "message"),
    [
        (["boxs"], {}, "did you mean 'boxes'"),
        (["nowhere:Labeler"], {}, "cannot be imported"),
        ([BRIGHTNESS], {"brightness": {"gian": 2}}, "did you mean 'gain'"),
        ([BRIGHTNESS], {"brightness": {"gain": "much"}}, "Brightness: gain: .*'much'"),
        ([BRIGHTNESS], {"doubled": {"x": 1}}, "not among the groups"),
    ],
)
def test_wrong_names_and_parameters_are_named(
    dataset: Dataset, names: list[str], parameters: dict[str, dict[str, object]], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        label(dataset.uri, names, parameters)
    assert dataset.groups() == ["images"]


def test_group_held_by_another_job_is_refused(dataset: Dataset) -> None:
    with lease(dataset.store, ["brightness"]), pytest.raises(InputError, match=f"process {os.getpid()}"):
        label(dataset.uri, [BRIGHTNESS])
    assert not dataset.store.exists("brightness/group.json")


def test_new_group_is_declared_by_one_of_two_jobs_on_other_shards(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one, which still works, has declared it after this one has looked."""
    holder = {"host": "elsewhere", "process": 1, "started": 1.0, "job": "", "time": time.time(), "shards": [0, 1]}
    dataset.store.put("brightness/running-1.json", json.dumps(holder).encode())
    declare_new = Dataset.declare_new

    def late(self: Dataset, group: str, declaration: dict[str, Any]) -> bool:
        assert declare_new(self, group, declaration)
        return declare_new(self, group, declaration)

    monkeypatch.setattr(Dataset, "declare_new", late)
    assert label(dataset.uri, [BRIGHTNESS], shards=(1, 3)).written == {"brightness": 2}


def test_jobs_on_other_shards_run_beside_each_other(dataset: Dataset) -> None:
    label(dataset.uri, [BRIGHTNESS], shards=(0, 1))
    holder = {"host": "elsewhere", "process": 1, "started": 1.0, "job": "", "time": time.time(), "shards": [0, 1]}
    dataset.store.put("brightness/running-000000-000001.json", json.dumps(holder).encode())
    with pytest.raises(InputError, match="on elsewhere is working on it, shards 0:1"):
        label(dataset.uri, [BRIGHTNESS], shards=(0, 2))
    with pytest.raises(InputError, match="is working on it with other parameters"):
        label(dataset.uri, [BRIGHTNESS], {"brightness": {"gain": 2.0}}, shards=(1, 3))
    assert label(dataset.uri, [BRIGHTNESS], shards=(1, 3)).written == {"brightness": 2}
    parts = dataset.store.files("brightness", "index")
    assert list(parts) == ["index-000000-000001.parquet", "index-000001-004096.parquet"]
    assert dataset_status(dataset)["brightness"].fresh == 3
