"""Decoded images as one run of bytes, the cheapest thing for Ray to carry from one process to another.

Each row is a header of int32 and its pixels. Header: the number of views of a set, 0 for a single image; then height
and width of each image. Pixels: (height, width, 3) uint8 of each image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def decode_and_pack(encoded: Sequence[Any]) -> bytes:
    """Decode the images of rows; of a set, a row is the list of its views."""
    from model.pictures import decode_picture

    parts: list[bytes] = []
    for row in encoded:
        images = [decode_picture(image) for image in (row if isinstance(row, list) else [row])]
        header = [len(images) if isinstance(row, list) else 0]
        header += [side for image in images for side in image.shape[:2]]
        parts += [np.array(header, np.int32).tobytes(), *(image.tobytes() for image in images)]
    return b"".join(parts)


def unpack(packed: bytes) -> list[Any]:
    """The images of each row, as views of the bytes given; of a set, a list of images."""
    data = np.frombuffer(packed, np.uint8)
    rows: list[Any] = []
    start = 0

    def take_integers(count: int) -> list[int]:
        nonlocal start
        start += 4 * count
        return [int(value) for value in np.frombuffer(data[start - 4 * count : start].tobytes(), np.int32)]

    while start < len(data):
        views = take_integers(1)[0]
        sizes = take_integers(2 * max(views, 1))
        images = []
        for height, width in zip(sizes[::2], sizes[1::2], strict=True):
            images.append(data[start : start + height * width * 3].reshape(height, width, 3))
            start += height * width * 3
        rows.append(images if views else images[0])
    return rows
