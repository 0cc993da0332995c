"""Lists of float16 as raw bytes: equal to those that are read as lists, exact reads of single rows, damaged files."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from labeling.dataset import ArrayFile, PageCache, digest_column, open_store, read_arrays, shards, write_shard
from labeling.dataset.checksums import checksums_text
from labeling.dataset.join import read_columns
from model.inputs import InputError

HALF = pa.list_(pa.float16())
ENTRY = pa.struct([("task", pa.string()), ("prompt", pa.string()), ("tokens", pa.int32()), ("embedding", HALF)])
WIDTH = 4


def _numbers(count: int, seed: int) -> list[float]:
    return [float(value) for value in np.random.default_rng(seed).integers(-99, 99, count)]


def _entries(row: int, tasks: tuple[str, ...]) -> list[dict[str, Any]]:
    made = []
    for number, task in enumerate(tasks):
        tokens = 1 + (row + number) % 3
        values = _numbers(tokens * WIDTH, 10 * row + number)
        made.append({"task": task, "prompt": task * 2, "tokens": tokens, "embedding": values})
    return made


def _latents(sides: list[tuple[int, int] | None]) -> dict[str, pa.Array]:
    return {
        "latent": pa.array([side and _numbers(16 * side[0] * side[1], n) for n, side in enumerate(sides)], HALF),
        "latent_height": pa.array([side and side[0] for side in sides], pa.int32()),
        "latent_width": pa.array([side and side[1] for side in sides], pa.int32()),
    }


def _sets(columns: dict[str, pa.Array], offsets: list[int | None]) -> dict[str, pa.Array]:
    """Values as lists of the views of sets."""
    return {name: pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), column) for name, column in columns.items()}


SIDES = [(2, 3), None, (4, 2), (2, 2), (3, 2)]
ROWS = [_entries(0, ("", "edges", "depth")), None, _entries(2, ("", "depth")), [], _entries(4, ("",))]
TABLES = {
    "latents": pa.table(_latents(SIDES)),
    "latents of sets": pa.table(_sets(_latents([*SIDES, (2, 2), (2, 2)]), [0, 2, None, 3, 3, 7])),
    "text": pa.table({"entries": pa.array(ROWS, pa.list_(ENTRY))}),
    "text of sets": pa.table(
        {"entries": pa.array([ROWS[:2], None, [ROWS[2]], [], ROWS[3:]], pa.list_(pa.list_(ENTRY)))}
    ),
    "a label of one's own": pa.table({"feature": pa.array([[1.0], None, [], [2.0, 3.0], [4.0]], HALF)}),
}
GROUPS = [2, 1, 2]


@pytest.mark.parametrize("name", TABLES)
def test_arrays_read_as_lists_whatever_they_are_stored_as(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, table = open_store(tmp_path), TABLES[name]
    footer = write_shard(store, "g", "000000", table, GROUPS, "recipe")
    stored = pq.ParquetFile(tmp_path / "g" / "000000.parquet")
    leaf = stored.schema.column(len(stored.schema) - 1 if "text" in name else 0)
    assert (leaf.physical_type, leaf.logical_type.type) == ("BYTE_ARRAY", "NONE")
    assert read_columns(store, "g", "000000").equals(table)
    for rows, start in ((0, 0), (1, 2), (2, 3)):
        part = read_columns(store, "g", "000000", None, [rows])
        assert part.equals(table.slice(start, GROUPS[rows]))
    pieces = pa.concat_tables([table.slice(0, 3), table.slice(3)])
    assert write_shard(store, "g", "000000", pieces, GROUPS, "recipe") == footer
    monkeypatch.setattr(shards, "with_bytes", lambda table, _: (table, []))
    assert write_shard(store, "g", "000000", table, GROUPS, "recipe") == footer  # a shard of before: equal digests
    assert read_columns(store, "g", "000000").equals(table)
    assert ArrayFile(store, "g", "000000").latents is None


def test_other_lists_stay_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path)
    holes = pa.table({"latent": pa.array([[1.0, None], [2.0, 3.0]], HALF)})
    write_shard(store, "g", "000000", holes, [2], "recipe")
    assert read_columns(store, "g", "000000").equals(holes)
    monkeypatch.setattr("labeling.dataset.arrays.MAX_PAGE", 100)  # more than a page takes
    write_shard(store, "g", "000001", TABLES["latents"], GROUPS, "recipe")
    assert read_columns(store, "g", "000001").equals(TABLES["latents"])
    assert ArrayFile(store, "g", "000001").latents is None
    write_shard(store, "g", "000002", TABLES["latents"].slice(0, 0), [], "recipe")
    assert read_columns(store, "g", "000002").num_rows == 0


@pytest.mark.parametrize("place", ["disk", "s3"])
def test_single_arrays_are_read_exactly(tmp_path: Path, place: str, request: pytest.FixtureRequest) -> None:
    store = open_store(tmp_path if place == "disk" else f"{request.getfixturevalue('s3')}/{tmp_path.name}")
    wanted: list[tuple[np.ndarray[Any, Any], list[float]]] = []
    wants = []
    for name in ("latents", "latents of sets", "text", "text of sets"):
        group = name.replace(" ", "-")
        write_shard(store, group, "000000", TABLES[name], GROUPS, "recipe")
        file = ArrayFile(store, group, "000000")
        for row, values in enumerate(TABLES[name].to_pylist()):
            is_set = name.endswith("sets")
            views = next(iter(values.values())) or [] if is_set else [next(iter(values.values()))]
            for view, value in enumerate(views):
                if file.latents:
                    if value is None:
                        with pytest.raises(IndexError):
                            file.latents.value(row, view)
                        continue
                    number = file.latents.value(row, view)
                    target = np.empty(file.latents.shape(number), np.float16)
                    wants.append(file.want(number, target))
                    wanted.append((target, value))
                for entry in value or () if file.entries else ():
                    assert file.entries
                    number = file.entries.value(row, entry["task"], view)
                    target = np.empty(file.entries.shape(number), np.float16)
                    assert target.shape == (entry["tokens"], WIDTH)
                    wants.append(file.want(number, target))
                    wanted.append((target, entry["embedding"]))
    assert len(wants) > 20
    read_arrays(wants[::2] + wants[1::2])
    for target, values in wanted:
        assert target.ravel().tolist() == values
    with pytest.raises(KeyError):
        ArrayFile(store, "text", "000000").entries.value(2, "edges")  # type: ignore[union-attr]


def test_pages_are_read_once_and_no_more_than_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path)
    write_shard(store, "g", "000000", TABLES["latents"], GROUPS, "recipe")
    file = ArrayFile(store, "g", "000000")
    places = file.latents
    assert places
    pages = [file.page(number) for number in range(3)]
    reads: list[tuple[int, int]] = []
    original = file.read_bytes

    def counted(first: int, end: int) -> bytes | bytearray:
        reads.append((first, end))
        return original(first, end)

    monkeypatch.setattr(file, "read_bytes", counted)
    expected = TABLES["latents"]["latent"].to_pylist()
    with ThreadPoolExecutor(4) as pool:

        def read(cache: PageCache, most: int) -> None:
            targets = {row: np.empty(places.shape(row), np.float16) for row in (0, 2, 3, 4)}
            page = {0: pages[0], 2: pages[1], 3: pages[2], 4: pages[2]}
            wants = [file.want(row, target, page[row]) for row, target in targets.items()]
            cache.read(wants, most)
            for row, target in targets.items():
                assert target.ravel().tolist() == expected[row]

        cache = PageCache(pool, 1 << 20)
        read(cache, 1 << 20)
        read(cache, 1 << 20)
        assert sorted(reads) == sorted(pages)
        read(PageCache(pool, 1 << 20), 10)  # larger than may be kept: exact
        assert len(reads) == 3
        small = PageCache(pool, 1)
        read(small, 1 << 20)
        read(small, 1 << 20)
        assert len(reads) > 6

        def fails(first: int, end: int) -> bytes | bytearray:
            raise OSError("no answer")

        cache = PageCache(pool, 1 << 20)
        monkeypatch.setattr(file, "read_bytes", fails)
        with pytest.raises(OSError, match="no answer"):
            read(cache, 1 << 20)
        monkeypatch.setattr(file, "read_bytes", original)
        for _ in pages:  # each page that failed is forgotten once it is asked for
            with suppress(OSError):
                read(cache, 1 << 20)
        read(cache, 1 << 20)


def test_damaged_shards_are_named_in_one_line(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    write_shard(store, "g", "000000", TABLES["latents"], GROUPS, "recipe")
    path = tmp_path / "g" / "000000.parquet"
    file = ArrayFile(store, "g", "000000")
    assert file.latents
    target = np.empty(file.latents.shape(2), np.float16)
    one = file.want(2, target)
    content = path.read_bytes()
    with path.open("r+b") as opened:  # a length that is another
        opened.seek(int(file.latents.starts[2]) - 4)
        opened.write(b"\1")
    with pytest.raises(InputError, match=r"000000.parquet row group 1: damaged; delete the file"):
        read_arrays([one])
    path.write_bytes(content[: int(file.latents.starts[2]) + 5])
    with pytest.raises(InputError, match=r"000000.parquet: not a Parquet file, or cut off"):
        read_arrays([one])
    with pytest.raises(InputError, match=r"000000.parquet: not a Parquet file, or cut off .*; move it away"):
        ArrayFile(store, "g", "000000")


def test_columns_of_more_than_one_array_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    size, sizes = 800_000_000, []
    data = pa.py_buffer(np.zeros(size, np.uint8))  # memory that nobody touches
    offsets = pa.py_buffer(np.array([0, size], np.int32))
    column = pa.chunked_array([pa.Array.from_buffers(pa.binary(), 1, [None, offsets, data])] * 3)
    monkeypatch.setattr("labeling.dataset.checksums._crc32", lambda: len)
    assert "arrays" in json.loads(checksums_text(pa.table({"latent": column}), ["latent"]))

    class Digest:
        def update(self, content: Any) -> None:
            sizes.append(memoryview(content).nbytes)

        def hexdigest(self) -> str:
            return ""

    monkeypatch.setattr("labeling.dataset.digests.hashlib.blake2b", lambda digest_size: Digest())
    digest_column(column)
    assert sum(sizes) > 3 * size


@pytest.mark.parametrize("name", TABLES)
def test_digests_do_not_depend_on_chunks(name: str) -> None:
    for column in TABLES[name].columns:
        whole = column.combine_chunks()
        pieces = pa.chunked_array([whole.slice(0, 1), whole.slice(1, 0), whole.slice(1)])
        assert digest_column(pieces) == digest_column(column)


def test_shard_without_rows_stores_the_types_of_the_others(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for name in ("latents", "text", "text of sets"):
        types = []
        for part, groups in ((TABLES[name], GROUPS), (TABLES[name].slice(0, 0), [])):
            write_shard(store, "g", "000000", part, groups, "recipe")
            types.append(pq.read_schema(tmp_path / "g" / "000000.parquet"))
            assert read_columns(store, "g", "000000").equals(part)
        assert types[0] == types[1]
