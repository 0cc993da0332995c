"""Ingest: what becomes a row, what is rejected and why, and the sources that are understood."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageCms

from labeling.dataset import Dataset, lease
from labeling.sources.ingest import ROW_GROUP_PIXELS, ROW_GROUP_ROWS, Picture, Rejected, cut_row_groups, normalize
from labeling.sources.source import Source
from model.inputs import InputError
from pipelines.ingest import IngestResult, ingest


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(picture: Picture) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture.encoded)))


@pytest.fixture
def chelsea(photographs: Path) -> Image.Image:
    return Image.open(photographs / "chelsea.png")


def test_untouched_bytes_are_kept(photographs: Path) -> None:
    raw = (photographs / "chelsea.png").read_bytes()
    assert normalize(raw, 10**8, 32) == Picture(raw, 451, 300)


def test_exif_orientation_is_applied(chelsea: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90° clockwise to see it upright
    picture = normalize(encoded(chelsea, "JPEG", exif=exif, quality=95), 10**8, 32)
    assert (picture.width, picture.height) == chelsea.size[::-1]
    upright = np.asarray(chelsea.transpose(Image.Transpose.ROTATE_270), np.float64)
    assert np.abs(decoded(picture) - upright).mean() < 4


def test_colors_are_converted_to_srgb(chelsea: Image.Image, photographs: Path) -> None:
    lab = ImageCms.profileToProfile(
        chelsea, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    picture = normalize(encoded(lab, "TIFF", icc_profile=profile), 10**8, 32)
    assert np.abs(decoded(picture).astype(float) - np.asarray(chelsea)).mean() < 3
    adobe = Image.open(photographs / "rocket.jpg")  # Adobe RGB: read as sRGB, its reds would be too dull
    red, dull = decoded(normalize((photographs / "rocket.jpg").read_bytes(), 10**8, 32)), np.asarray(adobe)
    assert np.ptp(red[..., 0].astype(int) - red[..., 2]) > np.ptp(dull[..., 0].astype(int) - dull[..., 2])


def test_transparency_goes_on_white_and_sixteen_bits_are_scaled(chelsea: Image.Image) -> None:
    ghost = chelsea.convert("RGBA")
    ghost.putalpha(0)
    assert (decoded(normalize(encoded(ghost), 10**8, 32)) == 255).all()
    deep = Image.fromarray(np.asarray(chelsea.convert("L")).astype(np.uint16) * 257)
    assert (
        np.abs(decoded(normalize(encoded(deep), 10**8, 32)).astype(int) - np.asarray(chelsea.convert("L"))).max() <= 1
    )


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises width × height pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "empty"),
        (b"hello", "not a picture"),
        (bomb(60_000, 60_000), "decompression bomb"),
        (bomb(12_000, 12_000), "decompression bomb"),
        (encoded(Image.new("RGB", (20, 400))), "too small"),
    ],
)
def test_what_is_no_picture_says_why(raw: bytes, reason: str) -> None:
    with pytest.raises(Rejected, match=reason):
        normalize(raw, 10**8, 32)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_every_truncation_is_noticed(chelsea: Image.Image, kind: str) -> None:
    raw = encoded(chelsea, kind)
    for share in (0.05, 0.3, 0.6, 0.9):
        with pytest.raises(Rejected):
            normalize(raw[: int(len(raw) * share)], 10**8, 32)


def test_row_groups_respect_every_limit() -> None:
    small, wide = Picture(b"x", 100, 100), Picture(b"x", 8192, 2048)
    assert cut_row_groups([]) == []
    assert cut_row_groups([small] * (ROW_GROUP_ROWS + 1)) == [ROW_GROUP_ROWS, 1]
    assert cut_row_groups([wide] * 5) == [ROW_GROUP_PIXELS // (8192 * 2048)] * 2 + [1]
    assert cut_row_groups([Picture(b"x" * (9 << 20), 9, 9)] * 2) == [1, 1]


def names(source: Source) -> list[str]:
    return [item.name for item in source.items()]


def test_folders_globs_tars_and_parquet_are_listed_in_order(pictures: Path, tmp_path: Path) -> None:
    assert names(Source(str(pictures))) == sorted(path.name for path in pictures.iterdir())
    assert names(Source(f"{pictures}/*.jpg")) == ["cut.jpg", "rocket.jpg"]
    with tarfile.open(tmp_path / "some.tar", "w") as archive:
        for path in pictures.glob("c*.png"):
            archive.add(path, f"inside/../../{path.name}")
    tar = Source(str(tmp_path / "some.tar"))
    assert [(item.name.rsplit("/", 1)[-1], tar.read(item)[0]) for item in tar.items()] == [
        (path.name, path.read_bytes()) for path in sorted(pictures.glob("c*.png"))
    ]
    rows = [
        {"image": {"bytes": path.read_bytes(), "path": path.name}, "caption": path.stem} for path in pictures.glob("c*")
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "some.parquet", row_group_size=2)
    parquet = Source(str(tmp_path / "some.parquet"))
    assert [parquet.read(item) for item in parquet.items()] == [
        (row["image"]["bytes"], {"text": row["caption"]}) for row in rows
    ]


@pytest.mark.usefixtures("ray_cluster")
def test_a_folder_becomes_rows_and_reasons(pictures: Path, tmp_path: Path, photographs: Path) -> None:
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
        "notes.txt": "not a picture",
        "z-coffee-again.png": "same bytes as coffee.png",
    }


@pytest.mark.usefixtures("ray_cluster")
def test_a_rejected_file_is_looked_at_again_when_it_has_another_size(
    pictures: Path, tmp_path: Path, photographs: Path
) -> None:
    """It was still being copied, or has been repaired since."""
    place = tmp_path / "dataset"
    ingest(str(pictures), str(place), shard_rows=4)
    assert ingest(str(pictures), str(place)) == IngestResult(0, 0, 6)
    (pictures / "notes.txt").write_text("no picture still")
    (pictures / "cut.jpg").write_bytes((photographs / "hubble_deep_field.jpg").read_bytes())
    assert ingest(str(pictures), str(place)) == IngestResult(1, 1, 7)
    dataset = Dataset.open(place)
    assert [row["source"] for row in dataset.rows("images")][-1] == "cut.jpg"
    reasons = [(row["source"], row["reason"]) for row in dataset.rows("rejected")]
    assert sorted(reasons) == [("notes.txt", "not a picture"), ("z-coffee-again.png", "same bytes as coffee.png")]
    assert ingest(str(pictures), str(place)) == IngestResult(0, 0, 7)


@pytest.mark.usefixtures("ray_cluster")
def test_what_another_ingest_added_meanwhile_stays(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends between the look at the dataset and the lease."""
    place, later = str(tmp_path / "dataset"), tmp_path / "later"
    later.mkdir()
    for name in ("chelsea.png", "coffee.png"):
        (pictures / name).rename(later / name)
    (pictures / "z-coffee-again.png").unlink()

    @contextmanager
    def late(store: Any, groups: list[str]) -> Iterator[None]:
        with monkeypatch.context() as undisturbed:
            undisturbed.setattr("pipelines.ingest.lease", lease)
            assert ingest(str(later), place).added == 2
        with lease(store, groups):
            yield

    monkeypatch.setattr("pipelines.ingest.lease", late)
    assert ingest(str(pictures), place) == IngestResult(4, 2, 6)
    assert [row["source"] for row in Dataset.open(place).rows("images")][:2] == ["chelsea.png", "coffee.png"]
    assert len(Dataset.open(place).description["sources"]) == 2


@pytest.mark.usefixtures("ray_cluster")
def test_what_cannot_be_ingested_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source in ("empty", "missing"):
        with pytest.raises(InputError, match="no files there"):
            ingest(str(tmp_path / source), str(tmp_path / "dataset"))
    assert not (tmp_path / "dataset").exists()
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "a.txt").write_text("hello")
    with pytest.raises(InputError, match="none of 1 files is a picture"):
        ingest(str(tmp_path / "words"), str(tmp_path / "dataset"))
    assert not [path for path in (tmp_path / "dataset").rglob("*") if path.is_file()]
