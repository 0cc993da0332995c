"""Turned pictures of every format, and EXIF blocks that break the rules."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
from PIL import Image

from picture_zoo.case import Case
from picture_zoo.files import encode, heic, jxl, scene
from picture_zoo.parts import chunk, exif_block, tiff, with_chunks

_UPRIGHT = {
    1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip

ODD_TAGS = {
    "rational": (0x011A, 10, 1, struct.pack("<ii", -1, 0)),
    "two-resolutions": (0x011A, 5, 2, struct.pack("<IIII", 72, 1, 0, 0)),
    "negative-ushort": (0x0128, 8, 1, struct.pack("<h", -5)),
    "ascii-for-number": (0x0128, 2, 5, b"inch\0"),
    "byte-tag": (0x0005, 1, 1, b"\0"),
    "pointer-to-nowhere": (0x8769, 4, 1, struct.pack("<I", 999_999)),
    "pointer-to-itself": (0x8769, 4, 1, struct.pack("<I", 8)),
    "gps-as-ascii": (0x8825, 2, 4, b"abc\0"),
    "unknown-type": (0x9286, 77, 3, b"xyz"),
    "float-nan": (0x9205, 11, 1, struct.pack("<f", float("nan"))),
    "undefined-array": (0xA301, 7, 5, b"\1\2\3\4\5"),
    "short-as-undefined": (0x0213, 7, 2, b"\1\0"),
    "software-not-ascii": (0x0131, 2, 6, b"\xff\xfe\xe9\xe8\xe0\0"),
    "count-of-billions": (0x0131, 2, 0xFFFFFFFF, b"\0\0\0\0"),
    "thumbnail-nowhere": (0x0201, 4, 1, struct.pack("<I", 0xFFFFFFF0)),
    "sub-folders-of-text": (0x014A, 2, 4, b"abc\0"),
}


def upright(seed: int, turn: int) -> Image.Image:
    """How the scene looks whose file says this orientation."""
    method = _UPRIGHT[turn]
    return scene(seed=seed) if method is None else scene(seed=seed).transpose(method)


def cases() -> Iterator[Case]:
    """Each orientation in each format; each odd tag in each format, with the picture turned by a quarter."""
    for turn in range(1, 9):
        seed, block = turn, exif_block(turn)
        look = upright(seed, turn)
        kept = turn == 1
        yield Case(f"turn-{turn}.jpg", encode(scene(seed=seed), "JPEG", quality=95, exif=block), look, kept=kept)
        yield Case(f"turn-{turn}.png", encode(scene(seed=seed), exif=block), look, kept=kept)
        late = encode(scene(seed=seed))
        late = late[:-12] + chunk(b"eXIf", block[6:]) + late[-12:]
        yield Case(f"turn-{turn}-after-pixels.png", late, look, kept=kept)
        yield Case(f"turn-{turn}.webp", encode(scene(seed=seed), "WEBP", lossless=True, exif=block), look, kept=kept)
        yield Case(f"turn-{turn}.tif", tiff(np.asarray(scene(seed=seed)), 1, 2, {0x0112: (turn,)}), look)
        deep = np.asarray(scene(seed=seed)).astype(np.uint16) * 257
        yield Case(f"turn-{turn}-deep.tif", tiff(deep, 1, 2, {0x0112: (turn,)}), look)
        yield Case(f"turn-{turn}.avif", encode(scene(seed=seed), "AVIF", quality=95, exif=block), look)
        yield Case(f"turn-{turn}.heic", heic(scene(seed=seed), exif=block), look)
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    yield Case("turn-by-xmp.jpg", encode(scene(), "JPEG", quality=95, xmp=xmp), upright(0, 6))
    # The format turns by itself, and says that EXIF does not count.
    yield Case("turn-in-exif-only.jxl", jxl(scene(), exif=exif_block(6)), scene())
    for index, (name, tag) in enumerate(ODD_TAGS.items()):
        block, seed = exif_block(6, tag), index
        look = upright(seed, 6)
        yield Case(f"{name}.jpg", encode(scene(seed=seed), "JPEG", quality=95, exif=block), look)
        yield Case(f"{name}.png", with_chunks(encode(scene(seed=seed)), chunk(b"eXIf", block[6:])), look)
        yield Case(f"{name}.webp", encode(scene(seed=seed), "WEBP", lossless=True, exif=block), look)
        avif = encode(
            scene(seed=seed), "AVIF", quality=95, exif=exif_block(6, (0x0131, 2, len(block), bytes(len(block))))
        )
        yield Case(f"{name}.avif", _with_odd_exif(avif, block), look)
    once = exif_block(6)
    yield Case("exif-twice.jpg", encode(scene(), "JPEG", quality=95, exif=b"Exif\0\0" + once), upright(0, 6))
    for name, block in {"cut": once[:20], "empty": b"Exif\0\0", "noise": b"Exif\0\0" + b"\xa5" * 90}.items():
        yield Case(f"exif-{name}.jpg", encode(scene(), "JPEG", quality=95, exif=block), scene(), kept=True)
        yield Case(f"exif-{name}.png", with_chunks(encode(scene()), chunk(b"eXIf", block[6:])), scene(), kept=True)
    for turn in (0, 9, 4000):
        yield Case(f"turn-{turn}.jpg", encode(scene(), "JPEG", quality=95, exif=exif_block(turn)), scene(), kept=True)


def _with_odd_exif(avif: bytes, block: bytes) -> bytes:
    """An AVIF whose EXIF block, of at least that length, is overwritten."""
    start = avif.index(b"II*\0")
    return avif[:start] + block[6:] + avif[start + len(block) - 6 :]
