"""The same rows in every contestant's format, for bench_loader.py.

A row is a latent (16, 32, 32) and a prompt's embedding (L, width), float16, with the row's number in the first two
values of both, so that what is delivered can be checked. Pictures are JPEGs of 512 × 384 cut from photographs, and
their number is told by their order. Run as a script by the Python that has the peers: FORMAT ROWS-OR-PICTURES FOLDER.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHAPE = (16, 32, 32)
PICTURE = (512, 384)
ROW_GROUP, SHARD_ROWS = 16, 1024  # as ingest cuts them
CHUNK_BYTES = 1 << 26
TASK = "text2image"


class Rows:
    """Rows made from their number: count of them, the width of embeddings, and the tokens of the shortest and longest
    prompt."""

    def __init__(self, count: int, width: int, least: int, most: int) -> None:
        self.count, self.width = count, width
        self.lengths = np.random.default_rng(1).integers(least, most + 1, count)
        self._pool = np.random.default_rng(0).standard_normal(1 << 22, np.float32).astype(np.float16)

    @classmethod
    def read(cls, folder: Path) -> Rows:
        """Those that were described in a folder."""
        return cls(**json.loads((folder / "rows.json").read_text()))

    @property
    def bytes_of_row(self) -> float:
        """Bytes of a row, on average."""
        return float(2 * np.prod(SHAPE) + 2 * self.width * self.lengths.mean())

    def latent(self, row: int) -> NDArray[np.float16]:
        """(16, 32, 32) of a row."""
        return self._cut(row, 0, int(np.prod(SHAPE))).reshape(SHAPE)

    def text(self, row: int) -> NDArray[np.float16]:
        """(L, width) of a row."""
        return self._cut(row, 1, int(self.lengths[row]) * self.width).reshape(-1, self.width)

    def _cut(self, row: int, kind: int, count: int) -> NDArray[np.float16]:
        start = (row * 7919 + kind * 104729) % (len(self._pool) - count)
        values = self._pool[start : start + count].copy()
        values[:2] = divmod(row, 1024)
        return values


def number_of(values: NDArray[np.float16]) -> int:
    """The row that a latent or an embedding is of."""
    high, low = values.reshape(-1)[:2].tolist()
    return int(high) * 1024 + int(low)


def write_ours(folder: Path, rows: Rows, pictures: Sequence[bytes] = (), shape: tuple[int, ...] = SHAPE) -> None:
    """The project's dataset; shape: of the latents, cut from those of the rows."""
    import pyarrow as pa

    from labeling.dataset import IMAGES, TEXT, Dataset, ShardInfo, write_shard

    dataset = Dataset(folder)
    half = pa.list_(pa.float16())
    entry = pa.struct([("task", pa.string()), ("prompt", pa.string()), ("tokens", pa.int32()), ("embedding", half)])
    shards = [ShardInfo(f"{start // SHARD_ROWS:06d}", 0) for start in range(0, rows.count, SHARD_ROWS)]
    declared = {"latents-256": {"codec": "dct"}, TEXT: {"encoder": "minilm"}}
    for group, parameters in declared.items():
        dataset.declare(group, {"labeler": group, "version": 1, "parameters": parameters, "weights": "", "reads": []})
    task = "inpainting" if pictures else TASK
    described = []
    for shard in shards:
        start = int(shard.name) * SHARD_ROWS
        numbers = range(start, min(start + SHARD_ROWS, rows.count))
        groups = [min(ROW_GROUP, len(numbers) - first) for first in range(0, len(numbers), ROW_GROUP)]
        empty = np.zeros((1, rows.width), np.float16)
        count = int(np.prod(shape))
        tables: dict[str, Any] = {
            "latents-256": {
                "latent": pa.array([np.resize(rows.latent(row), count) for row in numbers], half),
                "latent_height": pa.array([shape[1]] * len(numbers), pa.int32()),
                "latent_width": pa.array([shape[2]] * len(numbers), pa.int32()),
            },
            TEXT: {
                "entries": pa.array(
                    [
                        [
                            {"task": name, "prompt": name, "tokens": len(text), "embedding": text.ravel()}
                            for name, text in (("", empty), (task, rows.text(row)))
                        ]
                        for row in numbers
                    ],
                    pa.list_(entry),
                )
            },
        }
        if pictures:
            tables[IMAGES] = {"image": pa.array([pictures[row] for row in numbers], pa.binary())}
        for group, columns in tables.items():
            write_shard(dataset.store, group, shard.name, pa.table(columns), groups, "recipe")
        described.append(ShardInfo(shard.name, len(numbers)))
    dataset.describe("pictures", described, [])


def repeat_shard(folder: Path, count: int) -> None:
    """Let a dataset of ours that has one shard have so many, all of them the same file."""
    from labeling.dataset import Dataset, ShardInfo

    dataset = Dataset(folder)
    [first] = dataset.shards
    shards = [ShardInfo(f"{number:06d}", first.rows) for number in range(count)]
    for group in dataset.groups():
        for shard in shards[1:]:
            (folder / group / f"{shard.name}.parquet").hardlink_to(folder / group / f"{first.name}.parquet")
    dataset.describe("pictures", shards, [])


def make_pictures(count: int) -> Iterator[bytes]:
    """JPEGs, quality 90, cut from scikit-image's photographs, with noise as a camera's."""
    import cv2
    import skimage
    from PIL import Image

    folder = Path(skimage.__file__).parent / "data"
    names = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
    sources = [np.array(Image.open(folder / name).convert("RGB")) for name in names]
    random = np.random.default_rng(0)
    for number in range(count):
        source = sources[number % len(sources)]
        height, width = source.shape[:2]
        w = int(min(width, height * 4 / 3) * random.uniform(0.5, 1.0))
        h = w * 3 // 4
        left, top = random.integers(0, width - w + 1), random.integers(0, height - h + 1)
        cut = cv2.resize(source[top : top + h, left : left + w], PICTURE, interpolation=cv2.INTER_AREA)
        noisy = np.clip(cut + random.normal(0, 4, cut.shape), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noisy).save(buffer, "JPEG", quality=90)
        yield buffer.getvalue()


def _samples(folder: Path, kind: str) -> tuple[int, Any]:
    """(how many, number → named bytes) of what a peer's format is to hold."""
    if kind == "pictures":
        pictures = sorted((folder / "jpeg").glob("*.jpg"))
        return len(pictures), lambda row: {"jpg": pictures[row].read_bytes()}
    rows = Rows.read(folder)
    return rows.count, lambda row: {"latent": rows.latent(row).tobytes(), "text": rows.text(row).tobytes()}


def write_mosaicml(folder: Path, kind: str) -> None:
    from streaming import MDSWriter

    count, sample = _samples(folder, kind)
    columns = dict.fromkeys(sample(0), "bytes")
    with MDSWriter(out=str(folder / "mosaicml"), columns=columns, hashes=None, size_limit=CHUNK_BYTES) as writer:
        for row in range(count):
            writer.write(sample(row))


_SAMPLE: Any


def _of_litdata(row: int) -> dict[str, bytes]:
    return dict(_SAMPLE(row))


def write_litdata(folder: Path, kind: str) -> None:
    from litdata import optimize

    global _SAMPLE
    count, _SAMPLE = _samples(folder, kind)
    given = {"chunk_bytes": "64MB", "num_workers": 1, "start_method": "fork", "verbose": False}
    optimize(_of_litdata, list(range(count)), str(folder / "litdata"), **given)


def write_webdataset(folder: Path, kind: str) -> None:
    count, sample = _samples(folder, kind)
    (folder / "webdataset").mkdir()
    each = CHUNK_BYTES // sum(map(len, sample(0).values()))
    for start in range(0, count, each):
        with tarfile.open(folder / "webdataset" / f"{start:09d}.tar", "w") as file:
            for row in range(start, min(start + each, count)):
                for name, data in sample(row).items():
                    info = tarfile.TarInfo(f"{row:09d}.{name}")
                    info.size = len(data)
                    file.addfile(info, io.BytesIO(data))


if __name__ == "__main__":
    {"mosaicml": write_mosaicml, "litdata": write_litdata, "webdataset": write_webdataset}[sys.argv[1]](
        Path(sys.argv[3]), sys.argv[2]
    )
