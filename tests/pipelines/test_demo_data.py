"""The demo's pictures: each one whole, with author and license; the stereo truth as published; what must be refused."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from labeling.sources.normalize import Rejected, normalize
from labeling.sources.source import Source
from model.constants import MAX_PIXELS, MIN_SIDE
from model.pictures import decode_gray, decode_picture
from pipelines.demo_data.pictures import PHOTOGRAPHS, gather_pictures


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    gather_pictures(folder)
    return folder


def test_every_demo_picture_is_intact_and_credited(folder: Path) -> None:
    source = Source(str(folder))
    metadata = source.metadata()
    names = [item.name for item in source.items() if not item.name.startswith("refused/")]
    assert sorted(metadata) == names
    assert {"astronaut.png", "grace_hopper.jpg", "motorcycle_left.png", "moonwalk.jpg", "panda.jpg"} <= set(names)
    for item in source.items():
        if item.name in metadata:
            assert normalize(next(source.read([item])).raw, MAX_PIXELS, MIN_SIDE).width >= 300, item.name
            assert all(metadata[item.name][key] for key in ("author", "licence", "text")), item.name


def test_own_photographs_are_free_small_and_listed() -> None:
    with (PHOTOGRAPHS / "metadata.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    files = {path.name for path in PHOTOGRAPHS.iterdir()} - {"metadata.csv", "README.md"}
    assert files == {row["file_name"] for row in rows}
    assert sum((PHOTOGRAPHS / name).stat().st_size for name in files) < 3_000_000
    for row in rows:
        assert row["licence"] == "public domain" or row["licence"].startswith(("CC0-", "CC-BY-"))
        assert "SA" not in row["licence"] and row["origin"]
        assert max(decode_picture((PHOTOGRAPHS / row["file_name"]).read_bytes()).shape) <= 640


def test_stereo_pair_comes_with_true_disparity(folder: Path, photographs: Path) -> None:
    row = Source(str(folder)).metadata()["motorcycle_left.png"]
    levels = decode_gray((folder / row["disparity"]).read_bytes())
    assert levels.dtype == np.uint16
    with np.load(photographs / "motorcycle_disp.npz") as archive:
        truth = archive["arr_0"]
    known = np.isfinite(truth)
    assert np.array_equal(levels > 0, known)
    assert np.abs(levels * float(row["disparity_scale"]) - truth)[known].max() < 1e-3
    # The disparity says where a left pixel is in the right picture; zero disparity is far worse.
    left, right = (
        decode_picture((folder / name).read_bytes()).astype(float) for name in ("motorcycle_left.png", row["right"])
    )
    rows, columns = np.nonzero(known)
    moved = np.rint(columns - truth[known]).astype(int)
    inside = moved >= 0
    difference = np.abs(left[rows, columns] - right[rows, moved.clip(0)])[inside].mean()
    assert difference < 0.5 * np.abs(left - right)[known][inside].mean()


def test_each_bad_file_is_rejected_for_its_reason(folder: Path) -> None:
    source = Source(str(folder))
    reasons = {}
    for item in source.items():
        if item.name.startswith("refused/"):
            try:
                normalize(next(source.read([item])).raw, MAX_PIXELS, MIN_SIDE)
            except Rejected as error:
                reasons[Path(item.name).name] = str(error)
    assert "decompression bomb" in reasons["60000x60000.png"]
    assert reasons["note.jpg"] == "not a picture: text"
    assert "truncated" in reasons["rocket_cut.jpg"]
    assert (folder / "refused/coffee_again.png").read_bytes() == (folder / "coffee.png").read_bytes()


def test_gathering_again_rewrites_only_broken_files(folder: Path) -> None:
    (folder / "coffee.png").write_bytes(b"half")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    gather_pictures(folder)
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert [path.name for path in before if before[path] != after[path]] == ["coffee.png"]
    assert sorted(after) == sorted(before)
    assert decode_picture((folder / "coffee.png").read_bytes()).shape == (400, 600, 3)
