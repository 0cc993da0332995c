"""Pieces of files: chunks of PNG, boxes of HEIC and its like, blocks of EXIF, color profiles, TIFF files."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from model.pixels.spaces import xyz_of

SIGNATURE = b"\x89PNG\r\n\x1a\n"
P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
ADOBE = ((0.640, 0.330), (0.210, 0.710), (0.150, 0.060))
BT709 = ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060))
D65 = (0.3127, 0.3290)


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunks(png: bytes, *chunks: bytes) -> bytes:
    """A PNG with chunks after its header."""
    return png[:33] + b"".join(chunks) + png[33:]


def png(levels: NDArray[np.uint16], color: int, *chunks: bytes) -> bytes:
    """A PNG of 16 bits; color: 0 gray, 2 RGB, 4 gray and alpha, 6 RGBA."""
    height, width = levels.shape[:2]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in levels)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0))
    return SIGNATURE + header + b"".join(chunks) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def png_header(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises width × height pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def tiff(
    levels: NDArray, form: int, photometric: int, more: dict[int, tuple[int, ...]] | None = None, order: str = "<"
) -> bytes:
    """An uncompressed TIFF of one strip.

    form: 1 unsigned, 2 signed, 3 float; photometric: 0 and 1 gray, 2 RGB, 8 LAB; more: tags of 16 bits or, of a single
    value, of 32; order: "<" or ">".
    """
    height, width = levels.shape[:2]
    bands = levels.shape[2] if levels.ndim == 3 else 1
    data = levels.astype(levels.dtype.newbyteorder(order)).tobytes()
    values: dict[int, tuple[int, ...]] = {
        256: (width,), 257: (height,), 258: (levels.dtype.itemsize * 8,) * bands, 259: (1,), 262: (photometric,),
        273: (0,), 277: (bands,), 278: (height,), 279: (len(data),), 284: (1,), 339: (form,) * bands,
    }  # fmt: skip
    if bands in (2, 4):
        values[338] = (2,)
    values |= more or {}
    after = 8 + 2 + 12 * len(values) + 4
    extra = b""
    entries = b""
    outside = sum(2 * len(value) for value in values.values() if len(value) > 2)
    values[273] = (after + outside,)
    for tag, value in sorted(values.items()):
        if len(value) == 1:
            entries += struct.pack(order + "HHII", tag, 4, 1, value[0])
        elif len(value) == 2:
            entries += struct.pack(order + "HHIHH", tag, 3, 2, *value)
        else:
            entries += struct.pack(order + "HHII", tag, 3, len(value), after + len(extra))
            extra += struct.pack(f"{order}{len(value)}H", *value)
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(order + "IH", 8, len(values)) + entries + bytes(4) + extra + data


def exif_block(orientation: int, *entries: tuple[int, int, int, bytes]) -> bytes:
    """An EXIF block: an orientation, and (tag, type, count, value) of other tags, which may break all rules."""
    all_entries = sorted(((0x0112, 3, 1, struct.pack("<HH", orientation, 0)), *entries))
    table, after = b"", b""
    start = 8 + 2 + 12 * len(all_entries) + 4
    for tag, kind, count, value in all_entries:
        if len(value) > 4:
            table += struct.pack("<HHII", tag, kind, count, start + len(after))
            after += value
        else:
            table += struct.pack("<HHI", tag, kind, count) + value.ljust(4, b"\0")
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(all_entries)) + table + struct.pack("<I", 0) + after


def adobe_exif() -> bytes:
    """What cameras write for Adobe RGB: folders within folders down to the interoperability index R03."""
    tail = struct.pack("<H", 1) + struct.pack("<HHI", 1, 2, 4) + b"R03\0" + struct.pack("<I", 0)
    inner = struct.pack("<H", 1) + struct.pack("<HHII", 0xA005, 4, 1, 44) + struct.pack("<I", 0)
    first = struct.pack("<H", 1) + struct.pack("<HHII", 0x8769, 4, 1, 26) + struct.pack("<I", 0)
    return b"Exif\0\0II*\0\x08\0\0\0" + first + inner + tail


def _fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def icc(name: str, primaries=P3, gamma: float | None = None, gray: bool = False) -> bytes:
    """An ICC profile, version 4, of primaries under D65 and a curve: sRGB's, or a power."""
    curve = struct.pack(">4sIHH", b"para", 0, 3, 0)
    curve += b"".join(map(_fixed, (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)))
    if gamma is not None:
        curve = struct.pack(">4sIHH", b"para", 0, 0, 0) + _fixed(gamma)
    words = name.encode("utf-16-be")
    text = struct.pack(">4sIII2s2sII", b"mluc", 0, 1, 12, b"en", b"US", len(words), 28) + words
    white = struct.pack(">4sI", b"XYZ ", 0) + b"".join(map(_fixed, (0.9642, 1.0, 0.8249)))
    tags = {b"desc": text, b"cprt": text, b"wtpt": white}
    if gray:
        tags[b"kTRC"] = curve
    else:
        for letter, column in zip((b"r", b"g", b"b"), xyz_of(primaries, D65).T, strict=True):
            tags[letter + b"XYZ"] = struct.pack(">4sI", b"XYZ ", 0) + b"".join(map(_fixed, column))
            tags[letter + b"TRC"] = curve
    table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for key, value in tags.items():
        padded = value + b"\0" * (-len(value) % 4)
        table += key + struct.pack(">II", start + len(body), len(padded))
        body += padded
    space = b"GRAY" if gray else b"RGB "
    head = struct.pack(">I4sI4s4s4s", start + len(body), b"\0\0\0\0", 0x04300000, b"mntr", space, b"XYZ ")
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    head += b"".join(map(_fixed, (0.9642, 1.0, 0.8249)))
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def looks(values: NDArray, primaries=P3, gamma: float | None = None, top: int = 255) -> NDArray[np.uint8]:
    """How levels of primaries and a curve look in sRGB; computed apart from what is tested, in floats."""
    level = np.asarray(values).astype(float) / top
    light = (
        np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4) if gamma is None else level**gamma
    )
    if light.ndim == 3:
        light = light @ (np.linalg.inv(xyz_of(BT709, D65)) @ xyz_of(primaries, D65)).T
    light = light.clip(0, 1)
    srgb = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.rint(255 * srgb).astype(np.uint8)


def box(kind: bytes, data: bytes) -> bytes:
    """A box of a file of MP4's family."""
    return struct.pack(">I", 8 + len(data)) + kind + data
