"""The ingest job: rows and reasons, growth, and datasets that change meanwhile."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from picture_zoo.files import damaged, encode, heic, scene
from picture_zoo.parts import exif_block, icc
from picture_zoo.turns import ODD_TAGS

from labeling.dataset import Dataset, LocalStore, dataset_status, lease
from labeling.sources.duplicates import Losers, find_duplicates
from model.inputs import InputError
from pipelines.ingest import IngestResult, ingest


def test_files_become_rows_or_are_rejected_with_a_reason(pictures: Path, tmp_path: Path, photographs: Path) -> None:
    (pictures / "metadata.csv").write_text(
        "file_name,author,licence,text,right\n"
        "coffee.png,Rachel Michetti,CC0,a cup of coffee,\n"
        "motorcycle_left.png,,,a motorcycle,stereo/right.png\n"
        "camera.png,,,,stereo/missing.png\n"
    )
    (pictures / "stereo").mkdir()
    (pictures / "stereo" / "right.png").write_bytes((photographs / "motorcycle_right.png").read_bytes())
    result = ingest(str(pictures), str(tmp_path / "dataset"), shard_rows=4)
    dataset = Dataset.open(tmp_path / "dataset")
    assert (result.added, result.rejected) == (5, 4)
    rows = {row["source"]: row for row in dataset.rows("images")}
    assert rows["coffee.png"]["licence"] == "CC0"
    assert rows["motorcycle_left.png"]["right"] == (photographs / "motorcycle_right.png").read_bytes()
    assert rows["chelsea.png"]["text"] is None
    reasons = {row["source"]: row["reason"] for row in dataset.rows("rejected")}
    assert reasons == {
        "camera.png": "metadata.csv names stereo/missing.png as its right, which is not there",
        "cut.jpg": "truncated JPEG file",
        "notes.txt": "not a picture: text",
        "z-coffee-again.png": "same bytes as coffee.png",
    }


def test_source_that_refuses_to_be_read_is_no_fault_of_a_picture(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when credentials expire after the picture and before the file that belongs to it."""
    (pictures / "metadata.csv").write_text("file_name,right\nchelsea.png,right.png\n")
    read = LocalStore.read

    def expire(self: LocalStore, name: str) -> bytes:
        if name == "right.png":
            raise InputError("these credentials have expired")
        return read(self, name)

    monkeypatch.setattr(LocalStore, "read", expire)
    with pytest.raises(InputError, match="have expired"):
        ingest(str(pictures), str(tmp_path / "dataset"))


def test_pictures_of_phones_and_cameras_are_taken_and_no_file_ends_the_job(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    turned = exif_block(6, ODD_TAGS["rational"])
    whole = {
        "IMG_0001.HEIC": heic(scene(), exif=exif_block(6)),
        "odd-tags.jpg": encode(scene(seed=1), "JPEG", exif=turned),
        "live.jpg": encode(scene(seed=2), "MPO", save_all=True, append_images=[scene(seed=3)]),
        "wide.png": encode(scene(seed=4).quantize(64), icc_profile=icc("Display P3")),
    }
    for name, raw in {**whole, "drawing.svg": b"<svg></svg>", "cut.avif": encode(scene(), "AVIF")[:400]}.items():
        (folder / name).write_bytes(raw)
    for name, raw in damaged(whole, 40):
        (folder / name).write_bytes(raw)
    target = str(tmp_path / "dataset")
    first = ingest(str(folder), target)
    assert first.added + first.rejected == 46
    dataset = Dataset.open(target)
    rows = {row["source"]: row for row in dataset.rows("images")}
    for name in ("IMG_0001.HEIC", "odd-tags.jpg"):
        assert (rows[name]["width"], rows[name]["height"]) == scene().size[::-1]
    assert rows["live.jpg"]["image"] == whole["live.jpg"]
    assert rows["wide.png"]["image"] != whole["wide.png"]
    reasons = {row["source"]: row["reason"] for row in dataset.rows("rejected")}
    assert reasons["drawing.svg"] == "SVG, a drawing, is not read: render it to PNG"
    assert "AVIF" in reasons["cut.avif"]
    assert ingest(str(folder), target) == IngestResult(0, 0, len(rows))


def test_ingest_writes_the_index_that_labels_and_status_read(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest(str(pictures), str(tmp_path / "d"), shard_rows=2)
    monkeypatch.setattr("labeling.dataset.index.read_footer", None)
    dataset = Dataset.open(tmp_path / "d")
    assert dataset_status(dataset)["images"].rows == 6
    assert list(dataset.store.files("images", "index")) == ["index-000000-004096.parquet"]


def test_rejected_file_is_read_again_when_its_size_changes(pictures: Path, tmp_path: Path, photographs: Path) -> None:
    """As when it was still being copied, or has been repaired since."""
    target = tmp_path / "dataset"
    ingest(str(pictures), str(target), shard_rows=4)
    assert ingest(str(pictures), str(target)) == IngestResult(0, 0, 6)
    (pictures / "notes.txt").write_text("no picture still")
    (pictures / "cut.jpg").write_bytes((photographs / "hubble_deep_field.jpg").read_bytes())
    assert ingest(str(pictures), str(target)) == IngestResult(1, 1, 7)
    dataset = Dataset.open(target)
    assert [row["source"] for row in dataset.rows("images")][-1] == "cut.jpg"
    reasons = [(row["source"], row["reason"]) for row in dataset.rows("rejected")]
    assert sorted(reasons) == [("notes.txt", "not a picture: text"), ("z-coffee-again.png", "same bytes as coffee.png")]
    assert ingest(str(pictures), str(target)) == IngestResult(0, 0, 7)


def test_concurrent_ingest_keeps_what_the_other_added(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other ingest ends after this one has read the dataset and before it takes the lease."""
    target, later = str(tmp_path / "dataset"), tmp_path / "later"
    later.mkdir()
    for name in ("chelsea.png", "coffee.png"):
        (pictures / name).rename(later / name)
    (pictures / "z-coffee-again.png").unlink()

    @contextmanager
    def late(store: Any, groups: list[str]) -> Iterator[None]:
        with monkeypatch.context() as undisturbed:
            undisturbed.setattr("pipelines.ingest.lease", lease)
            assert ingest(str(later), target).added == 2
        with lease(store, groups):
            yield

    monkeypatch.setattr("pipelines.ingest.lease", late)
    assert ingest(str(pictures), target) == IngestResult(4, 2, 6)
    assert [row["source"] for row in Dataset.open(target).rows("images")][:2] == ["chelsea.png", "coffee.png"]
    assert len(Dataset.open(target).description["sources"]) == 2


def test_source_without_images_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source in ("empty", "missing"):
        with pytest.raises(InputError, match="no files there"):
            ingest(str(tmp_path / source), str(tmp_path / "dataset"))
    assert not (tmp_path / "dataset").exists()
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "a.txt").write_text("hello")
    with pytest.raises(InputError, match="none of 1 files is a picture"):
        ingest(str(tmp_path / "words"), str(tmp_path / "dataset"))
    assert not (tmp_path / "dataset").exists()


def shard_bytes(target: Path) -> dict[str, bytes]:
    return {
        f"{group}/{path.name}": path.read_bytes()
        for group in ("images", "rejected", "items")
        for path in sorted((target / group).glob("[0-9]*.parquet"))
    }


def test_ingest_that_ends_at_any_write_goes_on_to_the_same_shards(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twins lie in other shards than what they equal, so that some shards are written twice."""
    for name in ("motorcycle_left.png", "astronaut.png"):
        (pictures / name).unlink()
    for name, twin in (("chelsea.png", "x.png"), ("camera.png", "z.png"), ("coffee.png", "y.png")):
        (pictures / twin).write_bytes((pictures / name).read_bytes())
    calm = tmp_path / "calm"
    assert ingest(str(pictures), str(calm), shard_rows=2) == IngestResult(4, 6, 4)
    put_file = LocalStore.put_file
    writes = 0

    def put(store: LocalStore, name: str, path: Path) -> Any:
        nonlocal writes
        writes -= name.endswith(".parquet")
        if writes < 0:
            raise KeyboardInterrupt
        return put_file(store, name, path)

    monkeypatch.setattr(LocalStore, "put_file", put)
    for count in range(1, 40):
        target, writes = tmp_path / f"killed-{count}", count
        try:
            ingest(str(pictures), str(target), shard_rows=2)
            break
        except KeyboardInterrupt:
            writes = 1000
        assert ingest(str(pictures), str(target), shard_rows=2).images == 4, count
        assert shard_bytes(target) == shard_bytes(calm), count
    assert count > 15  # the files of five shards, and again of those with twins


def test_order_in_which_shards_lose_pictures_is_of_no_account(
    tmp_path: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers settle shards at the same time: what one names as the first of its twins may lie in another."""
    (tmp_path / "pictures").mkdir()
    names = ("chelsea", "camera", "chelsea", "coffee", "coffee", "astronaut", "astronaut", "camera", "brick", "coffee")
    for number, name in enumerate(names):
        shutil.copy(photographs / f"{name}.png", tmp_path / "pictures" / f"{number}.png")
    ingest(str(tmp_path / "pictures"), str(tmp_path / "forward"), shard_rows=2)

    def reversed_duplicates(*arguments: Any) -> list[Losers]:
        return find_duplicates(*arguments)[::-1]

    monkeypatch.setattr("pipelines.ingest_job.new_shards.find_duplicates", reversed_duplicates)
    ingest(str(tmp_path / "pictures"), str(tmp_path / "backward"), shard_rows=2)
    assert shard_bytes(tmp_path / "backward") == shard_bytes(tmp_path / "forward")
    reasons = {row["source"]: row["reason"] for row in Dataset.open(tmp_path / "forward").rows("rejected")}
    firsts = {"2.png": "0.png", "4.png": "3.png", "6.png": "5.png", "7.png": "1.png", "9.png": "3.png"}
    assert reasons == {name: f"same bytes as {first}" for name, first in firsts.items()}


def test_row_group_is_gone_through_once_however_many_shards_it_makes(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [pictures / name for name in ("camera.png", "chelsea.png", "coffee.png", "rocket.jpg", "astronaut.png")]
    table = pa.table({"image": [path.read_bytes() for path in files], "caption": [path.stem for path in files]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    calls = []
    iter_batches = pq.ParquetFile.iter_batches

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(options["row_groups"])
        return iter_batches(*arguments, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    assert ingest(str(tmp_path / "a.parquet"), str(tmp_path / "dataset"), shard_rows=1).added == 5
    assert calls == [[0]]
    rows = list(Dataset.open(tmp_path / "dataset").rows("images"))
    assert [row["text"] for row in rows] == [path.stem for path in files]


def test_dataset_below_its_source_is_no_part_of_it(pictures: Path) -> None:
    target = pictures / "made" / "dataset"
    assert ingest(str(pictures), str(target)).added == 6
    assert ingest(str(pictures), str(target)) == IngestResult(0, 0, 6)


@pytest.mark.usefixtures("ray_cluster")
def test_workers_make_the_same_shards_as_this_process(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, twin in (("chelsea.png", "x.png"), ("camera.png", "a.png")):
        (pictures / twin).write_bytes((pictures / name).read_bytes())
    here, there = tmp_path / "here", tmp_path / "there"
    ingest(str(pictures), str(here), shard_rows=2)
    monkeypatch.setattr("pipelines.ingest._HERE_FILES", 0)
    monkeypatch.setattr("pipelines.ingest._HERE_ARCHIVES", 0)
    ingest(str(pictures), str(there), shard_rows=2)
    assert shard_bytes(there) == shard_bytes(here)
    (pictures / "metadata.csv").write_text("file_name,text\nchelsea.png,a cat\n")
    assert ingest(str(pictures), str(there), update=True).replaced == 1
