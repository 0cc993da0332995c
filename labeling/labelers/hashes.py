"""Perceptual hashes: pictures that look the same have nearly the same bits, whatever their size and compression."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from labeling.labeler import Labeler, Row, required

SIDE = 16  # of the hash, whose bits are as many as its square


class HashesLabeler(Labeler):
    """ImageHash's pHash: which of the 16 × 16 lowest frequencies of a gray picture are above their median."""

    name = "hashes"
    version = 1
    packages = ("imagehash",)
    schema = pa.schema([("phash", pa.binary())])

    @property
    def model(self) -> str:
        from importlib.metadata import version

        return f"ImageHash {version('ImageHash')} phash"

    def label_row(self, row: Row) -> Row:
        required(row, "images.image")
        return {"phash": perceptual_hash(row["images.image"])}


def perceptual_hash(picture: Any) -> bytes:
    """(H, W, 3) uint8 → 32 bytes."""
    import imagehash
    from PIL import Image

    bits = imagehash.phash(Image.fromarray(np.asarray(picture)), hash_size=SIDE).hash
    return np.packbits(bits.ravel()).tobytes()
