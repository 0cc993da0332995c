"""Whole files of each format cut short, and files that keep a decoder busy."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np

from picture_zoo.case import Case
from picture_zoo.files import encode, scene, whole_files
from picture_zoo.parts import chunk, png, tiff, with_chunks

# A preview or the rest of a film is no loss; these have something after their pixels, or keep parts apart.
_WHOLE_ENOUGH = {"mpo", "apng", "gif-moving", "webp-moving", "tiff-pages", "icns", "avif-alpha", "heic-alpha"}


def cases() -> Iterator[Case]:
    """Each format whole, cut in its middle and in its head; files of zeros with a head; a JPEG of many passes."""
    for name, raw in whole_files().items():
        if name not in _WHOLE_ENOUGH:
            yield Case(f"{name}-cut", raw[: len(raw) // 2], reason="")
        yield Case(f"{name}-head", raw[:20], reason="")
        if name.startswith(("jpeg", "png", "webp", "tiff", "heic", "avif")):
            yield Case(f"{name}-zeros", raw[:16] + bytes(len(raw) - 16), reason="")
    base = encode(scene(), "JPEG")
    yield Case("cut-before-pixels.jpg", base[: base.index(b"\xff\xda") + 14], reason="truncated JPEG")
    yield Case("cut-deep.tif", tiff(np.asarray(scene()).astype(np.uint16), 1, 2)[:5000], reason="truncated TIFF")
    yield Case("cut.tif", encode(scene(), "TIFF", compression="tiff_lzw")[:3000], reason="")
    yield Case("checksum-of-pixels.png", _wrong_checksum(encode(scene())), scene(), apart=0)  # as viewers take it
    deep = np.asarray(scene()).astype(np.uint16) * 257
    yield Case("without-end.png", png(deep, 2)[:-12], scene(), apart=0)
    long = png(deep, 2)
    place = long.index(b"IDAT")
    (length,) = struct.unpack(">I", long[place - 4 : place])
    promised = long[: place - 4] + struct.pack(">I", length + 9999) + long[place : place + 4 + length]
    yield Case("pixels-promised-longer.png", promised, scene(), apart=0)
    for kind in (b"pHYs", b"gAMA", b"cHRM", b"sRGB", b"bKGD", b"eXIf", b"cICP", b"tIME", b"acTL"):
        for name, content in (("short", b"\1"), ("long", b"\xff" * 99)):
            yield Case(
                f"{kind.decode()}-{name}.png", with_chunks(encode(scene()), chunk(kind, content)), scene(), apart=0
            )
    looped = bytearray(tiff(np.asarray(scene()), 1, 2))
    count = struct.unpack_from("<H", looped, 8)[0]
    looped[10 + 12 * count : 14 + 12 * count] = struct.pack("<I", 8)
    yield Case("folders-in-a-circle.tif", bytes(looped), scene(), apart=0)
    yield Case("passes.jpg", _many_passes(encode(scene(), "JPEG", progressive=True, quality=90)), scene(), apart=8)


def _wrong_checksum(png: bytes) -> bytes:
    place = png.index(b"IDAT")
    end = place + 4 + struct.unpack(">I", png[place - 4 : place])[0]
    return png[:end] + b"\0\0\0\0" + png[end + 4 :]


def _many_passes(jpeg: bytes) -> bytes:
    """The first pass of a progressive JPEG five hundred times over."""
    start = jpeg.index(b"\xff\xda")
    end = jpeg.index(b"\xff\xc4", start)
    return jpeg[:end] + jpeg[start:end] * 500 + jpeg[end:]
