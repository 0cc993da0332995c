"""Milliseconds of CPU a megapixel for encoding labels and decoding pictures, beside Pillow in the same run.

    PYTHONPATH=. python tests/benchmarks/bench_pictures.py [--rounds 5]

The floor of an encoder is to checksum what it compresses, that of a decoder to copy the pixels. Figures go to
runs/bench/pictures.json; exit code 1 when a label costs more than 20 ms a megapixel.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table
from skimage import data

from labeling.labelers.edges import EdgesLabeler, draw_edges
from model.conditions import draw_skeleton
from model.pictures import decode_gray, decode_picture, encode_png

WIDTH, HEIGHT = 1500, 1000
MOST = 20.0  # ms a megapixel, of an encoded label
RESULT = Path("runs/bench/pictures.json")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    cv2.setNumThreads(1)
    figures: dict[str, dict[str, float]] = {}
    for name, array in labels().items():
        decode = decode_gray if array.ndim == 2 else decode_picture
        ours, theirs = encode_png(array), with_pillow(array)
        assert np.array_equal(decode(ours), array)
        seconds = cpu_seconds(
            {
                "encode_ms": lambda array=array: encode_png(array),
                "encode_pillow_ms": lambda array=array: with_pillow(array),
                "encode_floor_ms": lambda array=array: zlib.adler32(array),
                "decode_ms": lambda decode=decode, ours=ours: decode(ours),
                "decode_pillow_ms": lambda decode=decode, theirs=theirs: decode(theirs),
                "decode_floor_ms": lambda array=array: array.copy(),
            },
            rounds,
        )
        figures[name] = {**seconds, "size_over_pillow": len(ours) / len(theirs)}
    for quality in (75, 95):
        photograph = cv2.resize(data.coffee(), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        jpeg = with_pillow(photograph, "JPEG", quality=quality)
        decoded = np.array(Image.open(io.BytesIO(jpeg)).convert("RGB"))
        assert np.array_equal(decode_picture(jpeg), decoded)
        figures[f"JPEG, quality {quality}"] = cpu_seconds(
            {
                "decode_ms": lambda jpeg=jpeg: decode_picture(jpeg),
                "decode_pillow_ms": lambda jpeg=jpeg: np.array(Image.open(io.BytesIO(jpeg)).convert("RGB")),
                "decode_floor_ms": lambda decoded=decoded: decoded.copy(),
            },
            rounds,
        )
    columns = list(next(iter(figures.values())))
    table = Table("ms of CPU a megapixel", *(name.removesuffix("_ms").replace("_", " ") for name in columns))
    for name, values in figures.items():
        table.add_row(name, *(f"{values[column]:.3g}" if column in values else "" for column in columns))
    Console(width=120).print(table)
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(figures, indent=2))
    if missed := [name for name, values in figures.items() if values.get("encode_ms", 0) > MOST]:
        sys.exit(f"above {MOST:g} ms a megapixel: {', '.join(missed)}")


def labels() -> dict[str, NDArray[np.generic]]:
    """Labels as labelers make them: smooth depth of a network, steps of a stereo matcher, a mask, lines, a person."""
    random = np.random.default_rng(0)
    coarse = [random.random((side, side * 3 // 2)).astype(np.float32) / side for side in (4, 16, 64, 256)]
    smooth = sum(cv2.resize(one, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC) for one in coarse)
    depth = np.rint(1 + (smooth - smooth.min()) / np.ptp(smooth) * 65534).astype(np.uint16)
    hidden = cv2.resize(random.random((30, 45)), (WIDTH, HEIGHT), interpolation=cv2.INTER_NEAREST) > 0.8
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    for number in range(8):
        center, axes = random.integers(0, (WIDTH, HEIGHT)).tolist(), random.integers(50, (400, 300)).tolist()
        cv2.ellipse(mask, center, axes, 30, 0, 360, number + 1, -1)
    photograph = cv2.resize(data.coffee(), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    points = random.uniform((400, 200), (900, 900), (17, 2))
    person = [{"x": float(x), "y": float(y), "score": 1.0} for x, y in points]
    return {
        "depth of a network": depth,
        "depth of a pair": np.where(hidden, 0, np.rint(depth / 102.4) * 102).astype(np.uint16),
        "mask": mask,
        "edges": draw_edges(photograph, EdgesLabeler.Parameters()),
        "skeleton": draw_skeleton([person], WIDTH, HEIGHT),
    }


def with_pillow(array: NDArray[np.generic], form: str = "PNG", **settings: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, form, **(settings or {"compress_level": 6}))
    return buffer.getvalue()


def cpu_seconds(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds of CPU a megapixel of each, taken in turn; a first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            began = time.process_time()
            work()
            if number:
                seconds[name].append(time.process_time() - began)
    return {name: statistics.median(times) / (WIDTH * HEIGHT) * 1e9 for name, times in seconds.items()}


if __name__ == "__main__":
    main()
