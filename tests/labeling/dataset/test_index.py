"""The index of footers: parts that jobs on other shards write beside each other, few requests, and old ones read."""

from __future__ import annotations

import json
import os
import pickle
import time
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3_proxy import s3_proxy

from labeling.dataset import (
    Dataset,
    Footer,
    FooterTable,
    IndexLog,
    ShardInfo,
    footer_batches,
    index,
    lease,
    open_store,
    write_shard,
)
from model.inputs import InputError

SHARDS = [f"{number:06d}" for number in range(10)]


def make(uri: str, shards: list[str] = SHARDS) -> Dataset:
    dataset = Dataset(uri)
    for shard in shards:
        write_shard(dataset.store, "edges", shard, pa.table({"id": [shard, "b"]}), [1, 1], "recipe")
    dataset.describe("pictures", [ShardInfo(shard, 2) for shard in shards], [])
    return dataset


def parts(dataset: Dataset) -> list[str]:
    return list(dataset.store.files("edges", "index"))


def unread(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Shards whose footers are read from now on."""
    names: list[str] = []

    def read(store: object, group: str, shard: str, listed: int | None = None) -> Footer:
        names.append(shard)
        return read_footer(store, group, shard, listed)  # type: ignore[arg-type]

    read_footer = footer_batches.read_footer
    monkeypatch.setattr(footer_batches, "read_footer", read)
    return names


def test_footer_costs_one_request_and_the_index_none(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(f"{s3}/{tmp_path.name}")
    with s3_proxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
        dataset = Dataset.open(f"{s3}/{tmp_path.name}")
        before = proxy.requests
        footers = dataset.footers("edges")
        assert len(footers) == len(SHARDS) and proxy.requests == before + 1 + len(SHARDS)
        dataset.footers("edges", save=True)
        before = proxy.requests
        assert dataset.footers("edges", save=True) == footers
        assert proxy.requests == before + 2, "a listing and a part of the index"


def test_large_footer_takes_a_second_read(s3: str, tmp_path: Path) -> None:
    store = open_store(f"{s3}/{tmp_path.name}")
    table = pa.table({f"column {number}": [1] * 500 for number in range(4)})
    write_shard(store, "wide", "000000", table, [1] * 500, "recipe")
    assert Dataset(store.uri).footer("wide", "000000").row_groups == [1] * 500


def test_footers_of_very_many_shards_are_read_by_several_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make(str(tmp_path))
    alone = dataset.footers("edges")
    monkeypatch.setattr(index, "BATCH", 3)
    monkeypatch.setattr(footer_batches.os, "sched_getaffinity", lambda _: {0, 1})
    here = unread(monkeypatch)
    assert footer_batches.MANY < 10**5, "10⁵ shards are worth processes"
    monkeypatch.setattr(footer_batches, "MANY", 15)
    assert dataset.footers("edges") == alone and set(here) == set(SHARDS), "processes are for many"
    here.clear()
    monkeypatch.setattr(footer_batches, "MANY", 6)
    assert dataset.footers("edges") == alone and not here
    (tmp_path / "edges" / "000004.parquet").write_bytes(b"no shard")
    with pytest.raises(InputError, match=r"edges/000004\.parquet: not a Parquet file"):
        dataset.footers("edges")
    (tmp_path / "edges" / "000004.parquet").unlink()
    monkeypatch.setattr(footer_batches, "_STARTS", "raise SystemExit")  # as one that was killed
    assert set(dataset.footers("edges")) == set(SHARDS) - {"000004"} and set(here) == set(SHARDS) - {"000004"}


def test_only_changed_footers_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make(str(tmp_path))
    dataset.footers("edges", save=True)
    names = unread(monkeypatch)
    dataset.store.delete("edges/000003.parquet")
    write_shard(dataset.store, "edges", "000005", pa.table({"id": ["a", "c"]}), [2], "other")
    footers = dataset.footers("edges")
    assert names == ["000005"] and footers["000005"].row_groups == [2]
    assert list(footers) == [shard for shard in SHARDS if shard != "000003"]
    assert dataset.footers("edges", known=footers) == footers and names == ["000005"]


def test_index_of_before_is_read_and_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make(str(tmp_path))
    rows = []
    for shard, entry in dataset.shard_entries("edges").items():
        footer = asdict(dataset.footer("edges", shard))
        del footer["entry"]
        rows.append({"name": shard, "size": entry.size, "tag": entry.tag, "footer": json.dumps(footer)})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "edges" / "index.parquet")
    names = unread(monkeypatch)
    assert dataset.footers("edges", save=True)["000007"] == dataset.footer("edges", "000007")
    assert not names and parts(dataset) == ["index-000000-004096.parquet"]
    assert len(dataset.footers("edges")) == len(SHARDS) and not names


def test_jobs_on_other_shards_keep_each_others_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two jobs end one after the other, a third goes on, and none of their footers is read again."""
    dataset = make(str(tmp_path))
    monkeypatch.setattr(index, "live_ranges", lambda store, group: [(6, 10)])
    logs = {shards: IndexLog(dataset.store) for shards in ((0, 3), (3, 6), (6, 10))}
    for (first, end), log in logs.items():
        for shard in SHARDS[first:end]:
            log.add("edges", shard, dataset.footer("edges", shard))
        log.flush()
    assert len(parts(dataset)) == 3
    names = unread(monkeypatch)
    for held in ((0, 3), (3, 6)):
        dataset.save_index("edges", dataset.footers("edges", shards=held), held)
    assert parts(dataset)[:2] == ["index-000000-000003.parquet", "index-000003-000006.parquet"]
    assert len(parts(dataset)) == 3, "the third job's own part is left alone"
    assert len(dataset.footers("edges", save=True)) == len(SHARDS) and len(parts(dataset)) == 3
    monkeypatch.setattr(index, "live_ranges", lambda store, group: [])
    assert len(dataset.footers("edges", save=True)) == len(SHARDS)
    assert parts(dataset) == ["index-000000-004096.parquet"] and not names


def test_log_begins_another_part_when_one_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "LOG_SHARDS", 4)
    dataset = make(str(tmp_path))
    log = IndexLog(dataset.store)
    for shard in SHARDS:
        log.add("edges", shard, dataset.footer("edges", shard))
    log.flush()
    log.flush()
    assert len(parts(dataset)) == 3
    names = unread(monkeypatch)
    assert len(dataset.footers("edges")) == len(SHARDS) and not names


def test_footers_of_shards_just_written_are_read_without_a_listing(tmp_path: Path) -> None:
    dataset = make(str(tmp_path))
    before = dataset.all_footers(["edges"])
    write_shard(dataset.store, "edges", "000002", pa.table({"id": ["a"]}), [1], "new")
    dataset.store.delete("edges/000004.parquet")
    now = dataset.refreshed(before, [("edges", "000002"), ("edges", "000004")])
    assert now == dataset.all_footers(["edges"]) and now["edges"]["000002"].recipe == "new"


def test_table_keeps_footers_as_they_are() -> None:
    footers = {
        "000000": Footer("0" * 32, "a text", {"id": "f" * 32, "old": "x"}, 3, 1, [2, 1]),
        "000001": Footer("F" * 32, "sixteen bytes ..", {"id": "0 " * 16}, 0, 0, []),
    }
    table = FooterTable.of(footers)
    assert dict(table) == footers and dict(pickle.loads(pickle.dumps(table))) == footers
    assert dict(table.only(["000001", "000009"])) == {"000001": footers["000001"]}
    assert table.errors() == {"000000": 1} and table.row_groups("000000") == [2, 1]


def test_leased_shards_are_left_alone_by_status(tmp_path: Path) -> None:
    dataset = make(str(tmp_path))
    holder = {"host": "elsewhere", "process": 1, "started": 1.0, "job": "", "time": time.time(), "shards": [0, 4]}
    dataset.store.put("edges/running-000000-000004.json", json.dumps(holder).encode())
    dataset.footers("edges", save=True)
    assert not parts(dataset)
    dataset.store.delete("edges/running-000000-000004.json")
    with lease(dataset.store, ["edges"], (0, 4)):  # the own process knows what it does
        dataset.footers("edges", save=True)
    assert parts(dataset)


def test_reading_that_is_cut_goes_on_with_what_it_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "BATCH", 12)  # cut after three footers
    dataset = make(str(tmp_path))
    whole = dataset.all_footers(["edges"])
    known: dict[str, FooterTable] = {}
    counts, is_complete = [], False
    while not is_complete:
        known, is_complete = dataset.footers_until(0.0, ["edges"], known)
        counts.append(len(known["edges"]))
        assert bool(parts(dataset)) == is_complete, "an index is of all shards"
    assert known == whole and counts == [3, 6, 9, 10]
