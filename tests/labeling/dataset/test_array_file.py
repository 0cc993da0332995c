"""Shards that change, end or fail while single arrays of them are read, from a disk and from S3."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from labeling.dataset import ArrayFile, PageCache, open_store, read_arrays, shards, write_shard
from labeling.dataset.storage.local import LocalStore
from labeling.dataset.storage.s3 import S3Store
from model.inputs import InputError, WorkFailed

HALF = pa.list_(pa.float16())
ENTRY = pa.struct([("task", pa.string()), ("prompt", pa.string()), ("tokens", pa.int32()), ("embedding", HALF)])
SIDES = [(2, 3), None, (4, 2), (2, 2), (3, 2)]
LATENTS = pa.table(
    {
        "latent": pa.array([side and np.arange(16.0 * side[0] * side[1]).tolist() for side in SIDES], HALF),
        "latent_height": pa.array([side and side[0] for side in SIDES], pa.int32()),
        "latent_width": pa.array([side and side[1] for side in SIDES], pa.int32()),
    }
)
GROUPS = [2, 1, 2]


def _read(file: ArrayFile, row: int) -> list[float]:
    assert file.latents
    value = file.latents.value(row)
    target = np.empty(file.latents.shape(value), np.float16)
    read_arrays([file.want(value, target)])
    return [float(each) for each in target.ravel()]


def test_part_of_what_is_wanted_is_not_taken_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more parts than a system call takes as well, and where one gives less than it is asked for."""
    (tmp_path / "f").write_bytes(bytes(range(100)) * 50)
    ranges = open_store(tmp_path).ranges("f")
    assert not ranges.read_into(4000, [bytearray(1) for _ in range(1500)], 1500)
    original = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, parts, offset: original(file, parts[:3], offset))
    parts = [bytearray(1 + number % 3) for number in range(1500)]
    assert ranges.read_into(7, [*parts, np.empty((0, 4), np.float16)], sum(map(len, parts)))
    assert b"".join(parts) == (bytes(range(100)) * 50)[7:][: sum(map(len, parts))]


@pytest.mark.parametrize("sets", [False, True])
def test_pictures_are_read_alone(tmp_path: Path, sets: bool) -> None:
    """Whatever their size, also where some are missing, and damage of one is told."""
    store = open_store(tmp_path)
    data = [b"a" * 3_000_000, None, b"", b"bc", b"d" * 70_000, b"e"]
    rows = [data[:2], [], data[2:5], data[5:]] if sets else data
    kind = pa.list_(pa.binary()) if sets else pa.binary()
    table = pa.table({"id": [str(row) for row in range(len(rows))], "image": pa.array(rows, kind)})
    groups = [2, 1, 1] if sets else [1, 3, 2]
    write_shard(store, "images", "000000", table, groups, "recipe")
    file = ArrayFile(store, "images", "000000")
    assert file.pictures and not file.latents and not file.entries
    places = [(row, view) for row, views in enumerate(rows) for view in range(len(views))] if sets else None
    for number, (row, view) in enumerate(places or [(row, 0) for row in range(len(rows))]):
        if not data[number]:
            with pytest.raises(IndexError):
                file.pictures.value(row, view)
            continue
        value = file.pictures.value(row, view)
        target = np.empty(file.pictures.sizes[value], np.uint8)
        read_arrays([file.want(value, target)])
        assert target.tobytes() == data[number]
    with pytest.raises(IndexError):
        file.pictures.value(0, 2)
    assert shards.is_stored_as_now(store, "images", "000000")
    whole = (tmp_path / "images" / "000000.parquet").read_bytes()
    for number, byte, row_group in ((4, 5, 1 if sets else 2), (0, 0, 0), (0, 2_000_000, 0), (0, 2_999_999, 0)):
        content, start = bytearray(whole), int(file.pictures.starts[number])
        content[start + byte] ^= 1
        (tmp_path / "images" / "000000.parquet").write_bytes(content)
        target = np.empty(len(data[number] or b""), np.uint8)
        with pytest.raises(InputError, match=f"row group {row_group}: damaged"):
            read_arrays([ArrayFile(store, "images", "000000").want(number, target)])


def test_rows_of_a_large_row_group_are_read_alone(tmp_path: Path) -> None:
    rows = 20_010  # more than Parquet puts on a page by itself
    numbers = (np.arange(rows * 16) % 1000).astype(np.float16)
    lists = pa.ListArray.from_arrays(pa.array(np.arange(rows + 1, dtype=np.int32) * 16), pa.array(numbers))
    ones = pa.array(np.ones(rows, np.int32))
    table = pa.table({"latent": lists, "latent_height": ones, "latent_width": ones})
    write_shard(open_store(tmp_path), "g", "000000", table, [rows], "recipe")
    file = ArrayFile(open_store(tmp_path), "g", "000000")
    for row in (0, rows - 1):
        np.testing.assert_array_equal(_read(file, row), numbers[row * 16 :][:16])


class _Unpinned(LocalStore):
    """Reads what has the name now, as S3 does."""

    gap = 0

    def ranges(self, name: str) -> Any:
        return _Named(self, name)


class _Named:
    def __init__(self, store: LocalStore, name: str) -> None:
        self._open = lambda: LocalStore.ranges(store, name)

    def read_into(self, *wanted: Any) -> bool:
        return self._open().read_into(*wanted)

    def read(self, *wanted: Any) -> Any:
        return self._open().read(*wanted)

    def read_tail(self, size: int) -> Any:
        return self._open().read_tail(size)


def test_shard_that_is_replaced_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = _Unpinned(str(tmp_path))
    with monkeypatch.context() as before:
        before.setattr(shards, "checksums_text", lambda *_: "{}")
        before.setattr(shards, "_compression", lambda schema: "none")  # other places
        write_shard(store, "g", "000000", LATENTS, GROUPS, "recipe")
    file = ArrayFile(store, "g", "000000")
    expected = _read(file, 2)
    write_shard(store, "g", "000000", LATENTS, GROUPS, "recipe")  # the same content, stored again
    assert _read(file, 2) == _read(file, 2) == expected
    other = LATENTS.set_column(0, "latent", pa.array([[0.0] * 96, None, [0.0] * 128, [0.0] * 64, None], HALF))
    file = ArrayFile(store, "g", "000000")
    write_shard(store, "g", "000000", other.set_column(1, "latent_height", pa.array([2, 1, 4, 2, 3])), GROUPS, "recipe")
    with pytest.raises(InputError, match=r"000000.parquet: changed since the run began"):
        _read(file, 2)
    store.delete("g/000000.parquet")
    with pytest.raises(InputError, match=r"000000.parquet: gone since the run began"):
        _read(file, 2)


def test_footer_and_values_are_of_one_file(tmp_path: Path) -> None:
    """A file that is replaced while it is opened is the old one or the new one, not the places of one in the other."""
    store = open_store(tmp_path)
    write_shard(store, "g", "000000", LATENTS, GROUPS, "recipe")
    expected = _read(ArrayFile(store, "g", "000000"), 2)

    class Replaced(LocalStore):
        def ranges(self, name: str) -> Any:
            opened = super().ranges(name)
            write_shard(store, "g", "000000", LATENTS.slice(2), [3], "recipe")
            return opened

    assert _read(ArrayFile(Replaced(str(tmp_path)), "g", "000000"), 2) == expected


class _Object:
    """What Arrow gives for an object of S3. failures: of the first reads, an error or how many bytes are cut off."""

    def __init__(self, content: bytes, *failures: OSError | int) -> None:
        self.content, self.failures = content, list(failures)

    def read_at(self, size: int, offset: int) -> bytes:
        failure = self.failures.pop(0) if self.failures else 0
        if isinstance(failure, OSError):
            raise failure
        return self.content[offset : offset + size - failure]


def _far(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *failures: OSError | int) -> S3Store:
    """A store of S3 that reads the files of a folder."""
    store, near = S3Store("s3://bucket/dataset"), open_store(tmp_path)
    monkeypatch.setattr(store, "open", lambda name: _Object(near.read(name), *failures))
    monkeypatch.setattr(store, "read_tail", lambda name, size, listed=None: near.read_tail(name, size))
    monkeypatch.setattr(store, "read_range", near.read_range)
    return store


def test_s3_gives_arrays_without_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = {"task": "", "prompt": "", "tokens": 0, "embedding": []}
    full = {"task": "edges", "prompt": "", "tokens": 1, "embedding": [1.0, 2.0, 3.0, 4.0]}
    table = pa.table({"entries": pa.array([[empty, full]], pa.list_(ENTRY))})
    write_shard(open_store(tmp_path), "text", "000000", table, [1], "recipe")
    file = ArrayFile(_far(monkeypatch, tmp_path), "text", "000000")
    assert file.entries
    targets = [np.ones(file.entries.shape(value), np.float16) for value in (0, 1)]
    read_arrays([file.want(value, target) for value, target in enumerate(targets)])
    assert targets[0].shape == (0, 4)
    assert targets[1].ravel().tolist() == table["entries"][0][1]["embedding"].as_py()


def test_answer_of_s3_that_is_cut_is_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shard(open_store(tmp_path), "g", "000000", LATENTS, GROUPS, "recipe")
    expected = _read(ArrayFile(open_store(tmp_path), "g", "000000"), 2)
    file = ArrayFile(_far(monkeypatch, tmp_path, 7), "g", "000000")
    monkeypatch.undo()
    monkeypatch.setattr(S3Store, "open", lambda _, name: _Object((tmp_path / name).read_bytes()))
    monkeypatch.setattr(S3Store, "read_tail", lambda _, name, size: open_store(tmp_path).read_tail(name, size))
    assert _read(file, 2) == expected


def test_s3_that_fails_may_answer_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shard(open_store(tmp_path), "g", "000000", LATENTS, GROUPS, "recipe")
    file = ArrayFile(_far(monkeypatch, tmp_path, OSError("AWS Error NETWORK_CONNECTION")), "g", "000000")
    with pytest.raises(WorkFailed, match=r"^s3://bucket/dataset/g/000000.parquet: S3 does not give its bytes"):
        _read(file, 2)


def test_page_of_a_shard_that_is_stored_anew_is_read_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = _Unpinned(str(tmp_path))
    with monkeypatch.context() as before:
        before.setattr(shards, "checksums_text", lambda *_: "{}")
        before.setattr(shards, "_compression", lambda schema: "none")  # other places
        write_shard(store, "g", "000000", LATENTS, GROUPS, "recipe")
    file = ArrayFile(store, "g", "000000")
    assert file.latents
    target = np.empty(file.latents.shape(2), np.float16)
    expected = _read(file, 2)
    write_shard(store, "g", "000000", LATENTS, GROUPS, "recipe")
    with ThreadPoolExecutor(1) as pool:
        PageCache(pool, 1 << 20).read([file.want(2, target, file.page(1))], 1 << 20)
    assert target.ravel().tolist() == expected
