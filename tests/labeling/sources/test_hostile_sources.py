"""Sources that are damaged, or made to break a program: what cannot be read is a reason, and nothing else is lost."""

from __future__ import annotations

import base64
import io
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from skimage import data as photographs

from labeling.dataset import Dataset, open_store
from labeling.sources.facts import plain_value
from labeling.sources.ingest import Ingestion, Limits, ShardTask
from labeling.sources.items import Reading, items_table
from labeling.sources.source import Source
from labeling.sources.tar import _Stream
from model.inputs import InputError
from model.pictures import encode_png
from pipelines.ingest import ingest

PICTURE = encode_png(photographs.camera()[:96, :96, None].repeat(3, 2))


def write_tar(path: Path, members: Sequence[tuple[str, bytes]], mode: Any = "w", **headers: str) -> None:
    with tarfile.open(path, mode, format=tarfile.PAX_FORMAT) as archive:
        for name, raw in members:
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = len(raw), headers if name.startswith("odd") else {}
            archive.addfile(info, io.BytesIO(raw))


def reasons(target: Path) -> dict[str, str]:
    return {row["source"]: row["reason"] for row in Dataset.open(target).rows("rejected")}


def test_file_that_a_table_names_and_that_cannot_be_read_costs_its_row(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(PICTURE)
    (tmp_path / "in" / "circle").symlink_to("circle")
    encoded = "x" + base64.b64encode(PICTURE * 9).decode().replace("/", "x")
    names = ["circle", encoded, "a\0.png", "missing.png", "a.png"]
    pq.write_table(pa.table({"file_name": names}), tmp_path / "in" / "rows.parquet")
    found = [one.reason for one in Source(str(tmp_path / "in" / "rows.parquet")).read(
        Source(str(tmp_path / "in" / "rows.parquet")).items()
    )]  # fmt: skip
    assert found[0] == "circle cannot be read (Too many levels of symbolic links)"
    assert found[1] == f"{encoded[:99]}… cannot be read (File name too long)"
    assert found[2].endswith("cannot be read (embedded null byte)")
    assert found[3:] == ["missing.png is not there", ""]
    result = ingest(str(tmp_path / "in" / "rows.parquet"), str(tmp_path / "out"))
    assert (result.added, result.rejected) == (1, 4)


def test_shard_of_which_items_were_not_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(PICTURE)
    source = Source(str(tmp_path / "in"))
    ingestion = Ingestion(
        source,
        Dataset(str(tmp_path / "out")),
        Limits(1 << 20, 1),
        {"labeler": "ingest", "version": 1, "parameters": {}, "weights": "", "reads": []},
    )
    tasks = [ShardTask(f"{n:06d}", items_table([{"name": name, "size": 1}])) for n, name in enumerate("ab")]

    def read_first(items: Sequence[Any]) -> Iterator[Reading]:
        yield Reading(items[0], PICTURE)

    monkeypatch.setattr(source, "read", read_first)
    with pytest.raises(RuntimeError, match="1 items of shard 000001 were not read"):
        ingestion.ingest(tasks)
    assert [row["source"] for row in ingestion.dataset.read("images", "000000").to_pylist()] == ["a"]


def test_only_tables_of_the_folder_name_files_and_only_below_it(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    secret = str(tmp_path / "secret")
    write_tar(folder / "a.tar", [("1.png", PICTURE), ("1.json", json.dumps({"right": secret}).encode())])
    for name, more in (("b.png", b"b"), ("c.png", b"c"), ("d.png", b"d")):
        (folder / name).write_bytes(PICTURE + more)
    (folder / "r.png").write_bytes(b"right")
    (folder / "metadata.csv").write_text(f"file_name,right\nb.png,../secret\nc.png,{secret}\nd.png,r.png\n")
    ingest(str(folder), str(tmp_path / "out"))
    rows = {row["source"]: row for row in Dataset.open(tmp_path / "out").rows("images")}
    assert {name: row["right"] for name, row in rows.items()} == {"a.tar/1.png": None, "d.png": b"right"}
    assert json.loads(rows["a.tar/1.png"]["metadata"]) == {"right": secret}
    assert {name: reason.rpartition(", ")[2] for name, reason in reasons(tmp_path / "out").items()} == {
        "b.png": "which is not below the folder",
        "c.png": "which is not below the folder",
    }


@pytest.mark.parametrize("size", ["-1536", str(10**30)])
def test_header_with_a_size_that_no_file_has_ends_its_archive(tmp_path: Path, size: str) -> None:
    write_tar(tmp_path / "a.tar", [("a.png", b"a"), ("odd.png", b"b")], size=size)
    listing = Source(str(tmp_path)).listing()
    assert listing.items["name"].to_pylist() == ["a.tar/a.png"]
    assert len(listing.troubles) == 1
    write_tar(tmp_path / "a.tar", [("odd.png", b"b")], size=size)
    with pytest.raises(InputError):
        Source(str(tmp_path)).listing()


def test_stream_keeps_no_more_than_is_read_again(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar.gz", [(f"{number}.png", b"x" * 600) for number in range(4)], "w:gz")
    source = Source(str(tmp_path))
    spans = sorted((item.place or 0, item.size) for item in source.items())
    with _Stream(source.store, "a.tar.gz", "gzip", [spans[0], *spans]) as stream:
        held = []
        for span in (*spans, spans[0]):
            assert stream.read(*span) == b"x" * 600
            held.append(len(stream._read))
    assert held == [1, 1, 1, 1, 0]


def test_archive_that_is_cut_or_gone_between_listing_and_reading_gives_reasons(tmp_path: Path) -> None:
    members = [(f"{number}.{kind}", os.urandom(20_000)) for number in range(4) for kind in ("png", "txt")]
    for name, mode in (("a.tar", "w"), ("b.tar.gz", "w:gz")):
        write_tar(tmp_path / name, members, mode)
    source = Source(str(tmp_path))
    items = source.items()
    for name in ("a.tar", "b.tar.gz"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:70_000])
    found = {one.item.name: one for one in source.read(items)}
    assert len(found) == 8
    for name in ("a.tar", "b.tar.gz"):
        assert found[f"{name}/0.png"].raw == members[0][1] and not found[f"{name}/0.png"].reason
        assert found[f"{name}/2.png"].reason and found[f"{name}/3.png"].reason
        (tmp_path / name).unlink()
    found = {one.item.name: one for one in source.read(items)}
    assert {one.reason for one in found.values()} == {"cannot be read from its archive (No such file or directory)"}
    assert len(found) == 8


def test_text_that_utf8_cannot_hold_ends_no_ingest(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_tar(Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.tar")), [("1.png", PICTURE)])
    (folder / "a.png").write_bytes(PICTURE + b"a")
    lines = [{"file_name": "a.png", "text": "half \ud800"}, {"file_name": "\udfff.png", "\ud800": 1}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for added in (2, 0):
        assert ingest(str(folder), str(tmp_path / "out")).added == added
    rows = {row["source"]: row["text"] for row in Dataset.open(tmp_path / "out").rows("images")}
    assert rows == {"caf\\xe9.tar/1.png": None, "a.png": "half ?"}


def test_deep_values_are_cut() -> None:
    deep: Any = 1
    for _ in range(5000):
        deep = [deep]
    assert json.dumps(plain_value(deep)) == "[" * 64 + "null" + "]" * 64
    assert plain_value({"a": [{"b": 1}]}) == {"a": [{"b": 1}]}


def test_pictures_are_looked_at_no_further_ahead_than_threads_need(tmp_path: Path) -> None:
    source = Source(str(tmp_path))
    ingestion = Ingestion(source, Dataset(str(tmp_path / "out")), Limits(1 << 20, 1), {}, threads=2)
    taken: list[int] = []

    def readings() -> Iterator[Reading]:
        for number in range(100):
            taken.append(number)
            yield Reading(item, reason="none")

    (tmp_path / "a.png").write_bytes(PICTURE)
    (item,) = source.items()
    looked = ingestion.look(readings())
    assert next(iter(looked)).reason == "none"
    assert len(taken) < 10
    assert open_store(str(tmp_path)).exists("a.png")
